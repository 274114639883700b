"""The average of a run's weights over its steps: it is evaluated in place of the last weights, and scatters less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from wimfris.model.segmenter import Segmenter


class WeightAverage:
    """The exponential moving average of all that a run trains, batch norm's statistics included.

    After step t (from 1), average += (1 - d) (weights - average) with d = min(decay, (1 + t) / (10 + t)), so that the
    first steps do not count for long. Integers are those of the last step.
    """

    def __init__(self, segmenter: Segmenter, decay: float) -> None:
        self.segmenter, self.decay = segmenter, decay
        self.state = {name: value.detach().clone() for name, value in segmenter.trained_state().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step (from 1) into the average."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in self.segmenter.trained_state().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, share)
            else:
                self.state[name].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved average."""
        for name, value in state.items():
            self.state[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the segmenter the average, and its own weights back at the end."""
        own = {name: value.detach().clone() for name, value in self.segmenter.trained_state().items()}
        self.segmenter.load_trained(self.state)
        try:
            yield
        finally:
            self.segmenter.load_trained(own)
