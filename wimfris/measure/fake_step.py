"""One training step on fake tensors, which have shapes and no numbers: nothing is computed, and no memory is needed."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.timing import training_step
from wimfris.model.tables import forget_tables
from wimfris.settings.schema import Settings


def watch_step(settings: Settings, batch: int, watcher: TorchDispatchMode) -> None:
    """Run a training step, forward to update, on fake CPU tensors. The watcher sees every operator."""
    forget_tables()
    try:
        segmenter = blank_segmenter(settings)  # on `meta`: drawing initial weights needs numbers
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = training_step(segmenter.to_empty(device="cpu"), settings, torch.device("cpu"), batch)
            with watcher:
                step()
    finally:
        forget_tables()
