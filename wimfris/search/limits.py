"""The limits of a search space: a trial beyond them is refused before it is trained."""

from typing import Annotated

import numpy as np
from pydantic import Field

from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.timing import seconds, training_step
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Section
from wimfris.training.build import build_device
from wimfris.training.determinism import be_deterministic

REPETITIONS = 20  # of a training step of each model


class Limits(Section):
    """Limits of a trial, relative to `full`."""

    trained: Annotated[float, Field(gt=0)]  # at most this share more or fewer trained parameters
    time: Annotated[float, Field(gt=0)]  # at most so many times the time of a training step

    def on_parameters(self, trained: int, reference: int) -> str | None:
        """Return why a number of trained parameters is refused; None where it is not."""
        excess = trained / reference - 1
        return f"{excess:+.1%} trained parameters" if abs(excess) > self.trained else None

    def on_time(self, ratio: float) -> str | None:
        """Return why the time of a training step is refused; None where it is not."""
        return f"a step takes {ratio:.2f} times that of full" if ratio > self.time else None


def relative_step(settings: Settings, reference: Settings) -> float:
    """Return the time of a training step over that of another model's.

    It is the median over pairs of steps that follow each other, so that other work on the machine falls on both.
    """
    be_deterministic(settings)
    device = build_device(settings)
    steps = [
        training_step(blank_segmenter(one, device.type), one, device, one.train.batch_size)
        for one in (settings, reference)
    ]
    pairs = [[seconds(step, 1, device, warm_up=0)[0] for step in steps] for _ in range(1 + REPETITIONS)]
    return float(np.median([own / other for own, other in pairs[1:]]))
