"""The store of finished runs: it returns the bytes of a trained run, and never a damaged or incomplete one."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wimfris.cli.training import train
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.store import STORE, fetch, is_stored, keep, prune, run_entry

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Any) -> Any:
    """Return a project of the test's own whose store holds run full-0."""
    shutil.rmtree(project.folder)
    shutil.copytree(trained_folder, project.folder)
    monkeypatch.chdir(project.folder)
    return project


def contents(files: RunFiles) -> dict[str, bytes]:
    """Return the bytes of every file of a run by name, the manifest too."""
    return {path.name: path.read_bytes() for path in files.all}


def entry(project: Any) -> Path:
    return run_entry("scenes-smoke", "full-0", digest(decisive(project.params().settings(), 0)))


def test_fetched_run_equals_the_trained_one(stored: Any) -> None:
    """DVC deletes the folder of a run before it starts the stage. The manifest keeps the times of the training."""
    trained = contents(stored.files())
    shutil.rmtree(stored.files().folder)
    stored.train(retrain=False)
    assert contents(stored.files()) == trained
    assert set(stored.files().folder.iterdir()) == set(stored.files().all)


def test_fetch_replaces_what_lies_there(stored: Any) -> None:
    trained = contents(stored.files())
    stored.files().weights.write_bytes(b"of another run")
    (stored.files().folder / "more").touch()
    assert fetch(entry(stored), stored.files())
    assert contents(stored.files()) == trained
    assert set(stored.files().folder.iterdir()) == set(stored.files().all)


def test_stored_files_are_copies(stored: Any) -> None:
    """DVC makes the files of a run read-only, and links them into its cache."""
    fetch(entry(stored), stored.files())
    for path in stored.files().all:
        assert path.stat().st_ino != (entry(stored) / path.name).stat().st_ino
        assert path.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "records.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_entry_is_removed(name: str, damage: str, stored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place = entry(stored)
    path = place / name
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = contents(stored.files())
    assert not fetch(place, stored.files())
    assert f"{place}: {name} is damaged; removed, the run is trained again" in capsys.readouterr().err
    assert not place.exists()
    assert contents(stored.files()) == before


def test_run_with_a_damaged_entry_is_trained_again(stored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place, trained = entry(stored), stored.outs()
    (place / "log.jsonl").write_bytes(b"")
    shutil.rmtree(stored.files().folder)
    stored.train(retrain=False)
    assert "log.jsonl is damaged" in capsys.readouterr().err
    assert stored.outs() == trained
    assert is_stored(place)
    assert contents(RunFiles(place)) == contents(stored.files())


def test_killed_copy_is_no_entry(stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    copy, place = shutil.copyfile, STORE / "scenes-smoke-full-0-copy"

    def copy_first(source: Path, target: Path) -> None:
        if source.name != "weights.safetensors":
            raise Killed
        copy(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("wimfris.runs.store.shutil.copyfile", copy_first)
        with pytest.raises(Killed):
            keep(stored.files(), place)
    assert not is_stored(place)
    keep(stored.files(), place)
    assert contents(RunFiles(place)) == contents(stored.files())
    assert not list(STORE.glob(".*")), "the rest of the killed copy is gone"


def test_prune_removes_only_stale_entries_of_the_prefix(stored: Any) -> None:
    current = entry(stored)
    stale, other = STORE / "scenes-smoke-full-0-stale", STORE / "scenes-tiny-full-0-stale"
    for place in (stale, other):
        keep(stored.files(), place)
    assert prune("scenes-smoke-", {current}) == [stale]
    assert sorted(STORE.iterdir()) == sorted([current, other])


def test_train_verb_takes_a_stored_run(stored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = contents(stored.files())
    shutil.rmtree(stored.files().folder)
    train("full-0")
    assert capsys.readouterr().out.startswith("full-0: taken from the store of finished runs (")
    assert contents(stored.files()) == trained


def test_train_verb_takes_a_stored_run_without_torch(stored: Any) -> None:
    """Importing torch takes seconds, for every run that `dvc repro` records."""
    shutil.rmtree(stored.files().folder)
    code = "import sys; from wimfris.cli.training import train; train('full-0'); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr or "torch was imported"
    assert stored.files().manifest.is_file()
