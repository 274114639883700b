"""One run from settings to the files it leaves: assemble, train, evaluate, write."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from wimfris.data.index import TUNE, read_index, with_tuning_split
from wimfris.data.objects import read_objects
from wimfris.data.source import source_images
from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.metrics import summarise, summarise_generalised
from wimfris.model.scan import choose_backend
from wimfris.model.segmenter import Segmenter
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.log import write_epochs, write_log
from wimfris.runs.manifest import write_manifest
from wimfris.runs.masks import masks_of, write_masks
from wimfris.runs.records import write_records
from wimfris.runs.store import CHECKPOINTS, fetch, keep, run_entry
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.training.batches import TrainBatches, check_shared_memory
from wimfris.training.build import build_device, build_loss, build_segmenter
from wimfris.training.checkpoint import CheckpointFolder, save_weights
from wimfris.training.compilation import compile_segmenter
from wimfris.training.determinism import be_deterministic
from wimfris.training.distributed import Processes, processes
from wimfris.training.evaluate import Evaluator
from wimfris.training.memory import fitting
from wimfris.training.progress import make_progress
from wimfris.training.trainer import AfterEpoch, Trainer

RANK_SEEDS = 1_000_003  # between the random states of the processes of one run


def train_run(settings: Settings, seed: int, *, retrain: bool = False) -> None:
    """Train and evaluate one run, keep it in the store of finished runs, and write its files.

    A run that the store holds already is copied from there, unless `retrain`. Under `torchrun` the processes share the
    work. A second trainer of the same run waits for the first one and takes its result.
    """
    run, files = Run(settings.variant, seed), RunFiles(settings.outs / f"{settings.variant}-{seed}")
    with processes(settings.train.device) as group, _alone(settings, run, group):
        content = decisive(settings, seed)
        entry = run_entry(settings.folder.name, str(run), digest(content))
        if group.share(not retrain and group.leads and fetch(entry, files)):
            return
        checkpoints = _train(settings, run, content, files.folder, group, None)
        if group.leads:
            keep(files, entry)
            checkpoints.delete()


def train_into(settings: Settings, seed: int, folder: Path, after_epoch: AfterEpoch | None = None) -> None:
    """Train and evaluate one run and write its files into `folder`, without the store of finished runs.

    What `after_epoch` raises ends the run without files.
    """
    run = Run(settings.variant, seed)
    with processes(settings.train.device) as group, _alone(settings, run, group):
        checkpoints = _train(settings, run, decisive(settings, seed), folder, group, after_epoch)
        if group.leads:
            checkpoints.delete()


@contextmanager
def _alone(settings: Settings, run: Run, group: Processes) -> Iterator[None]:
    """Hold the lock of a run. Of several processes only the leader does, and it does not wait for another trainer."""
    if not group.leads:
        yield
        return
    path = CHECKPOINTS / f"{settings.folder.name}-{run}.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if group.size > 1:
            raise UserError(f"{run}: another process is training this run; wait for its end, or stop it") from None
        print(f"{run}: another process is training this run; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train(
    settings: Settings,
    run: Run,
    content: dict[str, Any],
    folder: Path,
    group: Processes,
    after_epoch: AfterEpoch | None,
) -> CheckpointFolder:
    """Train and write the run's files. Return its checkpoints, which the caller deletes once the files are safe."""
    key = digest(content)
    checkpoints = CheckpointFolder(CHECKPOINTS, f"{settings.folder.name}-{run}", key)
    trainer, compiled = assemble_trainer(settings, run, checkpoints, group, after_epoch)
    _check_encoders(settings, trainer.segmenter, trainer.evaluator.tokenizer, content["encoders"])
    scan = choose_backend(settings.model.scan, trainer.device.type)
    if group.leads and trainer.device.type == "cuda":
        print(f"{run}: scan by {scan.backend} ({scan.reason})", file=sys.stderr)
    with make_progress(group) as progress:
        with fitting(settings, training=True):
            trainer.fit(progress)
        trainer.segmenter.load_trained(trainer.best_weights)
        started = time.monotonic()
        bar = progress.add_task(f"{run} evaluation", total=trainer.evaluator.report_cases())
        records = trainer.evaluator.report(trainer.segmenter, str(run), run.seed, lambda: progress.advance(bar))
    if not group.leads:
        return checkpoints
    files = RunFiles(folder)
    names = {"run": str(run), "variant": run.variant, "scale": settings.scale}
    hashes = {f"{name}_encoder": encoder["sha256"] for name, encoder in content["encoders"].items()}
    save_weights(trainer.best_weights, names | hashes, files.weights)
    write_records(records.drop(columns="mask"), files.records)
    write_masks(masks_of(records, settings.data.splits[0], settings.evaluate.control_images), files.masks)
    write_log(trainer.log, files.log)
    write_epochs(trainer.log, files.epochs)
    write_text(files.metrics, json.dumps(_metrics(records), indent=2) + "\n")
    write_manifest(
        files.manifest,
        run=str(run),
        key=key,
        content=content,
        settings=settings.model_dump(mode="json"),
        device=trainer.device,
        processes=group.size,
        seconds=trainer.seconds + time.monotonic() - started,
        resumed=trainer.resumed,
        best_epoch=trainer.best_epoch,
        trained_parameters=sum(parameter.numel() for parameter in trainer.parameters),
        scan=scan.backend,
        scan_reason=scan.reason,
        compiled=compiled,
    )
    return checkpoints


