"""Training of one run: a variant and a seed. Killed at any moment and started again, it ends with the same bits."""

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wimfris.data.dataset import Case, ReferDataset, epoch_cases, to_device
from wimfris.data.index import read_index
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.files import file_hash, write_text
from wimfris.metrics import summarise
from wimfris.model.loss import Losses
from wimfris.model.scan import choose_backend
from wimfris.model.segmenter import Segmenter
from wimfris.runs.manifest import code_revision, write_manifest
from wimfris.runs.records import write_records
from wimfris.settings.params import CosineSchedule, Settings, Train
from wimfris.training.build import build_device, build_loss, build_segmenter
from wimfris.training.checkpoint import CHECKPOINTS, Checkpoint, CheckpointFolder, code_hash, fingerprint, save_weights
from wimfris.training.compilation import compile_segmenter
from wimfris.training.distributed import Processes, processes
from wimfris.training.evaluate import Evaluator, precision_context

LOG_EVERY = 10  # steps between lines of the log
RANK_SEEDS = 1_000_003  # between the random states of the processes of one run
AfterEpoch = Callable[[int, float], None]
"""Told of each epoch once it has been evaluated: its number from 1, and mIoU over all validation sentences."""
CODE = ["data", "encoders", "kernels", "metrics.py", "model", "rivals", "settings", "training"]


@dataclass(frozen=True)
class RunFiles:
    """Where a run's outs go. Weights and records are cached by DVC; metrics and manifest are small and committed."""

    weights: Path
    records: Path
    log: Path
    live: Path
    metrics: Path
    manifest: Path

    @classmethod
    def of(cls, folder: Path, run: str) -> "RunFiles":
        return cls(
            folder / "weights" / f"{run}.safetensors",
            folder / "records" / f"{run}.parquet",
            folder / "logs" / f"{run}.jsonl",
            folder / "live" / run,
            folder / "metrics" / f"{run}.json",
            folder / "manifests" / f"{run}.json",
        )

    def made_by(self, key: str) -> bool:
        """Whether every out is there, and of the run with this fingerprint."""
        complete = all(path.exists() for path in vars(self).values())
        return complete and json.loads(self.manifest.read_text())["fingerprint"] == key


