"""Intervals, tests and power of paired differences, on arrays. docs/statistics.md explains them without equations.

The sentences of one image share its objects, and the sentences of one run share its weights, so neither n sentences nor
n x S scores are independent. The units that were drawn are images and seeds: sentences are never resampled by
themselves. Every difference has two intervals, which answer two questions:

* *these seeds*: would these trained networks differ as much on other images? A bootstrap over images, each with all its
  sentences and seeds, the same resampled images for both systems (Field & Welsh 2007, "Bootstrapping clustered data").
* *any seed*: would the two methods, trained again from other seeds, differ as much on other images? Crossed random
  effects, derived below.

Every metric is a ratio of sums over images, R = sum_i N_i / sum_i M_i: IoUs over sentences (mIoU), hits over sentences
(Pr@0.7), intersections over unions (oIoU). The same estimator therefore serves all. Image i's linearised value under
seed s is z_si = R_s + I (N_si - R_s M_si) / sum_j M_sj (the influence function; its mean over images is R_s). The
differences of two systems' values, d_si, follow the two-way model

    d_si = difference + seed_s + image_i + (seed x image)_si,

with seeds paired by their number. The images contribute V_image = var_i(mean_s d_si) / I. Two or three seeds of one
pair estimate V_seed poorly, so it is pooled over the systems of a table: with s^2 the variance of R_s between the seeds
of one system, pooled over the systems with sum_v (S_v - 1) degrees of freedom as in an analysis of variance,
V_seed = 2 s^2 / S. This assumes that seeds scatter equally in all systems of a table. It also assumes that a seed
number does not move two systems alike, which is cautious. In expectation V_seed + V_image is at least the variance of
the estimate: it counts the interaction twice, as the pigeonhole bootstrap does (Owen 2007; Cameron, Gelbach & Miller
2011). Banerjee's interval (1960, Sankhya 22: 357) gives each component its own quantile,

    half width^2 = t_nu^2 V_seed + t_{I-1}^2 V_image,   nu = sum_v (S_v - 1),

and covers at least its level whatever the true variances are. Proof: let F be the distribution function of chi^2_1,
which is concave, u_k independent chi^2 over their degrees of freedom, and w_k each component's share of the variance.
Then F(sum_k w_k t_k^2 u_k) >= sum_k w_k F(t_k^2 u_k), and the mean of every F(t_k^2 u_k) is the level. A pair alone has
nu = 2 (S - 1): t_2 = 4.3 with two seeds, t_4 = 2.8 with three.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

SIGNIFICANCE = 0.05
"""The level of the two-sided tests, and the level at which `df` and `detectable` are computed."""

POWER = 0.8
"""The power at which a difference counts as detectable."""

_SMALLEST_P = 1e-16
_CHI_QUANTILES = 2000  # gives the power to 1e-4
_CHUNK = 500  # resamples at a time: bounds the weights to 500 x images

Floats = NDArray[np.float64]


class AnySeed(NamedTuple):
    """Estimates for any seed and any image; arrays of one shape (...)."""

    difference: Floats
    low: Floats
    high: Floats
    standard_error: Floats  # sqrt(V_seed + V_image)
    df: Floats  # of the single t whose two-sided 5% quantile times the standard error is the half width
    p: Floats  # two-sided: the smallest 1 - level whose interval excludes 0


def linearise(numerator: Floats, denominator: Floats) -> Floats:
    """Return linearised values (..., images), whose mean over images is the ratio of the two sums.

    `numerator` and `denominator` are sums per image, broadcastable to (..., images). If the denominators sum to 0, the
    ratio is 0, as in `wimfris.metrics.summarise`.
    """
    whole = denominator.sum(axis=-1, keepdims=True)
    ratio = _divide(numerator.sum(axis=-1, keepdims=True), whole)
    return ratio + denominator.shape[-1] * _divide(numerator - ratio * denominator, whole)


def resample(ratios: Mapping[str, tuple[Floats, Floats]], resamples: int = 10_000, seed: int = 0) -> dict[str, Floats]:
    """Bootstrap ratios of sums over images: (..., images) numerators and denominators -> (..., resamples) ratios.

    A resample is a row of multinomial counts, one an image, so its sums are a matrix product. Every entry of `ratios`
    and every element of its leading dimensions uses the same resamples, which pairs the systems.
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
    """Return the variance between the seeds of one system, pooled over systems, and its df, sum_v (S_v - 1).

    `values` (..., systems, seeds) are the metric of each run; `present` (systems, seeds) marks the runs that exist. The
    variance has shape (...).
    """
    counts = present.sum(axis=-1, keepdims=True)
    existing = np.where(present, values, 0.0)
    deviations = np.where(present, values - _divide(existing.sum(axis=-1, keepdims=True), counts), 0.0)
    df = float((counts - 1).clip(min=0).sum())
    return _divide((deviations**2).sum(axis=(-2, -1)), np.asarray(df)), df