def assemble_trainer(
    settings: Settings,
    run: Run,
    checkpoints: CheckpointFolder,
    group: Processes,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Trainer, bool]:
    """Build the parts of a run's training, and return the trainer and whether the model is compiled.

    The seed decides the initial weights, so parts that draw random numbers are built in a fixed order.
    """
    train = settings.train
    if train.compile and group.size > 1:
        raise UserError("train.compile works in one process only; set it to false under torchrun")
    device, images = build_device(settings), source_images(settings)
    check_shared_memory(settings)
    be_deterministic(settings)
    torch.manual_seed(run.seed)
    index = read_index(settings.folder / "index" / "index.parquet")
    if TUNE in settings.data.splits:
        index = with_tuning_split(index)
    tokenizer = load_tokenizer(settings)
    segmenter = build_segmenter(settings, tokenizer).to(device)
    compiled = train.compile and compile_segmenter(segmenter, settings, device)
    model = group.wrap(segmenter)
    if not group.leads:  # every process has the same weights, but its own dropout
        torch.manual_seed(run.seed + RANK_SEEDS * group.rank)
    objects = read_objects(settings.folder / "index")
    evaluator = Evaluator(settings, index, images, tokenizer, device, group, objects, keep_masks=True)
    trainer = Trainer(
        settings,
        run,
        segmenter=segmenter,
        model=model,
        loss=build_loss(settings),
        batches=TrainBatches(settings, evaluator.split("train"), images, tokenizer, run.seed, device, group),
        evaluator=evaluator,
        checkpoints=checkpoints,
        after_epoch=after_epoch,
    )
    return trainer, compiled


def _check_encoders(
    settings: Settings, segmenter: Segmenter, tokenizer: Tokenizer, expected: dict[str, dict[str, Any]]
) -> None:
    encoders = segmenter.encoders.items()
    parts: list[tuple[str, str, str | None, str | None]]
    parts = [(name, "encoder", expected[name]["sha256"], sha256) for name, sha256 in encoders]
    parts.append(("text", "tokenizer", expected["text"].get("tokenizer_sha256"), tokenizer.sha256))
    for name, what, before, now in parts:
        if now != before:
            raise UserError(
                f"encoders.{name}: {expected[name]['source']} has not the {what} that {settings.encoders_record} "
                f"records; run `{settings.record_command}`"
            )


def _metrics(records: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return split -> condition -> mIoU, oIoU, Pr@0.5 to 0.9, and gRefCOCO's where sentences name nothing."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for (split, condition), part in records.groupby(["split", "condition"], sort=False):
        scores = summarise(part["intersection"].to_numpy(), part["union"].to_numpy())
        # Some sentences name nothing. Under protocol lavt the scored size is not that of `target_area`.
        if not (part["target_area"] > 0).all() and "lavt" not in set(part["protocol"]):
            areas = (part[name].to_numpy() for name in ("intersection", "union", "target_area"))
            scores |= {name: value for name, value in summarise_generalised(*areas).items() if np.isfinite(value)}
        metrics.setdefault(str(split), {})[str(condition)] = scores
    return metrics
