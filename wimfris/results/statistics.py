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

where a system's runs are the units that were drawn. The images contribute V_image = var_i(z-bar_A,i - z-bar_B,i) / I,
with z-bar the mean over a system's seeds. The seeds contribute V_seed = s_A^2 / S_A + s_B^2 / S_B, with s^2 the
variance of R_s between the seeds of one system and nu degrees of freedom by Welch (1938) and Satterthwaite (1946). Two
seeds estimate nu too poorly: where a system has two, each system is a component of its own, with its own t quantile. So
no system is assumed to scatter as another does, and a comparison depends on its own two systems alone. That a seed
number may move both systems alike is not used, which is cautious. In expectation V_seed + V_image is at least the
variance of the estimate: it counts the interaction twice, as the pigeonhole bootstrap does (Owen 2007; Cameron, Gelbach
& Miller 2011).
Banerjee's interval (1960, Sankhya 22: 357) gives each component its own quantile,

    half width^2 = t_nu^2 V_seed + t_{I-1}^2 V_image,

and covers at least its level whatever the true variances are, if each component's own interval does. Proof: let F be
the distribution function of chi^2_1, which is concave, u_k independent chi^2 over their degrees of freedom, and w_k
each component's share of the variance. Then F(sum_k w_k t_k^2 u_k) >= sum_k w_k F(t_k^2 u_k), and the mean of every
F(t_k^2 u_k) is the level. benchmarks/intervals.py compares this V_seed with pooled and moderated ones: it is the
narrowest that covers 93% in all its normal settings.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

POWER = 0.8
"""The power at which a difference counts as detectable."""

_SMALLEST_P = 1e-16
_CHI_QUANTILES = 2000  # gives the power to 1e-4
_CHUNK = 500  # resamples at a time: bounds the weights to 500 x images

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """The difference of two systems for any seed and any image, and what its interval is made of."""

    difference: float
    seed_parts: tuple[tuple[float, float], ...]  # components of V_seed: variance, degrees of freedom; () if unknown
    image_variance: float  # V_image
    images: int

    @property
    def seed_variance(self) -> float:
        """V_seed; NaN if a system has one seed."""
        return sum(variance for variance, _ in self.seed_parts) if self.seed_parts else float("nan")

    @property
    def standard_error(self) -> float:
        """The root of V_seed + V_image."""
        return float(np.sqrt(self.seed_variance + self.image_variance))

    def half_width(self, alpha: float) -> float:
        """Return half the width of the interval of level 1 - alpha; NaN if a system has one seed."""
        if not self.seed_parts:
            return float("nan")
        parts = (*self.seed_parts, (self.image_variance, self.images - 1.0))
        return float(np.sqrt(sum(special.stdtrit(df, alpha / 2) ** 2 * variance for variance, df in parts)))

    def p(self) -> float:
        """Return the two-sided p value, the smallest alpha whose interval excludes 0; NaN if a system has one seed."""
        size = abs(self.difference)
        if not self.seed_parts or size == 0:
            return 1.0 if self.seed_parts else float("nan")
        if self.half_width(_SMALLEST_P) < size:
            return _SMALLEST_P
        return float(np.exp(optimize.brentq(lambda log: self.half_width(np.exp(log)) - size, np.log(_SMALLEST_P), 0.0)))

    def detectable(self, alpha: float) -> float:
        """Return the smallest true difference that the interval of level 1 - alpha separates from 0 in 80% of
        experiments; NaN if a system has one seed, or if nothing varies.
        """
        error = self.standard_error
        return detectable(error, self._df(alpha), alpha) if error > 0 else float("nan")

    def power(self, effect: float, alpha: float) -> float:
        """Return how often the interval of level 1 - alpha separates a true difference from 0; NaN if a system has one
        seed, or if nothing varies.
        """
        error = self.standard_error
        return _power(effect / error, _thresholds(self._df(alpha), alpha)) if error > 0 else float("nan")

    def _df(self, alpha: float) -> float:
        """Return the degrees of freedom of the t quantile that gives the same interval with the standard error."""
        critical = self.half_width(alpha) / self.standard_error
        log_df = np.linspace(0, np.log(1e6), 400)
        return float(np.exp(np.interp(-critical, special.stdtrit(np.exp(log_df), alpha / 2), log_df)))


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


