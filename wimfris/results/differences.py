"""Differences between variants and a baseline, computed from records: two intervals, a test and its power.

`wimfris.results.statistics` derives the intervals; docs/statistics.md explains the columns.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.results.scores import COMPARED, read_scores
from wimfris.results.statistics import (
    POWER,
    SIGNIFICANCE,
    Floats,
    any_seed,
    between_seeds,
    detectable,
    holm,
    linearise,
    resample,
)

_NAMES = {"miou": "mIoU", "oiou": "oIoU", "pr70": "Pr@0.7"}


def compare(
    records: pd.DataFrame,
    variants: Sequence[str],
    baseline: str,
    *,
    split: str,
    resamples: int = 10_000,
    seed: int = 0,
    pool: Sequence[str] = (),
) -> pd.DataFrame:
    """Compare every variant with the baseline on one split, without the controls: a row per variant and metric.

    `records` has the columns of `wimfris.runs.records.SCHEMA` and may hold more runs than these. A comparison uses the
    seeds that both systems have. Columns, all values fractions:

    * variant, baseline, split, metric (`COMPARED`, and `OF_OBJECTS` where the records have them); value, baseline_value
      (means over the common seeds) and difference;
    * these_low, these_high: interval for these seeds, percentiles of the bootstrap over images. In simulations with 250
      images it covers 95% for mIoU, and 93% for oIoU, which a few large objects dominate (BCa: 95% and 91%);
    * any_low, any_high, standard_error, df, p: for any seed, see `AnySeed`; NaN with one common seed or one image. The
      variance between seeds is pooled over the systems compared and those of `pool`;
    * p_holm: p, corrected over all variants of this call within the metric;
    * improvement: probability of improvement (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
      statistical precipice", with sentences as tasks). Draw a sentence, a run of the variant and a run of the baseline:
      it is the chance that the variant's IoU is higher, a tie counting one half. It is the same for all metrics;
    * seeds (common ones), images, sentences;
    * detectable: the smallest true difference with 80% power at two-sided 5%, uncorrected, see `detectable`.

    `seed` is that of the bootstrap. A row does not depend on the order of the records. It depends on the other variants
    only through p_holm and the pooled variance. Raises `UserError` if a system has no records of the split or no seed
    in common with the baseline, or if the runs differ in data set, scale, protocol, sentences or images; `ValueError`
    if variants repeat or include the baseline.
    """
    systems = [baseline, *variants]
    if len(set(systems)) < len(systems):
        raise ValueError(f"the baseline and every variant must be named once, got {', '.join(systems)}")
    scores = read_scores(records, [*systems, *(name for name in dict.fromkeys(pool) if name not in systems)], split)
    ratios = scores.ratios()
    resampled = resample(ratios, resamples, seed)
    linear = {metric: linearise(*parts) for metric, parts in ratios.items()}
    pooled = {metric: between_seeds(values.mean(axis=-1), scores.present) for metric, values in linear.items()}
    rows = []
    for index, variant in enumerate(variants, start=1):
        common = scores.present[0] & scores.present[index]
        if not common.any():
            raise UserError(
                f"{split}: {variant} and {baseline} have no seed in common; train one with `dvc repro` to compare them"
            )
        improvement = _improvement(scores.iou[index, common], scores.iou[0, common])
        for metric in ratios:
            values = linear[metric][index, common] - linear[metric][0, common]
            system, other = (linear[metric][which, common].mean(axis=-1) for which in (index, 0))
            draws = (resampled[metric][index, common] - resampled[metric][0, common]).mean(axis=0)
            these_low, these_high = np.percentile(draws, [2.5, 97.5])
            variance, df = pooled[metric]
            estimate = any_seed(values, 2 * variance / common.sum(), df)
            rows.append(
                {
                    "variant": variant,
                    "baseline": baseline,
                    "split": split,
                    "metric": metric,
                    "value": system.mean(),
                    "baseline_value": other.mean(),
                    "difference": float(estimate.difference),
                    "these_low": these_low,
                    "these_high": these_high,
                    "any_low": float(estimate.low),
                    "any_high": float(estimate.high),
                    "standard_error": float(estimate.standard_error),
                    "df": float(estimate.df),
                    "p": float(estimate.p),
                    "p_holm": np.nan,
                    "improvement": improvement,
                    "seeds": int(common.sum()),
                    "images": scores.starts.size,
                    "sentences": scores.iou.shape[-1],
                    "detectable": detectable(float(estimate.standard_error), float(estimate.df)),
                }
            )
    table = pd.DataFrame(rows)
    for _, part in table.groupby("metric"):
        table.loc[part.index, "p_holm"] = holm(part["p"])
    return table


def separated(row: Mapping[Hashable, Any] | pd.Series) -> bool:
    """Return whether a row of `compare` separates its systems: Holm-corrected p below 5%. A missing p does not."""
    return bool(row["p_holm"] < SIGNIFICANCE)


def verdict(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """Return `higher`, `lower` or `undecided` for a row of `compare`; empty without a p value."""
    if np.isnan(row["p_holm"]):
        return ""
    if not separated(row):
        return "undecided"
    return "higher" if row["difference"] > 0 else "lower"


def power_line(comparisons: pd.DataFrame) -> str:
    """Return a sentence, for the foot of a table, that states the detectable difference.

    `comparisons` holds rows of `compare`. The sentence states the median over the rows of the primary metric, in
    points, and their range: a standard error from two or three seeds is itself uncertain.
    """
    metric = next(name for name in COMPARED if (comparisons["metric"] == name).any())
    part = comparisons[comparisons["metric"] == metric]
    size = f"With {_count(part['images'], 'image')} and {_count(part['seeds'], 'seed')}"
    points = 100 * part["detectable"].dropna()
    if points.empty:
        return f"{size}, no difference in {_NAMES[metric]} is detectable for any seed."
    over = (
        f" (median of {len(points)} comparisons; {points.min():.1f} to {points.max():.1f})" if len(points) > 1 else ""
    )
    return (
        f"{size}, the detectable difference in {_NAMES[metric]} is {points.median():.1f} points{over}: {POWER:.0%} "
        f"power for any seed at a two-sided {SIGNIFICANCE:.0%}, before Holm's correction."
    )


def _improvement(variant: Floats, baseline: Floats) -> float:
    """Return P(variant's IoU > baseline's) + P(equal) / 2 over sentences and pairs of runs, both (seeds, sentences)."""
    signs = [np.sign(one - other).mean() for one in variant for other in baseline]
    return float(1 + np.mean(signs)) / 2


def _count(numbers: pd.Series, unit: str) -> str:
    fewest, most = int(numbers.min()), int(numbers.max())
    if fewest == most:
        return f"{most} {unit}{'s' if most != 1 else ''}"
    return f"{fewest} to {most} {unit}s"
