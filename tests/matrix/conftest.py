"""A small project with a stand-in for the trainer."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wimfris.matrix import local
from wimfris.settings.run import Run

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_trainer.py")
RUNS = [Run(variant, seed) for variant in ("full", "none") for seed in (0, 1)]


class Matrix:
    """The project folder and what its runs left."""

    runs = RUNS

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, seconds: float) -> None:
        """Set how long a run takes."""
        (self.folder / "seconds").write_text(str(seconds))

    def trained(self, word: str) -> list[str]:
        """Return the runs that began or ended, in order."""
        path = self.folder / "trained"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == word]

    def process_of(self, run: str, attempt: int = 1) -> int:
        """Wait until a run has begun for the n-th time, and return its process."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            path = self.folder / "trained"
            begun = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
            pids = [int(pid) for word, name, pid in begun if (word, name) == ("begin", run)]
            if len(pids) >= attempt:
                return pids[attempt - 1]
            time.sleep(0.05)
        raise AssertionError(f"{run} did not begin")

    def start(self, jobs: int, *runs: Any, launcher: str = "local") -> "subprocess.Popen[str]":
        """Start the matrix as a process of its own."""
        return subprocess.Popen(
            [sys.executable, FAKE, launcher, str(jobs), *map(str, runs)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def limit(project: Any) -> None:
    """Leave two variants of the core and one beyond it."""
    content = project.params()
    variants = {name: content.variants[name] for name in ("full", "none")}
    extended = {"gate_none": content.extended["gate_none"]}
    project.edit(variants=variants, extended=extended, controls={}, seeds=[0, 1], extended_seeds=[0])


@pytest.fixture
def matrix(project: Any, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """The prepared smoke project with two variants and two seeds, whose trainer is the stand-in."""
    limit(project)
    monkeypatch.setattr(local, "WIMFRIS", (sys.executable, str(FAKE)))
    monkeypatch.setattr(local, "prepare", lambda params, stop, variants: None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Matrix(project.folder)
    made.take(0)
    return made
