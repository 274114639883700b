"""Compile the model with torch.compile, and fall back to eager mode where that fails."""

import sys
from typing import Any

import torch
from torch import Tensor

from wimfris.encoders.recompute import frozen_statistics
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings
from wimfris.training.build import build_loss
from wimfris.training.evaluate import precision_context

BACKEND = "inductor"  # torch's own
REASON_LENGTH = 200  # characters of a reason that are printed


def compile_segmenter(segmenter: Segmenter, settings: Settings, device: torch.device, backend: Any = BACKEND) -> bool:
    """Compile the forward of a segmenter in place, and return whether that worked; the names of its state stay.

    A training step and an evaluation on noise run at once, so that what cannot be compiled fails here. Then one line on
    standard error gives the reason, and the segmenter stays as it was. In either case random state, gradients, running
    statistics and mode are left as they were. backend: one of torch.compile's.
    """
    training, eager = segmenter.training, segmenter.forward
    devices = [device] if device.type == "cuda" else []
    # with fixed shapes: torch 2.13 fails on dynamic ones
    segmenter.forward = torch.compile(eager, backend=backend, dynamic=False)  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices), frozen_statistics(segmenter):
            segmenter.train()
            _loss(segmenter, settings, settings.train.batch_size, device).backward()
            segmenter.eval()
            with torch.no_grad():
                for fewer in (0, 1):  # a split's last batch has another size
                    _loss(segmenter, settings, max(settings.evaluate.batch_size - fewer, 1), device)
    except Exception as error:  # a compiler raises many kinds; the model's own errors recur when it runs eagerly
        segmenter.forward = eager  # type: ignore[method-assign]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]
        print(f"train.compile: the model does not compile here and runs eagerly ({reason})", file=sys.stderr)
        return False
    finally:
        segmenter.train(training)
        segmenter.zero_grad()
    return True


def _loss(segmenter: Segmenter, settings: Settings, batch: int, device: torch.device) -> Tensor:
    """Return the training loss of a batch of noise."""
    size, length = settings.data.image_size, settings.data.length
    token_ids = torch.full((batch, length), segmenter.text.end_token, dtype=torch.int64, device=device)
    with precision_context(settings.train.precision, device):
        output = segmenter(torch.randn(batch, 3, size, size, device=device), token_ids)
    return build_loss(settings)(output, torch.zeros(batch, 1, size, size, device=device)).total
