"""The key of a run: what is not prepared is named in one line, and never costs a finished run."""

from pathlib import Path

import pytest
from params_file import write_params

from wimfris.cli.training import clean
from wimfris.errors import UserError
from wimfris.runs.key import run_key
from wimfris.runs.store import STORE
from wimfris.settings.params import read_params


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    return tmp_path


def test_what_is_not_prepared_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^runs/\S+/index\.parquet: not prepared; run `dvc repro prepare encoders`"):
        run_key(read_params().settings("full"), 0)


def test_cleaning_keeps_runs_that_cannot_be_judged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = read_params().settings().folder.name
    known, unknown = (STORE / f"{name}-{run}-0123456789abcdef" for run in ("full-0", "nobody-0"))
    for entry in (known, unknown):
        entry.mkdir(parents=True)
    clean()
    assert known.is_dir() and not unknown.exists()
    assert "full-0: kept" in (output := capsys.readouterr().out) and output.endswith("1 removed, 1 kept\n")
    clean(everything=True)
    assert not known.exists()
