"""A run that is interrupted, killed or started twice leaves the same bits as an uninterrupted one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from wimfris.errors import UserError
from wimfris.runs.manifest import read_manifest
from wimfris.runs.store import CHECKPOINTS
from wimfris.training.checkpoint import Checkpoint, CheckpointFolder
from wimfris.training.run import train_run

pytestmark = pytest.mark.slow

EVERY_STEP = 1e-9  # seconds between checkpoints
STEPS = 15  # of the whole run: 3 epochs of 5 steps
LOCK = CHECKPOINTS / "scenes-smoke-full-0.lock"
PATIENCE = 600  # seconds after which a process counts as hung


def checkpoints() -> list[Path]:
    return [path for path in CHECKPOINTS.glob("scenes-smoke-*/*") if path.is_dir()]


# --- interrupted in this process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 6, 8], ids=lambda step: f"in step {step}")
def test_resumed_run_equals_uninterrupted(step: int, project: Any, expected: dict[str, bytes], steps: Any) -> None:
    """The interruptions are within epochs, in the first step of one and in the last step of one."""
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    steps.stop(step, project)
    assert [path.name for path in checkpoints()] == [f"{step - 1:09d}"], "only the newest checkpoint stays"
    assert not project.files().folder.exists()
    torch.manual_seed(1234)  # the random state of the resuming process must not matter
    project.train()
    assert steps.count == STEPS - (step - 1)
    assert project.outs() == expected
    assert read_manifest(project.files().manifest)["resumed"] == 1
    assert not checkpoints()


def test_run_interrupted_in_every_third_step(project: Any, expected: dict[str, bytes], steps: Any) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    for _ in range(7):
        steps.stop(3, project)
    steps.interrupt(3)
    project.train()
    assert project.outs() == expected


def test_steps_after_the_last_checkpoint_are_repeated(
    project: Any, expected: dict[str, bytes], steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    save = CheckpointFolder.save

    def save_first_four(self: CheckpointFolder, step: int, checkpoint: Checkpoint) -> None:
        if step <= 4:
            save(self, step, checkpoint)

    monkeypatch.setattr(CheckpointFolder, "save", save_first_four)
    steps.stop(12, project)
    monkeypatch.setattr(CheckpointFolder, "save", save)
    project.train()
    assert steps.count == STEPS - 4
    assert project.outs() == expected, "the log holds no step twice"


@pytest.mark.parametrize("writer", ["save_weights", "write_records", "write_log", "write_text", "write_manifest"])
def test_killed_between_its_files(
    writer: str, project: Any, expected: dict[str, bytes], steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise steps.Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(f"wimfris.training.run.{writer}", fail)
        with pytest.raises(steps.Interrupted):
            project.train()
    assert [path.name for path in checkpoints()] == [f"{STEPS:09d}"]
    steps.interrupt(1)  # no step is left to train
    project.train()
    assert project.outs() == expected


def test_killed_before_it_is_stored(project: Any, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc repro` removes the files of a stage that failed, and starts it again."""

    class Killed(Exception):
        pass

    def fail(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("wimfris.training.run.keep", fail)
        with pytest.raises(Killed):
            project.train(retrain=False)
    shutil.rmtree(project.files().folder)
    project.train(retrain=False)
    assert project.outs() == expected


def test_partial_checkpoint_is_ignored(project: Any, expected: dict[str, bytes], steps: Any) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    steps.stop(7, project)
    (checkpoint,) = checkpoints()
    partial = checkpoint.parent / "partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half of")
    project.train()
    assert steps.count == STEPS - 6
    assert project.outs() == expected


