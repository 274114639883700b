"""The training batches of a run. Seed and epoch alone decide them."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wimfris.data.dataset import Case, ReferDataset, epoch_cases, to_device
from wimfris.data.tokens import Tokenizer
from wimfris.errors import UserError
from wimfris.settings.schema import CosineSchedule, Settings
from wimfris.training.distributed import Processes


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
        loader = DataLoader(dataset, batch_sampler=numbers, num_workers=workers, pin_memory=pinned, generator=own)
        for batch, part in zip(loader, numbers, strict=True):
            yield to_device(batch, self.device), [cases[k] for k in part]
