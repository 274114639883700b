"""A worker process of a search: `python -m wimfris.search.trial FOLDER` trains one run.

FOLDER holds job.json, which the search writes. After every epoch the worker writes progress.json there, atomically, so
that a search which is killed and continued has the scores of all epochs. Exit codes: 0, the run is complete; 2, it
failed, and the last line of stderr gives the reason; 3, it is refused, because its step takes too long.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.measure.timing import latency
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.manifest import is_finished
from wimfris.runs.store import CHECKPOINTS
from wimfris.search.limits import Limits, relative_step
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.training.checkpoint import CheckpointFolder
from wimfris.training.run import train_into

FAILED, REFUSED = 2, 3
REPETITIONS = 30  # of a forward pass, to measure its latency


def main(folder: Path) -> int:
    """Train the run of a job; return the exit code."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _exit_with(job["parent"])
    try:
        return _train(Settings.model_validate(job["settings"]), job, folder)
    except UserError as error:
        reason = str(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"out of memory: {str(error).partition(chr(10))[0].partition('. ')[0]}"
    print(f"wimfris: {reason}", file=sys.stderr)
    return FAILED


def read_progress(folder: Path) -> dict[str, Any]:
    """Return a worker's progress: "epochs", epoch -> mIoU on val; "latency_ms" and "time_ratio" once measured."""
    path = folder / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"epochs": {}}


def delete_checkpoints(settings: Settings, seed: int) -> None:
    """Delete the checkpoints of a run that will not be continued."""
    key = digest(decisive(settings, seed))
    CheckpointFolder(CHECKPOINTS, f"{settings.folder.name}-{Run(settings.variant, seed)}", key).delete()


def _train(settings: Settings, job: dict[str, Any], folder: Path) -> int:
    """Train the run within its limits, and measure what the job asks for. Return the exit code."""
    progress = read_progress(folder)

    def save() -> None:
        write_text(folder / "progress.json", json.dumps(progress))

    def after_epoch(epoch: int, score: float) -> None:
        progress["epochs"][str(epoch)] = score
        save()

    if job["limits"] is not None:
        if "time_ratio" not in progress:
            reference = Settings.model_validate(job["reference"])
            progress["time_ratio"] = round(relative_step(settings, reference), 3)
            save()
        if Limits.model_validate(job["limits"]).on_time(progress["time_ratio"]):
            return REFUSED
    files = RunFiles(settings.outs / str(Run(settings.variant, job["seed"])))
    if not is_finished(files, digest(decisive(settings, job["seed"]))):
        train_into(settings, job["seed"], files.folder, after_epoch)
    if job["latency"] and "latency_ms" not in progress:
        progress["latency_ms"] = 1000 * latency(settings, REPETITIONS)
        save()
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _exit_with(parent: int) -> None:
    """End this process when its search, which may be killed, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
