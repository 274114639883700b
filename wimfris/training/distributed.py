"""Training and evaluation in one process, or in several that `torchrun` started. The results are the same."""

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
TIMEOUT = timedelta(minutes=15)  # a process that waits longer for the others ends with an error


@dataclass(frozen=True)
class Processes:
    """The processes that share one run: the rank of this one, and their number.

    Rank 0 leads: only it reads checkpoints and writes files. Every process must call `share`, `gather` and `mean`.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reads checkpoints and writes files."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """Return the leader's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return cast(list[T], values)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def part(self, batch: Sequence[T]) -> list[T]:
        """Return this process's part of a training batch. The parts are equal and in the order of ranks."""
        size = len(batch) // self.size
        return list(batch[self.rank * size : (self.rank + 1) * size])

    def check_batch(self, size: int) -> None:
        """Raise UserError where a batch of this size has no equal parts: the mean of the parts' losses would not be the
        loss of the batch.
        """
        if size % self.size:
            raise UserError(
                f"train.batch_size must be a multiple of the number of processes ({self.size}), got {size}; "
                "change it, or the number of processes"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped so that gradients are averaged over the processes.

        Its batch norms are replaced in place by `SyncedBatchNorm`. Every trained parameter must contribute to the
        output.
        """
        if self.size == 1:
            return model
        synchronise_norms(model)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started for the time of the block; without torchrun there is one process.

    On "cuda" each process uses the GPU of its local rank. Raises UserError where there are fewer GPUs than processes.
    """
    size = _world_size()
    if size == 1:
        yield Processes()
        return
    if device == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise UserError(f"torchrun: --nproc-per-node must be at most the number of GPUs on this machine ({count})")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    yield Processes(distributed.get_rank(), size)
    distributed.destroy_process_group()  # not after an error: it would wait for the other processes


def _world_size() -> int:
    """Return the number of processes that torchrun started. Raises UserError where its variables are incomplete."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or not size.isdigit() or size == "0":
        lacking = f"without {', '.join(missing)}" if missing else "is no number of processes"
        raise UserError(f"WORLD_SIZE={size} is set {lacking}; start the command with torchrun, or unset WORLD_SIZE")
    return int(size)


class SyncedBatchNorm(_BatchNorm):
    """Batch norm with training statistics over the samples of all processes, which must have equally many.

    It works on any device; torch's SyncBatchNorm needs a GPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs an input of at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) over all dimensions but C."""
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
    """Replace every batch norm in place by a `SyncedBatchNorm` with the same parameters under the same names."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm) and not isinstance(norm, SyncedBatchNorm):
                synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                synced.weight, synced.bias = norm.weight, norm.bias
                for buffer, value in norm.named_buffers():
                    setattr(synced, buffer, value)
                setattr(parent, name, synced.train(norm.training))
