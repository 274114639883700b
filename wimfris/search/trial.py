"""One trial, as a process of its own: an ordinary run that tells the study of every epoch (`python -m
wimfris.search.trial JOB`).

Exit codes: 0 done, 2 failed (the last line says why), `PRUNED`, `MEMORY` for want of memory.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import load_study
from optuna.trial import TrialState

from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.measure.timing import latency
from wimfris.search.sampler import make_pruner, make_sampler
from wimfris.search.storage import HEARTBEAT, open_storage
from wimfris.settings.schema import Settings
from wimfris.training.checkpoint import CHECKPOINTS, CheckpointFolder, fingerprint
from wimfris.training.trainer import train_run, what_decides

PRUNED, MEMORY = 64, 65
STORAGE = "WIMFRIS_SEARCH_STORAGE"  # of the environment: a URL may hold a password
REPETITIONS = 30  # of a forward pass, where latency is an objective


class _Pruned(Exception):
    pass


def main(path: Path) -> int:
    """Train the job's run; the exit code."""
    job = json.loads(path.read_text())
    settings = Settings.model_validate(job["settings"] | {"group": job["group"]})
    storage = None if job["trial"] is None else open_storage(os.environ[STORAGE])
    _watch(job["parent"], storage, job["trial"])
    try:
        _train(settings, job, storage)
    except _Pruned:
        _forget(settings, job["seed"])
        return PRUNED
    except UserError as error:
        print(f"wimfris: {error}", file=sys.stderr)
        _forget(settings, job["seed"])
        return 2
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"wimfris: out of memory: {str(error).partition('. ')[0]}", file=sys.stderr)
        return MEMORY
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no exception of its own
            raise
        print(f"wimfris: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return MEMORY
    return 0


def _train(settings: Settings, job: dict[str, Any], storage: BaseStorage | None) -> None:
    if storage is None:
        train_run(settings, job["seed"], source_images(settings))
        return
    number = job["trial"]
    pruner = make_pruner(settings.train.epochs, job["prunes"])
    study = load_study(study_name=job["study"], storage=storage, pruner=pruner, sampler=make_sampler("random", 0, 0))

    def after_epoch(epoch: int, score: float) -> None:
        pruned = False
        with suppress(Exception):  # one that was taken for dead, or whose database is away, goes on to its end
            storage.set_trial_intermediate_value(number, epoch, score)
            pruned = job["prunes"] and epoch < settings.train.epochs and pruner.prune(study, storage.get_trial(number))
        if pruned:
            raise _Pruned

    train_run(settings, job["seed"], source_images(settings), after_epoch)
    if job["latency"]:
        measured = 1000 * latency(settings, REPETITIONS)
        with suppress(Exception):  # the search asks again what it is not told
            storage.set_trial_user_attr(number, "latency_ms", measured)


def _forget(settings: Settings, seed: int) -> None:
    """Drop the checkpoints of a run that will not be gone on with."""
    key = fingerprint(what_decides(settings, seed))
    CheckpointFolder(CHECKPOINTS, f"{settings.folder.name}-{settings.variant}-{seed}", key).delete()


def _watch(parent: int, storage: BaseStorage | None, number: int | None) -> None:
    """End with the search that started this process, which may be killed; and give a database signs of life."""

    def watch() -> None:
        told = 0.0
        while os.getppid() == parent:
            if isinstance(storage, RDBStorage) and number is not None and time.monotonic() - told > HEARTBEAT:
                with suppress(Exception):  # the network may come back
                    if storage.get_trial(number).state == TrialState.RUNNING:
                        storage.record_heartbeat(number)
                told = time.monotonic()
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
