"""Is a variant better than the baseline, and for whom: intervals, tests and power of paired differences.

The sentences of one image share its objects, and the sentences of one run share its weights, so neither n sentences nor
n x S scores are independent. Images and seeds are the units that were drawn; sentences are never resampled by
themselves. Every difference carries two intervals, which answer two questions:

* *these seeds*: would these very networks differ so on other images? Bootstrap over images with all their sentences
  and seeds, the same resampled images for both systems (Field & Welsh 2007, "Bootstrapping clustered data").
* *any seed*: would the two methods, trained anew from other seeds, differ so on other images? Crossed random effects,
  below.

All metrics here are ratios of sums over images, R = sum_i N_i / sum_i M_i: sentences' IoUs over sentences (mIoU), hits
over sentences (Pr@0.7), intersections over unions (oIoU). Hence one machinery for all: image i's linearised value under
seed s is z_si = R_s + I (N_si - R_s M_si) / sum_j M_sj (the influence function; its mean over images is R_s), and the
differences of two systems' values, d_si, follow the two-way model

    d_si = difference + seed_s + image_i + (seed x image)_si,

with seeds paired by their number. V_image = var_i(mean_s d_si) / I. For V_seed, two or three seeds of one pair tell
next to nothing, so that the systems of a table share what they have: with s^2 the variance between the seeds of one
system (of R_s, about the system's mean), pooled over the systems with sum_v (S_v - 1) degrees of freedom, as in an
analysis of variance, V_seed = 2 s^2 / S. That seeds scatter alike in all systems of a table is an assumption; that the
same seed number does not move two systems alike is a cautious one. V_seed + V_image is at least the variance of the
estimate in expectation: it counts the interaction twice, as the pigeonhole bootstrap does (Owen 2007; Cameron, Gelbach
& Miller 2011). Banerjee's interval (1960, Sankhya 22: 357) gives each component its own quantile,

    half width^2 = t_nu^2 V_seed + t_{I-1}^2 V_image,   nu = sum_v (S_v - 1),

and covers at least its level whatever the true variances are: with F the distribution function of chi^2_1, which is
concave, u_k independent chi^2 over their degrees of freedom, and w_k each component's share of the variance,
F(sum_k w_k t_k^2 u_k) >= sum_k w_k F(t_k^2 u_k), and every F(t_k^2 u_k) has the level as its mean. A pair alone has
nu = 2 (S - 1): with two seeds t_2 = 4.3, with three t_4 = 2.8.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from wimfris.errors import UserError
from wimfris.metrics import ious
from wimfris.results.tables import check_comparable
from wimfris.runs.records import CONDITIONS

METRICS = ("miou", "oiou", "pr70")
"""The metrics compared; the first is the primary one."""

SIGNIFICANCE = 0.05
"""Of the two-sided tests, of `df` and of `detectable`."""

POWER = 0.8
"""The chance at which a difference counts as one that would have been found."""

_PR_THRESHOLD = 0.7
_SMALLEST_P = 1e-16
_CHI_QUANTILES = 2000  # power to 1e-4
_CHUNK = 500  # resamples at a time: bounds the weights to 500 x images
_NAMES = {"miou": "mIoU", "oiou": "oIoU", "pr70": "Pr@0.7"}

Floats = NDArray[np.float64]


class AnySeed(NamedTuple):
    """Estimates whose target is any seed and any image; arrays of one shape (...)."""

    difference: Floats
    low: Floats
    high: Floats
    standard_error: Floats  # sqrt(V_seed + V_image)
    df: Floats  # of the one t whose two-sided 5% quantile, times the standard error, is the half width
    p: Floats  # two-sided: the smallest 1 - level whose interval leaves out 0


def compare(
    records: pd.DataFrame,
    variants: Sequence[str],
    baseline: str,
    *,
    split: str,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    pool: Sequence[str] = (),
) -> pd.DataFrame:
    """Compare every variant with the baseline on one split, told the sentences: a row per variant and metric.

    `records` has the columns of `wimfris.runs.records.SCHEMA` and may hold more than is asked for. A comparison is
    over the seeds that both systems have. Columns, all values fractions:

    * variant, baseline, split, metric (`METRICS`); value, baseline_value (means over the common seeds) and difference;
    * these_low, these_high: interval for these seeds, percentiles of the bootstrap over images. In simulations of 250
      images these cover 95% for mIoU and 93% for oIoU, which a few large objects rule; BCa covered 95% and 91%;
    * any_low, any_high, standard_error, df, p: for any seed, see `AnySeed`; NaN with one common seed or one image. The
      variance between seeds is pooled over the systems compared and those of `pool`;
    * p_holm: p, corrected for all variants of this call within the metric;
    * sd, baseline_sd, difference_sd: standard deviation (ddof 1) over the common seeds, NaN for one;
    * improvement: probability of improvement (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
      statistical precipice", with sentences as tasks): draw a sentence of the split, a run of the variant and a run of
      the baseline; the chance that the variant's IoU is the higher, ties half. The same for all metrics;
    * seeds (common ones), images, sentences;
    * detectable: smallest true difference found with 80% power at two-sided 5%, uncorrected, see `detectable`.

    `seed` is the bootstrap's; the rows do not depend on the order of the records, nor, save p_holm and what rests on
    the pooled variance, on the other variants. Raises `UserError`, one line, where a system has no records of the split
    or no seed in common with the baseline, or where the runs differ in data set, scale, protocol, sentences or images;
    `ValueError` where the variants repeat, or hold the baseline.
    """
    systems = [baseline, *variants]
    if len(set(systems)) < len(systems):
        raise ValueError(f"{', '.join(systems)}: the baseline and every variant must be named once")
    cube = _read(records, [*systems, *(system for system in dict.fromkeys(pool) if system not in systems)], split)
    ratios = cube.ratios()
    resampled = resample(ratios, resamples, seed)
    linear = {metric: linearise(*ratios[metric]) for metric in METRICS}
    pooled = {metric: between_seeds(values.mean(axis=-1), cube.present) for metric, values in linear.items()}
    tail = 50 * (1 - level)
    rows = []
    for index, variant in enumerate(variants, start=1):
        common = cube.present[0] & cube.present[index]
        if not common.any():
            raise UserError(
                f"{split}: {variant} and {baseline} have no seed in common; train one with `dvc repro` to compare them"
            )
        improvement = _improvement(cube.iou[index, common], cube.iou[0, common])
        for metric in METRICS:
            values = linear[metric][index, common] - linear[metric][0, common]
            by_seed = values.mean(axis=-1)
            system, other = (linear[metric][which, common].mean(axis=-1) for which in (index, 0))
            draws = (resampled[metric][index, common] - resampled[metric][0, common]).mean(axis=0)
            these_low, these_high = np.percentile(draws, [tail, 100 - tail])
            variance, df = pooled[metric]
            estimate = any_seed(values, level, (2 * variance / common.sum(), df))
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
                    "sd": _spread(system),
                    "baseline_sd": _spread(other),
                    "difference_sd": _spread(by_seed),
                    "improvement": improvement,
                    "seeds": int(common.sum()),
                    "images": cube.starts.size,
                    "sentences": cube.iou.shape[-1],
                    "detectable": detectable(float(estimate.standard_error), float(estimate.df)),
                }
            )
    table = pd.DataFrame(rows)
    for _, part in table.groupby("metric"):
        table.loc[part.index, "p_holm"] = holm(part["p"])
    return table


def linearise(numerator: Floats, denominator: Floats) -> Floats:
    """Linearised values (..., images) whose mean over images is the ratio of the two sums; see the module's equations.

    `numerator` and `denominator` are sums per image, broadcastable to (..., images). Where the denominators sum to 0
    the ratio is 0, as in `wimfris.metrics.summarise`.
    """
    whole = denominator.sum(axis=-1, keepdims=True)
    ratio = _divide(numerator.sum(axis=-1, keepdims=True), whole)
    return ratio + denominator.shape[-1] * _divide(numerator - ratio * denominator, whole)


def resample(ratios: Mapping[str, tuple[Floats, Floats]], resamples: int = 10_000, seed: int = 0) -> dict[str, Floats]:
    """Bootstrap ratios of sums over images: (..., images) numerators and denominators -> (..., resamples) ratios.

    A resample is a row of multinomial counts, one an image, so that its sums are a matrix product; every entry of
    `ratios` and every element of its leading dimensions sees the same resamples, which is what pairs the systems.
    """
    images = next(iter(ratios.values()))[0].shape[-1]
    generator = np.random.default_rng(seed)
    parts: dict[str, list[Floats]] = {name: [] for name in ratios}
    for first in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - first)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        weights = counts.T.astype(np.float64)
        for name, (numerator, denominator) in ratios.items():
            parts[name].append(_divide(numerator @ weights, denominator @ weights))
    return {name: np.concatenate(part, axis=-1) for name, part in parts.items()}


def between_seeds(values: Floats, present: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Variance between the seeds of one system, pooled over systems, and its degrees of freedom, sum_v (S_v - 1).

    `values` (..., systems, seeds) are the metric of each run, `present` (systems, seeds) says which runs there are; the
    variance is of shape (...).
    """
    counts = present.sum(axis=-1, keepdims=True)
    there = np.where(present, values, 0.0)
    deviations = np.where(present, values - _divide(there.sum(axis=-1, keepdims=True), counts), 0.0)
    df = float((counts - 1).clip(min=0).sum())
    return _divide((deviations**2).sum(axis=(-2, -1)), np.asarray(df)), df


def any_seed(differences: Floats, level: float = 0.95, of_seeds: tuple[Floats, float] | None = None) -> AnySeed:
    """Estimate the difference for any seed and image from paired differences (..., seeds, images), linearised.

    `of_seeds` is V_seed, the variance (...) that seeds bring to the mean difference, and its degrees of freedom, see
    `between_seeds`; None takes them from these differences alone. With one seed or one image all but the difference is
    NaN: nothing is known of a spread seen once.
    """
    seeds, images = differences.shape[-2:]
    difference = differences.mean(axis=(-2, -1))
    if seeds < 2 or images < 2:
        unknown = np.full_like(difference, np.nan)
        return AnySeed(difference, unknown, unknown, unknown, unknown, unknown)
    if of_seeds is None:
        of_seeds = differences.mean(axis=-1).var(axis=-1, ddof=1) / seeds, float(seeds - 1)
    parts = (of_seeds[0], differences.mean(axis=-2).var(axis=-1, ddof=1) / images)
    dfs = (of_seeds[1], float(images - 1))

    def half_width(alpha: ArrayLike) -> Floats:
        of_t = (special.stdtrit(df, np.asarray(alpha) / 2) ** 2 for df in dfs)
        return np.sqrt(sum(quantile * part for quantile, part in zip(of_t, parts, strict=True)))

    half = half_width(1 - level)
    error = np.sqrt(sum(parts))
    # p and df have no closed form; both are bisected on a log scale, all elements at once.
    log_p = _bisect(lambda log: half_width(np.exp(log)) > np.abs(difference), np.log(_SMALLEST_P), 0.0, error)
    p = np.where(difference == 0, 1.0, np.exp(log_p))
    critical = _divide(half_width(SIGNIFICANCE), error)
    few, many = np.log(min(dfs)), np.log(max(dfs))
    log_df = _bisect(lambda log: -special.stdtrit(np.exp(log), SIGNIFICANCE / 2) > critical, few, many, error)
    df = np.where(error > 0, np.exp(log_df), np.nan)
    return AnySeed(difference, difference - half, difference + half, error, df, p)


def detectable(standard_error: float, df: float) -> float:
    """Find the smallest true difference that a two-sided 5% t test of this standard error and df finds with 80% power.

    Solves P(|T| > t_df) = 0.8 for T = (Z + difference / standard_error) / sqrt(chi^2_df / df), noncentral t, as a mean
    over quantiles of the chi^2: `scipy.stats.nct` gives NaN at the few df and large differences of two seeds. NaN where
    the standard error is NaN or 0: runs without any spread say nothing of what others would show.
    """
    if not standard_error > 0 or not np.isfinite(df):
        return float("nan")
    critical = float(special.stdtrit(df, 1 - SIGNIFICANCE / 2))

    ranks = (np.arange(_CHI_QUANTILES) + 0.5) / _CHI_QUANTILES
    thresholds = critical * np.sqrt(special.chdtri(df, 1 - ranks) / df)

    def lack(shift: float) -> float:
        return float(np.mean(special.ndtr(shift - thresholds) + special.ndtr(-shift - thresholds))) - POWER

    return standard_error * float(optimize.brentq(lack, 0.0, 3 * critical))


def holm(p: ArrayLike) -> Floats:
    """Correct p values (N,) of one family (Holm 1979): max over j <= i of min(1, (m - j + 1) p_(j)).

    NaN stays NaN and does not count among the m: what could not be tested is no test.
    """
    raw = np.asarray(p, dtype=np.float64)
    corrected = np.full_like(raw, np.nan)
    tested = np.flatnonzero(~np.isnan(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    scaled = raw[order] * np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def separated(row: Mapping[str, float] | pd.Series) -> bool:
    """Say whether a row of `compare` separates its systems: Holm-corrected p below 5%; never where p is absent."""
    return bool(row["p_holm"] < SIGNIFICANCE)


def power_line(comparisons: pd.DataFrame) -> str:
    """Say in one sentence, for the foot of a table, which difference its images and seeds could have shown.

    `comparisons` holds rows of `compare`. The figure is the median over those of the primary metric among them, in
    points, with the range beside it: a standard error that rests on two or three seeds is itself uncertain.
    """
    metric = next(name for name in METRICS if (comparisons["metric"] == name).any())
    part = comparisons[comparisons["metric"] == metric]
    units = f"{_count(part['images'], 'image')} and {_count(part['seeds'], 'seed')}"
    points = 100 * part["detectable"].dropna()
    if points.empty:
        return f"With {units} a side, no difference in {_NAMES[metric]} could have been shown to hold for any seed."
    size = f"{points.median():.1f} points"
    if len(points) > 1:
        size += f" (median over {len(points)} comparisons, from {points.min():.1f} to {points.max():.1f})"
    return (
        f"With {units} a side, a difference in {_NAMES[metric]} of {size} is the smallest that had an {POWER:.0%} "
        f"chance to be shown for any seed, at a two-sided {SIGNIFICANCE:.0%} before correction for several comparisons."
    )


@dataclass(frozen=True)
class _Cube:
    """Scores as (systems, seeds, sentences), sentences in the order of their images; 0 where a run is not `present`."""

    present: NDArray[np.bool_]  # (systems, seeds)
    iou: Floats
    intersection: Floats
    union: Floats
    starts: NDArray[np.intp]  # (images,): each image's first sentence

    def ratios(self) -> dict[str, tuple[Floats, Floats]]:
        """For each metric its numerators and denominators per image, (systems, seeds, images) or (images,)."""
        sentences = self._by_image(np.ones(self.iou.shape[-1]))
        return {
            "miou": (self._by_image(self.iou), sentences),
            "oiou": (self._by_image(self.intersection), self._by_image(self.union)),
            "pr70": (self._by_image((self.iou > _PR_THRESHOLD).astype(np.float64)), sentences),
        }

    def _by_image(self, scores: Floats) -> Floats:
        return np.add.reduceat(scores, self.starts, axis=-1)


def _read(records: pd.DataFrame, systems: Sequence[str], split: str) -> _Cube:
    """Arrange the systems' records of a split, or refuse them."""
    part = records[(records["split"] == split) & records["variant"].isin(systems)]
    for system in systems:
        if not (part["variant"] == system).any():
            raise UserError(f"{split}: no records of {system}; train and evaluate it with `dvc repro`")
    first = part.iloc[0]
    where = f"{first['dataset']}, scale {first['scale']}, split {split}"
    check_comparable(part, where)
    told_its_own = part[part["condition"] == CONDITIONS[0]].sort_values(["image_id", "ref_id", "sent_id"])
    seeds = sorted(told_its_own["seed"].unique())
    runs = dict(list(told_its_own.groupby(["variant", "seed"], observed=True)))
    known = runs[min(key for key in runs if key[0] == systems[0])]
    shape = (len(systems), len(seeds), len(known))
    present = np.zeros(shape[:2], dtype=bool)
    iou, intersection, union = (np.zeros(shape) for _ in range(3))
    for (variant, number), rows in runs.items():
        for column in ("ref_id", "sent_id", "image_id", "target_area"):
            if (rows[column].to_numpy() != known[column].to_numpy()).any():
                raise UserError(
                    f"{where}: run {rows['run'].iloc[0]} has other images or targets for its sentences than "
                    f"run {known['run'].iloc[0]}; evaluate both on one index with `dvc repro`"
                )
        place = systems.index(variant), seeds.index(number)
        present[place] = True
        intersection[place], union[place] = rows["intersection"], rows["union"]
        iou[place] = ious(rows["intersection"], rows["union"])
    starts = np.unique(known["image_id"].to_numpy(), return_index=True)[1]
    return _Cube(present, iou, intersection, union, starts)


def _improvement(variant: Floats, baseline: Floats) -> float:
    """P(variant's IoU > baseline's) + P(equal) / 2 over sentences and all pairs of runs; both (seeds, sentences)."""
    signs = [np.sign(one - other).mean() for one in variant for other in baseline]
    return float(1 + np.mean(signs)) / 2


def _spread(by_seed: Floats) -> float:
    return float(by_seed.std(ddof=1)) if by_seed.size > 1 else float("nan")


def _bisect(go_up: Callable[[Floats], NDArray[np.bool_]], low: float, high: float, like: Floats) -> Floats:
    """Where `go_up` turns from true to false between low and high, for every element of an array like `like`."""
    bottom, top = np.full_like(like, low), np.full_like(like, high)
    for _ in range(50):
        middle = (bottom + top) / 2
        up = go_up(middle)
        bottom, top = np.where(up, middle, bottom), np.where(up, top, middle)
    return (bottom + top) / 2


def _divide(above: Floats, below: Floats) -> Floats:
    """Quotient, broadcast; 0 where the divisor is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape), where=np.broadcast_to(below != 0, shape))


def _count(numbers: pd.Series, unit: str) -> str:
    fewest, most = int(numbers.min()), int(numbers.max())
    if fewest == most:
        return f"{most} {unit}{'s' if most != 1 else ''}"
    return f"{fewest} to {most} {unit}s"
