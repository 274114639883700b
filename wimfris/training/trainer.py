"""The training loop of one run. Killed at any moment and resumed, it ends with the same bits."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from wimfris.data.dataset import Case
from wimfris.errors import UserError
from wimfris.model.loss import Losses, SegmentationLoss
from wimfris.model.segmenter import Segmenter
from wimfris.runs.store import progress_file
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.settings.sections import CosineSchedule, Train
from wimfris.training.average import WeightAverage
from wimfris.training.batches import TrainBatches
from wimfris.training.checkpoint import Checkpoint, CheckpointFolder
from wimfris.training.evaluate import Evaluator, precision_context

LOG_EVERY = 10  # steps between two lines of the log
AfterEpoch = Callable[[int, float], None]
"""Called after each epoch is evaluated, with its number from 1 and the mIoU over `validation_images` of val."""


def learning_rate_factor(train: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0) as a fraction of `train.learning_rate`."""
    schedule = train.schedule
    if isinstance(schedule, CosineSchedule):
        total = train.epochs * steps_per_epoch
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - schedule.warmup) / max(total - schedule.warmup, 1))
    return schedule.factor ** sum(step // steps_per_epoch >= epoch for epoch in schedule.milestones)


def parameter_groups(segmenter: Segmenter, backbone_factor: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: the trained parameters inside the backbones apart where they learn slower."""
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    if backbone_factor == 1.0:
        return [{"params": trained, "factor": 1.0}]
    backbones = segmenter.text.backbone, segmenter.vision.backbone
    inside = {id(parameter) for backbone in backbones for parameter in backbone.parameters()}
    return [
        {"params": [p for p in trained if id(p) not in inside], "factor": 1.0},
        {"params": [p for p in trained if id(p) in inside], "factor": backbone_factor},
    ]


class Trainer:
    """The state of a run and the loop over it. All that changes from step to step is saved in a `Checkpoint`."""

    def __init__(
        self,
        settings: Settings,
        run: Run,
        *,
        segmenter: Segmenter,
        model: nn.Module,  # the segmenter, or its wrapper for several processes
        loss: SegmentationLoss,
        batches: TrainBatches,
        evaluator: Evaluator,
        checkpoints: CheckpointFolder,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        train = settings.train
        self.progress = progress_file(settings.folder.name, str(run))
        self.train, self.run, self.split = train, run, settings.data.splits[0]
        self.segmenter, self.model, self.loss = segmenter, model, loss
        self.batches, self.evaluator, self.checkpoints, self.after_epoch = batches, evaluator, checkpoints, after_epoch
        self.group, self.device = batches.group, batches.device
        self.parameters = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
        groups = parameter_groups(segmenter, train.backbone_factor)
        self.optimizer = optimizer(groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        self.average = None if train.average is None else WeightAverage(segmenter, train.average)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.step, self.resumed, self.seconds = 0, 0, 0.0
        self.best_epoch, self.best_score = 0, -1.0
        self.best_weights: dict[str, Tensor] = segmenter.trained_state()
        self.log: list[dict[str, Any]] = []
        self.unread: list[tuple[Tensor, list[Case]]] = []  # loss and batch of each step since the last check
        self._restore()

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.train.epochs * self.batches.steps_per_epoch

    def fit(self, progress: Progress) -> None:
        """Train to the last epoch and keep the weights of the best one, by mIoU over `validation_images` of val."""
        bar = progress.add_task(str(self.run), total=self.total_steps, completed=self.step)
        started = saved = time.monotonic()
        before = self.seconds
        self.segmenter.train()
        while self.step < self.total_steps:
            epoch, position = divmod(self.step, self.batches.steps_per_epoch)
            for batch, cases in self.batches.epoch(epoch, position):
                losses = self._train_step(batch, cases)
                self.step += 1
                if self.average is not None:
                    self.average.update(self.step)
                progress.advance(bar)
                if self.step % LOG_EVERY == 0 or self.step == 1:
                    self._check_losses()
                    self._log("step", epoch, losses)
                    self._write_progress()
                if self.step % self.batches.steps_per_epoch == 0:
                    self._check_losses()
                    self._end_epoch(epoch, losses, progress)
                self.seconds = before + time.monotonic() - started
                if self._checkpoint_is_due(saved):
                    self._save()
                    saved = time.monotonic()

    def _write_progress(self) -> None:
        """Say how far the run is, for whoever started it."""
        if self.group.leads:
            self.progress.parent.mkdir(parents=True, exist_ok=True)
            self.progress.write_text(f"{self.step} {self.total_steps}", encoding="utf-8")

    def _checkpoint_is_due(self, saved: float) -> bool:
        """Return whether to write a checkpoint; `saved` is the time of the last one. The leader of several processes
        decides, and only every few steps, because the others wait for its answer.
        """
        if self.step == self.total_steps:
            return True
        if self.group.size > 1 and self.step % LOG_EVERY:
            return False
        return self.group.share(time.monotonic() - saved > self.train.checkpoint_seconds)

    def _train_step(self, batch: dict[str, Tensor], cases: list[Case]) -> Losses:
        train = self.train
        rate = train.learning_rate * learning_rate_factor(train, self.step, self.batches.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * rate
        with precision_context(train.precision, self.device):
            output = self.model(batch["image"], batch["token_ids"])
        losses = self.loss(output, batch["mask"])
        self.unread.append((losses.total.detach(), cases))
        self.optimizer.zero_grad()
        self.scaler.scale(losses.total).backward()
        if train.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def _check_losses(self) -> None:
        """Raise UserError where a loss since the last check is not finite.

        Reading a loss makes the host wait for the GPU, so several are read at once.
        """
        losses = torch.stack([loss for loss, _ in self.unread]).tolist() if self.unread else []
        for number, (loss, (_, cases)) in enumerate(zip(losses, self.unread, strict=True)):
            if not math.isfinite(loss):
                ids = ", ".join(str(self.batches.rows["ref_id"].iloc[case.row]) for case in cases)
                raise UserError(
                    f"run {self.run}: the loss is {loss} at step {self.step - len(losses) + number + 1}, in the batch "
                    f"of ref_ids {ids}; lower train.learning_rate"
                )
        self.unread.clear()

    def _end_epoch(self, epoch: int, losses: Losses, progress: Progress) -> None:
        cases = self.evaluator.cases(self.split, images=self.train.validation_images)
        bar = progress.add_task(f"{self.run} validation", total=cases)
        with nullcontext() if self.average is None else self.average.in_place():
            score = self.evaluator.score(self.segmenter, self.split, lambda: progress.advance(bar))
            emphasis = {str(layer): alpha for layer, alpha in self.segmenter.emphasis().items()}
            if score["miou"] > self.best_score:
                self.best_epoch, self.best_score = epoch + 1, score["miou"]
                state = self.segmenter.trained_state()
                self.best_weights = {name: value.detach().clone() for name, value in state.items()}
        progress.remove_task(bar)
        extra: dict[str, Any] = {f"val_{name}": value for name, value in score.items() if name != "n"}
        extra |= {"emphasis": emphasis}
        event = self._log("epoch", epoch, losses, extra)
        progress.console.print(
            f"{self.run} epoch {epoch + 1}/{self.train.epochs}: loss {event['loss']:.3f}, "
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
        self._check_losses()  # a checkpoint holds no step that failed
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "log": self.log,
            "average": self.average and self.average.state,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.group.gather(self._random_state()),
        }
        if self.group.leads:
            self.checkpoints.save(self.step, Checkpoint(self.segmenter.trained_state(), self.best_weights, training))

    def _random_state(self) -> list[Tensor]:
        """Return torch's random state in this process, and that of its GPU."""
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.device.type == "cuda" else [])]

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        checkpoint = self.group.share(self.checkpoints.load() if self.group.leads else None)
        if checkpoint is None:
            return
        training = checkpoint.training
        if len(training["random"]) != self.group.size:
            raise UserError(
                f"{self.checkpoints.folder}: the checkpoint is of {len(training['random'])} processes, but "
                f"{self.group.size} were started; start as many, or delete the folder to train from the beginning"
            )
        self.segmenter.load_trained(checkpoint.weights)
        self.best_weights = checkpoint.best_weights
        self.step, self.seconds, self.resumed = training["step"], training["seconds"], training["resumed"] + 1
        self.best_epoch, self.best_score, self.log = training["best_epoch"], training["best_score"], training["log"]
        if self.average is not None:
            self.average.load(training["average"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        cpu, *cuda = training["random"][self.group.rank]
        torch.set_rng_state(cpu)
        for state in cuda:
            torch.cuda.set_rng_state(state)
        if self.group.leads:
            print(f"{self.run}: resumed at step {self.step} of {self.total_steps}", file=sys.stderr)
