"""Atomic writes: whole or not there, and an error of the file system names the file."""

import errno
import os
from pathlib import Path

import pytest
import torch

from wimfris.errors import UserError
from wimfris.files import check_writable, replacing, write_text, writing
from wimfris.training.checkpoint import save_weights


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (no message)
        fail()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class LibraryError(Exception):
    """As safetensors and torch wrap the system's error."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        LibraryError("I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed: No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_names_the_file(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def fail() -> None:
        with writing(path):
            raise error

    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be written \(") as refusal:
        fail()
    assert "\n" not in str(refusal.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    def fail() -> None:
        with writing(tmp_path):
            raise FileNotFoundError(errno.ENOENT, "no such file", "another.txt")

    with pytest.raises(FileNotFoundError):
        fail()


def test_a_full_disk_in_truth(tmp_path: Path) -> None:
    """/dev/full is a file of a disk that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "a.txt"

    def fail() -> None:
        with replacing(path), Path("/dev/full").open("w", encoding="utf-8") as full:
            full.write("x" * 100000)

    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "records.parquet", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            check_writable(path)
    check_writable(tmp_path / "new" / "records.parquet")
    assert not (tmp_path / "new").exists()


def test_a_file_has_the_mode_that_the_system_gives_new_files(tmp_path: Path) -> None:
    """safetensors writes files that only their owner can read."""
    save_weights({"a": torch.zeros(1)}, {}, tmp_path / "a.safetensors")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
