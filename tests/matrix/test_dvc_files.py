"""DVC's own files after a kill."""

from pathlib import Path

import pytest

from wimfris.matrix.dvc_files import repair


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("text", ["", "schema: '2.0'\nstages:\n  data:\n    cmd: wim", "schema: '2.0\n"])
def test_a_truncated_lock_file_is_removed(root: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "dvc.lock").write_text(text)
    repair(root)
    assert not (root / "dvc.lock").exists()
    assert "truncated by a kill; removed" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["schema: '2.0'\nstages: {}\n", "<<<<<<< ours\nschema: '2.0'\n"])
def test_a_whole_lock_file_and_a_conflict_stay(root: Path, text: str) -> None:
    (root / "dvc.lock").write_text(text)
    repair(root)
    assert (root / "dvc.lock").read_text() == text


def test_a_truncated_list_of_processes_is_removed(root: Path) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.write_text('{"read": {')
    repair(root)
    assert not path.exists()
    path.write_text("{}")
    repair(root)
    assert path.exists()