def learning_rate_factor(train: Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0) as a share of `train.learning_rate`."""
    schedule = train.schedule
    if isinstance(schedule, CosineSchedule):
        total = train.epochs * steps_per_epoch
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - schedule.warmup) / max(total - schedule.warmup, 1))
    return schedule.factor ** sum(step // steps_per_epoch >= epoch for epoch in schedule.milestones)


class Trainer:
    """The state of a run and the loop over it. Everything that changes from step to step is in a `Checkpoint`."""

    def __init__(
        self,
        settings: Settings,
        seed: int,
        run: str,
        images: Path,
        checkpoints: CheckpointFolder,
        live: Path,
        group: Processes,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        train = settings.train
        group.check_batch(train.batch_size)
        if train.compile and group.size > 1:
            raise UserError("train.compile: one process only; set it to false under torchrun")
        self.group, self.after_epoch = group, after_epoch
        self.settings, self.seed, self.run, self.images = settings, seed, run, images
        self.checkpoints = checkpoints
        self.device = build_device(settings)
        _be_deterministic(train.threads)
        torch.manual_seed(seed)
        self.index = read_index(settings.folder / "index" / "index.parquet")
        self.tokenizer = load_tokenizer(settings)
        self.segmenter = build_segmenter(settings, self.tokenizer).to(self.device)
        self.compiled = train.compile and compile_segmenter(self.segmenter, settings, self.device)
        self.model = group.wrap(self.segmenter)
        if not group.leads:  # the same weights everywhere, but dropout of its own
            torch.manual_seed(seed + RANK_SEEDS * group.rank)
        self.loss = build_loss(settings)
        self.evaluator = Evaluator(settings, self.index, images, self.tokenizer, self.device, group)
        self.parameters = [p for p in self.segmenter.parameters() if p.requires_grad]
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
        self.optimizer = optimizer(self._groups(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.rows = self.evaluator.split("train")
        self.steps_per_epoch = train.steps(len(self.rows))
        if self.steps_per_epoch == 0:
            raise UserError(f"train.batch_size: {train.batch_size} is more than the train split has ({len(self.rows)})")
        self.step, self.resumed, self.seconds = 0, 0, 0.0
        self.best_epoch, self.best_score = 0, -1.0
        self.best_weights: dict[str, Tensor] = self.segmenter.trained_state()
        self.log: list[dict[str, Any]] = []
        self.live = _Live(live if group.leads else None)
        self._restore()

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's: all that is trained; where the backbones learn slower, what is inside them apart."""
        factor = self.settings.train.backbone_factor
        if factor == 1.0:
            return [{"params": self.parameters, "factor": 1.0}]
        encoders = self.segmenter.text, self.segmenter.vision
        inside = {id(parameter) for encoder in encoders for parameter in encoder.backbone.parameters()}
        return [
            {"params": [p for p in self.parameters if id(p) not in inside], "factor": 1.0},
            {"params": [p for p in self.parameters if id(p) in inside], "factor": factor},
        ]

    @property
    def total_steps(self) -> int:
        return self.settings.train.epochs * self.steps_per_epoch

    def fit(self, progress: Progress) -> None:
        """Train to the last epoch; the best epoch by mIoU over all validation sentences is kept."""
        bar = progress.add_task(self.run, total=self.total_steps, completed=self.step)
        started = saved = time.monotonic()
        before = self.seconds
        self.segmenter.train()
        while self.step < self.total_steps:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            for batch, cases in self._batches(epoch, position):
                losses = self._train_step(batch, cases)
                self.step += 1
                progress.advance(bar)
                if self.step % LOG_EVERY == 0 or self.step == 1:
                    self._log("step", epoch, losses)
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch(epoch, losses, progress)
                self.seconds = before + time.monotonic() - started
                if self._is_due(saved):
                    self._save()
                    saved = time.monotonic()

    def _is_due(self, saved: float) -> bool:
        """Whether a checkpoint is to be written, the last at that time; of several processes the leader decides it, but
        not at every step, since the others wait for it.
        """
        if self.step == self.total_steps:
            return True
        if self.group.size > 1 and self.step % LOG_EVERY:
            return False
        return self.group.share(time.monotonic() - saved > self.settings.train.checkpoint_seconds)

    def _batches(self, epoch: int, position: int) -> Any:
        """The batches of an epoch from that position on, this process's part, with their cases: seed and epoch alone
        decide them.
        """
        size = self.settings.train.batch_size
        cases = epoch_cases(self.rows, self.seed, epoch)[: self.steps_per_epoch * size]
        dataset = ReferDataset(
            self.rows, cases, self.images, self.tokenizer, self.settings.data.image_size, with_mask=True
        )
        numbers = [self.group.part(range(k * size, (k + 1) * size)) for k in range(position, self.steps_per_epoch)]
        workers = self.settings.train.workers
        # a generator of its own: the loader draws from it, and torch's global one must not depend on where a run was
        # resumed
        pinned, own = self.device.type == "cuda", torch.Generator()
        loader = DataLoader(dataset, batch_sampler=numbers, num_workers=workers, pin_memory=pinned, generator=own)
        for batch, chosen in zip(loader, numbers, strict=True):
            yield to_device(batch, self.device), [cases[k] for k in chosen]

    def _train_step(self, batch: dict[str, Tensor], cases: list[Case]) -> Losses:
        train = self.settings.train
        rate = train.learning_rate * learning_rate_factor(train, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * rate
        with precision_context(train.precision, self.device):
            output = self.model(batch["image"], batch["token_ids"])
        losses = self.loss(output, batch["mask"])
        if not torch.isfinite(losses.total):
            ids = ", ".join(str(self.rows["ref_id"].iloc[case.row]) for case in cases)
            raise UserError(
                f"run {self.run}: the loss is {losses.total.item()} at step {self.step + 1}, batch of ref_ids {ids}; "
                "lower train.learning_rate"
            )
        self.optimizer.zero_grad()
        self.scaler.scale(losses.total).backward()
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def _end_epoch(self, epoch: int, losses: Losses, progress: Progress) -> None:
        bar = progress.add_task(f"{self.run} validation", total=self.evaluator.cases(["val"], ["sentence"]))
        score = self.evaluator.score(self.segmenter, "val", lambda: progress.advance(bar))
        progress.remove_task(bar)
        if score["miou"] > self.best_score:
            self.best_epoch, self.best_score = epoch + 1, score["miou"]
            self.best_weights = {name: value.detach().clone() for name, value in self.segmenter.trained_state().items()}
        extra = {f"val_{name}": value for name, value in score.items() if name != "n"}
        event = self._log(
            "epoch", epoch, losses, extra | {"emphasis": {str(k): v for k, v in self.segmenter.emphasis().items()}}
        )
        self.live.write([event])
        progress.console.print(
            f"{self.run} epoch {epoch + 1}/{self.settings.train.epochs}: loss {event['loss']:.3f}, "
            f"val mIoU {score['miou']:.3f}, oIoU {score['oiou']:.3f}"
        )
        if self.after_epoch is not None:
            self.after_epoch(epoch + 1, score["miou"])

    def _log(self, event: str, epoch: int, losses: Losses, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        terms = self.group.mean(torch.stack([losses.total, losses.contrast, losses.dice, losses.align]).detach())
        line = {
            "event": event,
            "epoch": epoch + 1,
            "step": self.step,
            **dict(zip(("loss", "contrast", "dice", "align"), terms.tolist(), strict=True)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **(extra or {}),
        }
        self.log.append(line)
        return line

    def _save(self) -> None:
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "log": self.log,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.group.gather(self._random_state()),
        }
        if self.group.leads:
            self.checkpoints.save(self.step, Checkpoint(self.segmenter.trained_state(), self.best_weights, training))

    def _random_state(self) -> list[Tensor]:
        """Of this process: torch's, and that of its GPU."""
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.device.type == "cuda" else [])]

    def _restore(self) -> None:
        checkpoint = self.group.share(self.checkpoints.load() if self.group.leads else None)
        if checkpoint is None:
            return
        training = checkpoint.training
        if len(training["random"]) != self.group.size:
            raise UserError(
                f"{self.checkpoints.folder}: a checkpoint of {len(training['random'])} processes, and these are "
                f"{self.group.size}; go on with as many, or delete it to start anew"
            )
        self.segmenter.load_trained(checkpoint.weights)
        self.best_weights = checkpoint.best_weights
        self.step, self.seconds, self.resumed = training["step"], training["seconds"], training["resumed"] + 1
        self.best_epoch, self.best_score, self.log = training["best_epoch"], training["best_score"], training["log"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        cpu, *cuda = training["random"][self.group.rank]
        torch.set_rng_state(cpu)
        for state in cuda:
            torch.cuda.set_rng_state(state)
        self.live.write([event for event in self.log if event["event"] == "epoch"])
        if self.group.leads:
            print(f"{self.run}: goes on from step {self.step} of {self.total_steps}", file=sys.stderr)


class _Live:
    """dvclive on top of the log: a view for `dvc plots` and editors, written anew when a run is resumed; nothing
    without a folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._live = None
        if folder is None:
            return
        from dvclive import Live

        folder.mkdir(parents=True, exist_ok=True)
        # dvclive cannot start in a repository without commits; its other defaults would rewrite the root's dvc.yaml and
        # save an experiment
        if code_revision()["commit"] is not None:
            self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None, resume=False)

    def write(self, epochs: list[dict[str, Any]]) -> None:
        if self._live is None:
            return
        for event in epochs:
            for name, value in event.items():
                if isinstance(value, float):
                    self._live.log_metric(name, value)
            self._live.next_step()

    def end(self) -> None:
        if self._live is not None:
            self._live.end()


def _be_deterministic(threads: int) -> None:
    torch.set_num_threads(threads)  # their number changes the order of sums, and so the last bits
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # a twentieth of a step, for memory that nobody reads
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def make_progress(group: Processes | None = None) -> Progress:
    """A progress bar with an estimate, of the leader alone; in a file it leaves its last state alone."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    followed = group is not None and not group.leads
    return Progress(*columns, console=Console(stderr=True, quiet=followed), disable=followed)


def train_run(settings: Settings, seed: int, images: Path, after_epoch: AfterEpoch | None = None) -> None:
    """Train and evaluate one run, <variant>-<seed>, and write its outs; every sentence of every evaluation split gets a
    record, controls included. Under `torchrun` its processes share the work, and the leader writes.

    A second trainer of the same run waits for the first and takes its result: killing `dvc repro` leaves its trainer
    running. What `after_epoch` raises ends the run without outs. Raises UserError where a second trainer is several
    processes.
    """
    run = f"{settings.variant}-{seed}"
    files = RunFiles.of(settings.outs, run)
    with processes(settings.train.device) as group, ExitStack() as held:
        waited = group.leads and _take_lock(settings, run, held, wait=group.size == 1)
        if waited and files.made_by(fingerprint(what_decides(settings, seed))):
            return
        _train_locked(settings, seed, run, files, images, group, after_epoch)


def _take_lock(settings: Settings, run: str, held: ExitStack, *, wait: bool) -> bool:
    """Take the run's lock until `held` is closed. Returns whether another process had it, and was waited for."""
    path = CHECKPOINTS / f"{settings.folder.name}-{run}.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    held.callback(lock.release)
    try:
        lock.acquire(timeout=0)
        return False
    except Timeout:
        if not wait:
            raise UserError(f"{run}: another process is training this run; wait for its end, or stop it") from None
        print(f"{run}: another process is training this run; waiting for it", file=sys.stderr)
        lock.acquire()
        return True


def what_decides(settings: Settings, seed: int) -> dict[str, Any]:
    """All that decides a run's result: settings, seed, and the hashes of data, code and frozen encoders."""
    return {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "data": {name: file_hash(settings.folder / "index" / f"{name}.parquet") for name in ("index", "images")},
        "code": code_hash(CODE),
        "encoders": json.loads((settings.folder / "encoders.json").read_text()),
    }


def _train_locked(
    settings: Settings,
    seed: int,
    run: str,
    files: RunFiles,
    images: Path,
    group: Processes,
    after_epoch: AfterEpoch | None,
) -> None:
    decisive = what_decides(settings, seed)
    key, encoders = fingerprint(decisive), decisive["encoders"]
    checkpoints = CheckpointFolder(CHECKPOINTS, f"{settings.folder.name}-{run}", key)
    trainer = Trainer(settings, seed, run, images, checkpoints, files.live, group, after_epoch)
    _check_encoders(trainer.segmenter, encoders)
    with make_progress(group) as progress:
        trainer.fit(progress)
        trainer.segmenter.load_trained(trainer.best_weights)
        started = time.monotonic()
        bar = progress.add_task(f"{run} evaluation", total=trainer.evaluator.cases())
        records = trainer.evaluator.report(trainer.segmenter, run, seed, lambda: progress.advance(bar))
    if not group.leads:
        return
    trainer.live.end()
    hashes = {f"{name}_encoder": told["sha256"] for name, told in encoders.items()}
    save_weights(
        trainer.best_weights,
        {"run": run, "variant": settings.variant, "scale": settings.scale, **hashes},
        files.weights,
    )
    write_records(records, files.records)
    write_text(files.log, "".join(json.dumps(line) + "\n" for line in trainer.log))
    write_text(files.metrics, json.dumps(_metrics(records), indent=2) + "\n")
    write_manifest(
        files.manifest,
        run=run,
        key=key,
        decisive=decisive,
        device=trainer.device,
        processes=group.size,
        seconds=trainer.seconds + time.monotonic() - started,
        resumed=trainer.resumed,
        best_epoch=trainer.best_epoch,
        scan=choose_backend(settings.model.scan, trainer.device.type).backend,
        compiled=trainer.compiled,
    )
    checkpoints.delete()


def _check_encoders(segmenter: Segmenter, expected: dict[str, Any]) -> None:
    for name, loaded in segmenter.encoders.items():
        if loaded != expected[name]["sha256"]:
            raise UserError(
                f"encoders.{name}: {expected[name]['source']} is not the one that stage `encoders` recorded; "
                "run `dvc repro -f encoders`"
            )


def _metrics(records: Any) -> dict[str, dict[str, dict[str, float]]]:
    """split -> condition -> mIoU, oIoU, Pr@0.5 .. 0.9."""
    told: dict[str, dict[str, dict[str, float]]] = {}
    for (split, condition), part in records.groupby(["split", "condition"], sort=False):
        told.setdefault(split, {})[condition] = summarise(part["intersection"].to_numpy(), part["union"].to_numpy())
    return told
