"""Differences between pairs of systems, computed from records: an estimate for any seed, and an interval for these.

`wimfris.results.statistics` derives the intervals. `wimfris.results.comparisons` adds levels and verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wimfris.results.scores import OF_OBJECTS, read_scores
from wimfris.results.statistics import Estimate, Floats, estimate, linearise, resample

Pair = tuple[str, str]
"""A system, and the rival or baseline that is subtracted."""


@dataclass(frozen=True)
class Difference:
    """A system minus its rival in one metric on one split, over all runs of both; fractions."""

    pair: Pair
    split: str
    metric: str  # one of `COMPARED` or `OF_OBJECTS`
    value: float  # of the system, mean over its seeds
    rival_value: float
    these_low: float  # 95% interval for these seeds: percentiles of the bootstrap over images
    these_high: float
    any_seed: Estimate
    improvement: float
    seeds: str  # of the system, for example "0 1 2"
    rival_seeds: str
    images: int
    sentences: int


def compare(
    records: pd.DataFrame, pairs: Sequence[Pair], split: str, *, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """Compare pairs of systems on one split, without the controls: a difference per pair and metric of `COMPARED`,
    and of `OF_OBJECTS` where every run of both systems has it.

    `records` has the columns of `wimfris.runs.records.SCHEMA` and may hold more systems than these; all their runs of
    the split count. A difference depends on its own two systems alone, and not on the order of the records. In
    simulations with 250 images, `these_low` and `these_high` cover 95% for mIoU, and 93% for oIoU, which a few large
    objects dominate (BCa: 95% and 91%). `improvement` is the probability of improvement (Agarwal et al. 2021, "Deep
    reinforcement learning at the edge of the statistical precipice", with sentences as tasks): draw a sentence and a
    run of each system; it is the chance that the system's IoU is higher, a tie counting one half.

    seed: of the bootstrap. Raises `UserError` if a system has no records of the split, or if the runs differ in data
    set, scale, protocol, sentences or images.
    """
    if not pairs:
        return []
    systems = list(dict.fromkeys([*(rival for _, rival in pairs), *(system for system, _ in pairs)]))
    scores = read_scores(records, systems, split)
    ratios = scores.ratios()
    resampled = resample(ratios, resamples, seed)
    linear = {metric: linearise(*parts) for metric, parts in ratios.items()}
    differences = []
    for pair in pairs:
        one, other = (systems.index(name) for name in pair)
        runs = scores.present[one], scores.present[other]
        seeds = [" ".join(str(number) for number in scores.seeds[present]) for present in runs]
        improvement = _improvement(scores.iou[one, runs[0]], scores.iou[other, runs[1]])
        for metric, ratio in ratios.items():
            if metric in OF_OBJECTS and not (_known(ratio, one, runs[0]) and _known(ratio, other, runs[1])):
                continue
            values = linear[metric][one, runs[0]], linear[metric][other, runs[1]]
            draws = resampled[metric][one, runs[0]].mean(axis=0) - resampled[metric][other, runs[1]].mean(axis=0)
            these = np.percentile(draws, [2.5, 97.5])
            differences.append(
                Difference(
                    pair,
                    split,
                    metric,
                    float(values[0].mean()),
                    float(values[1].mean()),
                    float(these[0]),
                    float(these[1]),
                    estimate(*values),
                    improvement,
                    seeds[0],
                    seeds[1],
                    scores.starts.size,
                    scores.iou.shape[-1],
                )
            )
    return differences


def _known(ratio: tuple[Floats, Floats], place: int, runs: NDArray[np.bool_]) -> bool:
    """Return whether every one of a system's runs has a ratio; place: of the system."""
    numerator, denominator = (part[place, runs].sum(axis=-1) for part in np.broadcast_arrays(*ratio))
    return bool((np.isfinite(numerator) & (denominator > 0)).all())


def _improvement(system: Floats, rival: Floats) -> float:
    """Return P(system's IoU > rival's) + P(equal) / 2 over sentences and pairs of runs, both (seeds, sentences)."""
    signs = [np.sign(one - other).mean() for one in system for other in rival]
    return float(1 + np.mean(signs)) / 2
