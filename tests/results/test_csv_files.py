"""Committed CSV files: a damaged one is refused in one line that says what to do."""

from pathlib import Path

import pytest

from wimfris.errors import UserError
from wimfris.results.csv_files import read_csv


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<<<<<<< HEAD\nrun,seed\nfull-0,0\n", "holds git's conflict markers; resolve the conflict"),
        (b"", "not a CSV file"),
        (b'run,seed\n"full-0,0\n', "not a CSV file"),
        (b"run,seed\n\xff\xfe,0\n", "not a CSV file"),
        (b"run,seed\nfull-0,0,1,2\nfull-1,0\n1,2,3,4,5,6\n", "not a CSV file"),
        (b"run\nfull-0\n", "column 'seed' is missing"),
        (b"run,seed\nfull-0,0\nfull-1", "not a CSV file .its last line is cut off"),
        (b"run,seed\nfull-0,0\nfull-1\n", "not a CSV file .line 3 has 1 of 2 cells"),
    ],
    ids=["conflict", "empty", "open quote", "no text", "ragged", "column", "cut", "short row"],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"runs\.csv: {message}") as error:
        read_csv(tmp_path / "runs.csv", ["run", "seed"])
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.csv: missing"):
        read_csv(tmp_path / "runs.csv")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("run,seed\nfull-0,0\n")
    assert read_csv(tmp_path / "runs.csv", ["run"]).to_dict("records") == [{"run": "full-0", "seed": 0}]
