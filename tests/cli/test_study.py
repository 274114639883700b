"""`python studies/<name>.py`: what it trains, adds to the evidence, prints and writes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wimfris.cli import study as command
from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study
from wimfris.results.evidence import EvidenceFiles
from wimfris.settings.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STUDY = Study("example", "Example", "Does it matter?", "It does.", (Row("full", "full"), Row("none", "none")))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(STUDY, arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def folder(project: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prepared smoke project with two variants and the published figures."""
    variants = {name: project.params().variants[name] for name in ("full", "none")}
    project.edit(variants=variants, extended={}, controls={}, seeds=[0, 1])
    (project.folder / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "published.csv", project.folder / "reports")
    return project.folder


def test_dry_run_names_the_missing_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run") == 0
    assert "4 of 4 runs are to be trained:\n  full-0\n  full-1\n  none-0\n  none-1" in capsys.readouterr().out


def test_no_train_without_evidence_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-train") == 2
    assert "example: no current evidence of any of its 4 runs; train them" in capsys.readouterr().err


def test_missing_runs_are_trained_and_added_and_seeds_only_print(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Run] = []

    def train(params: Any, missing: list[Run], jobs: Any, *, dry_run: bool = False) -> int:
        from wimfris.results.evidence import gather
        from wimfris.training.run import train_run

        for one in missing:
            train_run(params.settings_of(one), one.seed)
        trained.extend(missing)
        gather(params, missing)
        return 0

    monkeypatch.setattr(command, "_train", train)
    assert run("--seeds", "0") == 0
    assert trained == [Run("full", 0), Run("none", 0)]
    assert EvidenceFiles("scenes-smoke", added=True).records.is_file()
    assert "Example" in capsys.readouterr().out
    assert not (folder / "reports" / "tables").exists(), "a narrowed study only prints"
    assert run("--no-train", "--seeds", "0") == 0
    capsys.readouterr()
    assert run("--no-train") == 0
    assert "the evidence holds 2 of its 4 runs" in capsys.readouterr().out


def test_a_study_of_another_scale_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(replace(STUDY, scales=("base",)), ["--dry-run"])
    assert "study example must run at scale base, which has its variants; add --scale base" in capsys.readouterr().err


def test_a_failed_run_gives_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_train", lambda *_, **__: 2)
    assert run() == 1
    assert "2 runs of example failed; the same command tries them again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0,x"), "--seeds must be whole numbers separated by commas"),
        (("--seeds", "9"), "--seeds 9: example has the seeds 0, 1"),
        (("--scale", "huge"), "scale must be one of"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