def test_half_deleted_checkpoint_is_ignored(
    project: Any, expected: dict[str, bytes], steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the checkpoints of a finished run are deleted must not harm the next start of the run."""
    delete = CheckpointFolder.delete

    def delete_half(path: Path, **options: Any) -> None:
        for file in path.rglob("weights.safetensors"):
            file.unlink()
            raise steps.Interrupted

    def interrupted(self: CheckpointFolder) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("wimfris.training.checkpoint.shutil.rmtree", delete_half)
            delete(self)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFolder, "delete", interrupted)
        with pytest.raises(steps.Interrupted):
            project.train()
    shutil.rmtree(project.files().folder)
    project.train()
    assert project.outs() == expected


def test_damaged_checkpoint_is_named(project: Any, steps: Any) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    steps.stop(7, project)
    (folder,) = checkpoints()
    message = rf"{re.escape(str(folder))}: the checkpoint is damaged \(.+\); delete the folder to train from the beg.*"
    for path in folder.iterdir():
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(UserError) as error:
                project.train()
            assert re.fullmatch(message, str(error.value))
        path.write_bytes(content)


def test_checkpoint_of_other_settings_is_ignored(project: Any, expected: dict[str, bytes], steps: Any) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP, loss__dice=0.4)
    steps.stop(7, project)
    project.edit(loss__dice=0.3)
    project.train()
    assert steps.count == STEPS
    assert project.outs() == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "schedule": {"kind": "step", "milestones": [1], "factor": 0.1}, "clip_norm": None},
        {"workers": 2},
    ],
    ids=["the paper's optimizer", "workers"],
)
def test_other_ways_to_train_resume_too(changes: dict[str, Any], project: Any, steps: Any) -> None:
    project.edit(**{f"scales__smoke__train__{key}": value for key, value in changes.items()})
    project.train()
    uninterrupted = project.outs()
    shutil.rmtree(project.files().folder)
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    steps.stop(8, project)
    project.train()
    assert project.outs() == uninterrupted


# --- killed, and two at once ------------------------------------------------------------------------------------------


def start(project: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "wimfris", "train", "--run", "full-0"],
        cwd=project.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_checkpoint(step: int, process: "subprocess.Popen[bytes]") -> None:
    """Return once a checkpoint of this step or a later one is written."""
    until = time.monotonic() + PATIENCE
    while not any(path.name.isdigit() and int(path.name) >= step for path in checkpoints()):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until, "the process hangs"
        time.sleep(0.01)


def test_killed_process_resumes_to_the_same_bits(project: Any, forget: Any) -> None:
    """The process is killed twice with SIGKILL, within epochs."""
    project.edit(scales__smoke__train__epochs=12, scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    project.train()
    uninterrupted = project.outs()
    forget(project.files())
    for step in (8, 27):
        process = start(project)
        wait_for_checkpoint(step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not project.files().folder.exists()
    project.train(retrain=False)
    assert project.outs() == uninterrupted
    assert read_manifest(project.files().manifest)["resumed"] == 2


@pytest.fixture
def contend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[float | None]]:
    """contend(train): another trainer holds the lock; while this one waits for it, `train` runs. Return the timeouts of
    all attempts at the lock.
    """
    acquire = FileLock.acquire

    def arm(train: Callable[[], None]) -> list[float | None]:
        timeouts: list[float | None] = []

        def contested(self: FileLock, timeout: float | None = None, **options: Any) -> Any:
            timeouts.append(timeout)
            if len(timeouts) == 1:
                raise Timeout(self.lock_file)
            if len(timeouts) == 2:  # the other trainer ends
                train()
            return acquire(self, timeout, **options)

        monkeypatch.setattr(FileLock, "acquire", contested)
        return timeouts

    return arm


def test_waiting_trainer_takes_the_result_from_the_store(
    project: Any, expected: dict[str, bytes], steps: Any, contend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = project.params().settings()
    timeouts = contend(lambda: train_run(settings, 0))
    project.train(retrain=False)
    assert timeouts == [0, None, 0], "this trainer tries, then waits; the other one takes the lock at once"
    assert "full-0: another process is training this run; waiting for it" in capsys.readouterr().err
    assert steps.count == STEPS, "the run is trained once"
    assert project.outs() == expected


def test_waiting_trainer_refuses_the_result_of_other_settings(
    project: Any, expected: dict[str, bytes], steps: Any, contend: Any
) -> None:
    """A killed `dvc repro` leaves its trainer running. Meanwhile the user edits params.yaml and starts `dvc repro`."""
    project.edit(loss__dice=0.4)
    settings_before = project.params().settings()
    project.edit(loss__dice=0.3)
    contend(lambda: train_run(settings_before, 0))
    project.train(retrain=False)
    assert steps.count == 2 * STEPS
    assert project.outs() == expected