def estimate(system: Floats, rival: Floats) -> Estimate:
    """Compare two systems by the linearised values of their runs, (seeds, images) each; see the module."""
    difference, images = float(system.mean() - rival.mean()), system.shape[-1]
    by_image = system.mean(axis=0) - rival.mean(axis=0)
    image_variance = float(by_image.var(ddof=1) / images) if images > 1 else float("nan")
    counts = np.array([len(system), len(rival)])
    if counts.min() < 2 or images < 2:
        return Estimate(difference, (), image_variance, images)
    variances = np.array([runs.mean(axis=-1).var(ddof=1) for runs in (system, rival)]) / counts
    return Estimate(difference, seed_components(variances, counts), image_variance, images)


def seed_components(variances: Floats, counts: NDArray[np.int_]) -> tuple[tuple[float, float], ...]:
    """Return the components of V_seed with their degrees of freedom.

    variances: of the mean over the seeds of each of the two systems. counts: their seeds, at least 2.
    """
    freedom = counts - 1.0
    total = float(variances.sum())
    if freedom.min() < 2:
        return tuple((float(variance), float(df)) for variance, df in zip(variances, freedom, strict=True))
    df = total**2 / float((variances**2 / freedom).sum()) if total > 0 else float(freedom.sum())
    return ((total, df),)


def detectable(standard_error: float, df: float, alpha: float) -> float:
    """Return the smallest true difference that a two-sided t test of this error, df and level detects with 80% power.

    Returns NaN if the standard error is NaN or 0: runs without any spread do not show how much others would vary.
    """
    if not standard_error > 0 or not np.isfinite(df):
        return float("nan")
    thresholds = _thresholds(df, alpha)
    most = 3 * float(special.stdtrit(df, 1 - alpha / 2)) + 5
    return standard_error * float(optimize.brentq(lambda shift: _power(shift, thresholds) - POWER, 0.0, most))


def _thresholds(df: float, alpha: float) -> Floats:
    """Return what Z + shift has to exceed in absolute value, at quantiles of the chi^2 below it; see `_power`."""
    ranks = (np.arange(_CHI_QUANTILES) + 0.5) / _CHI_QUANTILES
    return np.asarray(special.stdtrit(df, 1 - alpha / 2) * np.sqrt(special.chdtri(df, 1 - ranks) / df))


def _power(shift: float, thresholds: Floats) -> float:
    """Return P(|T| > t_df) for T = (Z + shift) / sqrt(chi^2_df / df), noncentral t, as a mean over quantiles of the
    chi^2: `scipy.stats.nct` gives NaN at the few df and large differences of two seeds.
    """
    return float(np.mean(special.ndtr(shift - thresholds) + special.ndtr(-shift - thresholds)))


def selected(p: ArrayLike, q: float) -> tuple[int, int]:
    """Return how many p values Benjamini and Hochberg's procedure (1995) selects at q, and how many there are; NaN is
    no test.

    The intervals of Benjamini and Yekutieli (2005), of level 1 - q max(selected, 1) / all, then exclude 0 for the
    selected comparisons and for no other: their false coverage rate is at most q.
    """
    tested = np.sort(np.asarray(p, dtype=np.float64)[~np.isnan(p)])
    below = np.flatnonzero(tested <= q * np.arange(1, tested.size + 1) / max(tested.size, 1))
    return (int(below[-1]) + 1 if below.size else 0), tested.size


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, broadcast; 0 where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.broadcast_to(denominator != 0, shape))
