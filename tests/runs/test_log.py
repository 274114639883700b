"""The log of a run: it reads back, and a damaged line is named."""

from pathlib import Path
from typing import Any

import pytest

from wimfris.errors import UserError
from wimfris.runs.log import read_log, write_log

EVENTS: list[dict[str, Any]] = [
    {"event": "step", "epoch": 1, "step": 20, "loss": 0.5},
    {"event": "epoch", "epoch": 1, "loss": 0.4, "val_miou": 0.1, "emphasis": {"1": 0.3}},
]


def test_a_log_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(EVENTS, path)
    assert read_log(path) == EVENTS


@pytest.mark.parametrize("bad", ['{"event": "step", "ep', "[1, 2]", "{}", "", "nonsense"])
def test_a_damaged_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "log.jsonl"
    write_log(EVENTS[:1], path)
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(UserError) as error:
        read_log(path)
    assert f"{path}: line 2" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_binary_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary"):
        with pytest.raises(UserError, match=name):
            read_log(tmp_path / name)
