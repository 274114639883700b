"""The training batches of a run. Seed and epoch alone decide them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wimfris.data.dataset import Case, ReferDataset, epoch_cases, to_device
from wimfris.data.tokens import Tokenizer
from wimfris.errors import UserError
from wimfris.settings.schema import Settings
from wimfris.settings.sections import CosineSchedule
from wimfris.training.distributed import Processes

SHARED = Path("/dev/shm")  # where loader processes hand over their batches
PREFETCH = 2  # batches that each loader process prepares, torch's default
PLANES = 4  # red, green, blue and mask, a byte each


def shared_bytes(settings: Settings) -> int:
    """Return the shared memory that the loader processes fill at most: images and masks of the batches under way."""
    train, side = settings.train, settings.data.image_size
    batch = max(train.batch_size, settings.evaluate.batch_size)
    return train.workers * (PREFETCH + 1) * batch * PLANES * side * side


def check_shared_memory(settings: Settings, folder: Path = SHARED) -> None:
    """Raise UserError where the loader processes would fill the shared memory: the kernel then kills them (SIGBUS)."""
    if not settings.train.workers or not folder.is_dir():
        return
    free, needed = shutil.disk_usage(folder).free, shared_bytes(settings)
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**20:,.0f} MiB free, train.workers {settings.train.workers} need up to "
            f"{needed / 2**20:,.0f} MiB; start the container with a larger --shm-size, or lower train.workers"
        )


def start_worker(_: int) -> None:
    """Give a loader process one thread: OpenCV would start one on every core in each of them."""
    cv2.setNumThreads(0)


class TrainBatches:
    """This process's part of every training batch: one random sentence per object and epoch."""

    def __init__(
        self,
        settings: Settings,
        rows: pd.DataFrame,
        images: Path,
        tokenizer: Tokenizer,
        seed: int,
        device: torch.device,
        group: Processes,
    ) -> None:
        group.check_batch(settings.train.batch_size)
        self.settings, self.rows, self.images, self.tokenizer = settings, rows, images, tokenizer
        self.seed, self.device, self.group = seed, device, group
        self.steps_per_epoch = settings.train.steps(len(rows))
        if self.steps_per_epoch == 0:
            raise UserError(
                f"train.batch_size must be at most the size of the train split ({len(rows)} objects), "
                f"got {settings.train.batch_size}"
            )
        schedule, steps = settings.train.schedule, settings.train.epochs * self.steps_per_epoch
        if isinstance(schedule, CosineSchedule) and schedule.warmup >= steps:
            raise UserError(
                f"train.schedule.warmup must be less than the steps of the training ({steps}), got {schedule.warmup}"
            )

    def epoch(self, epoch: int, position: int) -> Iterator[tuple[dict[str, Tensor], list[Case]]]:
        """Yield the batches of an epoch (from 0), from this position on, each with its cases."""
        size, workers = self.settings.train.batch_size, self.settings.train.workers
        cases = epoch_cases(self.rows, self.seed, epoch)[: self.steps_per_epoch * size]
        dataset = ReferDataset(
            self.rows, cases, self.images, self.tokenizer, self.settings.data.image_size, with_mask=True
        )
        numbers = [self.group.part(range(k * size, (k + 1) * size)) for k in range(position, self.steps_per_epoch)]
        # The loader draws from its generator. It has one of its own: torch's global random state must not depend on
        # where a run was resumed.
        pinned, own = self.device.type == "cuda", torch.Generator()
        loader = DataLoader(
            dataset,
            batch_sampler=numbers,
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=pinned,
            generator=own,
        )
        for batch, part in zip(loader, numbers, strict=True):
            yield to_device(batch, self.device), [cases[k] for k in part]
