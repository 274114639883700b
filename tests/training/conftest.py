"""What the tests of training share: the files of an uninterrupted run, and training steps that can be interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wimfris.model.loss import SegmentationLoss
from wimfris.runs.files import RunFiles
from wimfris.runs.store import STORE


class Interrupted(Exception):
    """Stands for a kill, in this process."""


class Steps:
    """The training steps of this process: counts them, and interrupts one before it changes a weight."""

    Interrupted = Interrupted

    def __init__(self) -> None:
        self.count, self.last = 0, 0

    def interrupt(self, step: int) -> None:
        """Count from 0 again, and interrupt the step of this number, from 1; 0 interrupts none."""
        self.count, self.last = 0, step

    def stop(self, step: int, project: Any) -> None:
        """Train run full-0 until the step of this number, from 1; later trainings go on to their end."""
        self.interrupt(step)
        with pytest.raises(Interrupted):
            project.train()
        self.interrupt(0)

    def begin(self) -> None:
        """Count one step."""
        self.count += 1
        if self.count == self.last:
            raise Interrupted


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Return the training steps of this process. Training steps alone compute the loss; evaluation does not."""
    steps, compute = Steps(), SegmentationLoss.__call__

    def counted(self: SegmentationLoss, *arguments: Any) -> Any:
        steps.begin()
        return compute(self, *arguments)

    monkeypatch.setattr(SegmentationLoss, "__call__", counted)
    return steps


@pytest.fixture(scope="session")
def expected(trained_folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of the uninterrupted run full-0, by name; without the manifest."""
    files = RunFiles(trained_folder / "runs" / "scenes-smoke" / "core" / "full-0")
    return {path.name: path.read_bytes() for path in files.all if path != files.manifest}


@pytest.fixture
def forget() -> Callable[[RunFiles], None]:
    """forget(files): delete the files of a run and the store of finished runs, so that the run is trained again."""

    def delete(files: RunFiles) -> None:
        shutil.rmtree(files.folder)
        shutil.rmtree(STORE)

    return delete
