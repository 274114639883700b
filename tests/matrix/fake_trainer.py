"""Stands in for `wimfris train` in the tests of the matrix: the same store and lock, no training.

In the working directory the file `seconds` holds how long a run takes without a file `release`; `fail-<run>` makes one
fail. Every run leaves its lines in `trained`. Called with a number of jobs and runs, it is the matrix itself.
"""

import json
import os
import sys
import time
from pathlib import Path

from filelock import FileLock

from wimfris.matrix import local, slurm
from wimfris.matrix.board import Failure
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.store import CHECKPOINTS, fetch, keep, progress_file, run_entry
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

COMMAND = (sys.executable, __file__)


def note(word: str, name: str) -> None:
    with Path("trained").open("a") as file:
        file.write(f"{word} {name} {os.getpid()}\n")


def train(name: str) -> None:
    run = Run.parse(name)
    settings = read_params().settings_of(run)
    key = digest(decisive(settings, run.seed))
    entry, files = run_entry(settings.folder.name, name, key), RunFiles(settings.outs / name)
    with FileLock(CHECKPOINTS / f"{settings.folder.name}-{name}.lock"):
        if fetch(entry, files):
            return
        note("begin", name)
        progress = progress_file(settings.folder.name, name)
        progress.parent.mkdir(parents=True, exist_ok=True)
        until, step = time.monotonic() + float(Path("seconds").read_text()), 0
        while time.monotonic() < until and not Path("release").exists():
            step += 1
            progress.write_text(f"{min(step, 99)} 100")
            time.sleep(0.02)
        if Path(f"fail-{name}").exists():
            sys.exit(f"wimfris: no luck with {name}")
        files.folder.mkdir(parents=True, exist_ok=True)
        for path in files.all:
            path.write_text(name)
        files.manifest.write_text(json.dumps({"run": name, "fingerprint": key, "wall_seconds": 60}))
        keep(files, entry)
        note("end", name)


class StandIn(slurm.Task):
    """A task of Slurm with this trainer. Its process imports the package anew, without what is set below."""

    def __call__(self) -> Failure | None:
        local.WIMFRIS = COMMAND
        return super().__call__()


def run_matrix(jobs: int, names: list[str], options: list[str] | None) -> bool:
    """Run the matrix with this trainer; options: those of Slurm, None for the local one."""
    local.WIMFRIS = COMMAND
    local.prepare = lambda params, stop, variants: None
    slurm.POLL, slurm.GRACE, slurm.Task = 0.5, 5.0, StandIn  # type: ignore[misc]
    runs = [Run.parse(name) for name in names]
    if options is None:
        return bool(local.run_matrix(read_params(), runs, jobs))
    return bool(slurm.run_on_slurm(read_params(), runs, jobs, options))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(sys.argv[3])
    else:
        launcher, jobs, *names = sys.argv[1:]
        sys.exit(run_matrix(int(jobs), names, [] if launcher == "slurm" else None))
