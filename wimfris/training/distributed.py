"""One process or many: what `torchrun` started share out a run, with the result that one process has."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn import functional as collective
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from wimfris.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=15)  # that a process waits for the others before it ends with an error


@dataclass(frozen=True)
class Processes:
    """Those that work on one run: this one's rank, and how many they are. Rank 0 leads: it alone reads checkpoints and
    writes. Methods that exchange something must be called by all of them.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def part(self, batch: Sequence[T]) -> list[T]:
        """This process's part of a training batch: equal parts, in order."""
        each = len(batch) // self.size
        return list(batch[self.rank * each : (self.rank + 1) * each])

    def check_batch(self, size: int) -> None:
        """Raises UserError where a batch of that size has no equal parts: the mean of the parts' losses would not be
        the batch's.
        """
        if size % self.size:
            raise UserError(f"train.batch_size: {size} samples have no {self.size} equal parts, one for each process")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with batch norms over all processes' samples (in place) and gradients averaged over them. Every
        trained parameter must take part in the output; frozen ones are in none of the buckets.
        """
        if self.size == 1:
            return model
        synchronise_norms(model)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes that `torchrun` started (by its environment), joined for the time of the block; alone without it.

    On "cuda" each takes the GPU of its local rank. Raises UserError where there are fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    if device == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UserError(f"torchrun: more processes than GPUs, {count} here; lower --nproc-per-node")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    yield Processes(distributed.get_rank(), size)
    distributed.destroy_process_group()  # not after an error: the others would not come to it


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics, in training, are those of all processes' samples, equally many in each; on any
    device (torch's own SyncBatchNorm wants a GPU).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm of {input.dim()} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        size, shape = distributed.get_world_size(), (1, -1, *[1] * (x.dim() - 2))
        over = [0, *range(2, x.dim())]
        values = x.to(self.running_mean.dtype)
        mean = collective.all_reduce(values.mean(over)) / size
        centred = values - mean.view(shape)
        variance = collective.all_reduce(centred.square().mean(over)) / size
        with torch.no_grad():
            count = size * values.numel() // values.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def synchronise_norms(model: nn.Module) -> None:
    """Replace every batch norm by one over all processes, with the same parameters under the same names."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm) and not isinstance(norm, SyncedBatchNorm):
                synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                synced.weight, synced.bias = norm.weight, norm.bias
                for buffer, value in norm.named_buffers():
                    setattr(synced, buffer, value)
                setattr(parent, name, synced.train(norm.training))