def any_seed(differences: Floats, seed_variance: Floats, seed_df: float, level: float = 0.95) -> AnySeed:
    """Estimate the difference for any seed and image from paired, linearised differences (..., seeds, images).

    `seed_variance` (...) is V_seed, the variance that seeds add to the mean difference, with `seed_df` degrees of
    freedom, see `between_seeds`. With one seed or one image everything but the difference is NaN.
    """
    seeds, images = differences.shape[-2:]
    difference = differences.mean(axis=(-2, -1))
    if seeds < 2 or images < 2:
        unknown = np.full_like(difference, np.nan)
        return AnySeed(difference, unknown, unknown, unknown, unknown, unknown)
    parts = (seed_variance, differences.mean(axis=-2).var(axis=-1, ddof=1) / images)
    dfs = (seed_df, float(images - 1))

    def half_width(alpha: ArrayLike) -> Floats:
        quantiles = (special.stdtrit(df, np.asarray(alpha) / 2) ** 2 for df in dfs)
        return np.sqrt(sum(quantile * part for quantile, part in zip(quantiles, parts, strict=True)))

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
    """Return the smallest true difference that a two-sided 5% t test of this error and df detects with 80% power.

    Solves P(|T| > t_df) = 0.8 for T = (Z + difference / standard_error) / sqrt(chi^2_df / df), noncentral t, as a mean
    over quantiles of the chi^2: `scipy.stats.nct` gives NaN at the few df and large differences of two seeds. Returns
    NaN if the standard error is NaN or 0: runs without any spread do not show how much others would vary.
    """
    if not standard_error > 0 or not np.isfinite(df):
        return float("nan")
    critical = float(special.stdtrit(df, 1 - SIGNIFICANCE / 2))
    ranks = (np.arange(_CHI_QUANTILES) + 0.5) / _CHI_QUANTILES
    thresholds = critical * np.sqrt(special.chdtri(df, 1 - ranks) / df)

    def excess_power(shift: float) -> float:
        return float(np.mean(special.ndtr(shift - thresholds) + special.ndtr(-shift - thresholds))) - POWER

    return standard_error * float(optimize.brentq(excess_power, 0.0, 3 * critical))


def holm(p: ArrayLike) -> Floats:
    """Correct the p values (N,) of one family (Holm 1979): max over j <= i of min(1, (m - j + 1) p_(j)).

    NaN stays NaN and is not counted in m: what could not be tested is not a test.
    """
    raw = np.asarray(p, dtype=np.float64)
    corrected = np.full_like(raw, np.nan)
    tested = np.flatnonzero(~np.isnan(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    scaled = raw[order] * np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def _bisect(go_up: Callable[[Floats], NDArray[np.bool_]], low: float, high: float, like: Floats) -> Floats:
    """Return where `go_up` turns from true to false between low and high, for every element of an array like `like`."""
    bottom, top = np.full_like(like, low), np.full_like(like, high)
    for _ in range(50):
        middle = (bottom + top) / 2
        up = go_up(middle)
        bottom, top = np.where(up, middle, bottom), np.where(up, top, middle)
    return (bottom + top) / 2


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, broadcast; 0 where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.broadcast_to(denominator != 0, shape))
