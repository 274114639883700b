"""torch.compile of the model in place, tried on a training step and an evaluation before anything depends on it."""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from wimfris.encoders.recompute import frozen_statistics
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings
from wimfris.training.build import build_loss
from wimfris.training.evaluate import precision_context

BACKEND = "inductor"  # torch's own
TOLD = 200  # letters of a reason


def compile_segmenter(segmenter: Segmenter, settings: Settings, device: torch.device, backend: Any = BACKEND) -> bool:
    """Compile the forward of a segmenter on this device. Returns whether it runs compiled; its state's names stay.

    A training step of noise and an evaluation are run at once, so that what cannot be compiled shows here: then one
    line on standard error says why, and the segmenter stays as it was. Random state, gradients, running statistics and
    mode are in either case what they were. backend: one of torch.compile's.
    """
    training, eager = segmenter.training, segmenter.forward
    # tables of indices and positions, which are cached by their shapes and never change
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    devices = [device] if device.type == "cuda" else []
    # by fixed shapes: sizes left open, torch 2.13 stumbles over
    segmenter.forward = torch.compile(eager, backend=backend, dynamic=False)  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices), frozen_statistics(segmenter):
            segmenter.train()
            _loss(segmenter, settings, settings.train.batch_size, device).backward()
            segmenter.eval()
            with torch.no_grad():
                for fewer in (0, 1):  # a split's last batch is of another size
                    _loss(segmenter, settings, max(settings.evaluate.batch_size - fewer, 1), device)
    except Exception as error:  # a compiler's are of many kinds; the model's own come again when it runs eagerly
        segmenter.forward = eager  # type: ignore[method-assign]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:TOLD]
        print(f"train.compile: the model does not compile here and runs eagerly ({reason})", file=sys.stderr)
        return False
    finally:
        segmenter.train(training)
        segmenter.zero_grad()
    return True


def _loss(segmenter: Segmenter, settings: Settings, batch: int, device: torch.device) -> Tensor:
    """Of noise, as training has it."""
    size, length = settings.data.image_size, settings.data.length
    token_ids = torch.full((batch, length), segmenter.text.end_token, dtype=torch.int64, device=device)
    with precision_context(settings.train.precision, device):
        output = segmenter(torch.randn(batch, 3, size, size, device=device), token_ids)
    return build_loss(settings)(output, torch.zeros(batch, 1, size, size, device=device)).total
