"""The pipeline by real DVC, at scale smoke. `make test-slow` runs this file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long
RUNS = ("full-0", "none-0")
Shell = Callable[..., str]


def outs(folder: Path) -> dict[str, bytes]:
    """The files of all runs, without manifests, which hold times."""
    core = folder / "runs" / "scenes-smoke" / "core"
    return {
        str(path.relative_to(core)): path.read_bytes()
        for path in core.rglob("*.*")
        if path.name != "manifest.json" and path.name != ".gitignore"
    }


def records(folder: Path) -> dict[str, bytes]:
    """The evidence that holds no times."""
    parent = folder / "reports" / "records"
    paths = [parent / "scenes-smoke.parquet", *(parent / "scenes-smoke-metrics").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def sequential(clone: Callable[..., Path], done: Shell) -> Path:
    """A clone after `dvc repro evidence`, one run after the other; only to be read."""
    folder = clone()
    done(folder, "dvc", "repro", "evidence")
    return folder


def test_matrix_then_repro_leaves_what_repro_leaves(clone: Callable[..., Path], sequential: Path, done: Shell) -> None:
    folder = clone()
    done(folder, "wimfris", "matrix", "--jobs", "2")
    output = done(folder, "dvc", "repro", "evidence", WIMFRIS_NO_TRAINING="1")
    assert output.count("taken from the store of finished runs") == len(RUNS)
    assert outs(folder) == outs(sequential) and records(folder) == records(sequential)
    assert "up to date" in done(folder, "dvc", "repro", "evidence")
    assert "all are trained" in done(folder, "wimfris", "matrix")


def test_what_an_edit_reruns(sequential: Path, tmp_path: Path, done: Shell) -> None:
    folder = tmp_path / "wimfris"
    shutil.copytree(sequential, folder, symlinks=True)
    trainer = folder / "wimfris" / "training" / "trainer.py"
    trainer.write_text("# a comment\n" + trainer.read_text())
    output = done(folder, "dvc", "repro", "evidence", WIMFRIS_NO_TRAINING="1")
    assert "Running stage 'code'" in output and "Running stage 'train" not in output
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content["variants"]["none"]["loss"] = {"dice": 0.4}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    output = done(folder, "dvc", "status", "train@full-0", "train@none-0")
    done(folder, "dvc", "repro", "code")
    output = done(folder, "dvc", "status")
    assert "train@none-0" in output and "train@full-0" not in output


def test_machines_that_share_a_remote_alone(
    clone: Callable[..., Path], sequential: Path, tmp_path: Path, done: Shell
) -> None:
    """Two workers train one run each; the head gets both without training, and is clean then."""
    remote = tmp_path / "remote"
    worker, other, head = clone(), clone(), clone()
    for folder in (worker, other, head):
        done(folder, "dvc", "remote", "add", "--default", "shared", str(remote))
    for folder, run in ((worker, "full-0"), (other, "none-0")):
        done(folder, "dvc", "repro", "--pull", "data", "prepare", "encoders", "code")
        done(folder, "dvc", "repro", "--pull", "--single-item", f"train@{run}")
        done(folder, "dvc", "push", "--run-cache")
    done(head, "dvc", "fetch", "--run-cache")
    done(head, "dvc", "repro", "--pull", "evidence", WIMFRIS_NO_TRAINING="1")
    assert not (head / ".checkpoints" / "done").exists(), "nothing was trained or fetched from a store here"
    assert outs(head) == outs(sequential) and records(head) == records(sequential)
    status = json.loads(done(head, "dvc", "status", "--json", "train@full-0", "train@none-0", "evidence"))
    assert status == {}


def test_every_run_of_a_root_repro_is_of_the_core(sequential: Path) -> None:
    runs = {path.name for path in (sequential / "runs" / "scenes-smoke" / "core").iterdir() if path.is_dir()}
    assert runs == set(RUNS)
    assert not (sequential / "runs" / "scenes-smoke" / "extended").exists()
