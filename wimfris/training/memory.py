"""Report in one line that a GPU is out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wimfris.errors import UserError
from wimfris.settings.schema import Settings


@contextmanager
def fitting(settings: Settings, *, training: bool) -> Iterator[None]:
    """Turn an error for want of GPU memory within the block into a UserError that names the batch and what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        key, size = ("train", settings.train.batch_size) if training else ("evaluate", settings.evaluate.batch_size)
        remedies = [f"lower {key}.batch_size"]
        if training and not settings.train.gradient_checkpointing:
            remedies.append("set train.gradient_checkpointing to true (less memory, more time, the same gradients)")
        raise UserError(f"out of memory on the GPU with {key}.batch_size {size}; {' or '.join(remedies)}") from None
