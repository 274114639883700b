"""Intervals and tests hold their level on simulated runs whose truth is known, at the sizes in use."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from wimfris.results.statistics import AnySeed, any_seed, between_seeds, detectable, holm, linearise, resample

IMAGES = 250
SENTENCES_BEYOND_FIRST = 2.5  # Poisson mean: 3.5 sentences an image
SPREADS = (0.0, 0.01, 0.03)  # standard deviation of a system's effect between its seeds
SYSTEMS = 11  # one baseline, ten variants
REPLICATIONS = 3000
LEVEL = 0.95


def simulate(
    rng: np.random.Generator, replications: int, systems: int, seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulate systems without seed effects: IoUs (replications, systems, seeds, sentences), counts and starts.

    The latent score of a sentence sums effects of its image, the sentence, system x image (true differences between
    systems from image to image), run x image and run x sentence (what another seed would change). It is scaled to make
    IoUs bimodal. All replications have the same 250 images: the counts are drawn once per call.
    """
    counts = 1 + rng.poisson(SENTENCES_BEYOND_FIRST, IMAGES)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    by_image = 0.6 * normal(replications, 1, 1, IMAGES) + 0.3 * normal(replications, systems, 1, IMAGES)
    by_image = by_image + 0.3 * normal(replications, systems, seeds, IMAGES)
    latent = np.repeat(by_image, counts, axis=-1)
    latent += 0.5 * normal(replications, 1, 1, counts.sum())
    latent += 0.4 * normal(replications, systems, seeds, counts.sum())
    return 0.92 / (1 + np.exp(-3 * (latent + 0.4))), counts, starts


def pooled_estimate(values: np.ndarray) -> AnySeed:
    """Compare every system of (replications, systems, seeds, images) with the first one, as `compare` does."""
    seeds = values.shape[2]
    variance, df = between_seeds(values.mean(axis=-1), np.ones(values.shape[1:3], dtype=bool))
    return any_seed(values[:, 1:] - values[:, :1], 2 * variance[:, None] / seeds, df)


def pair_alone(differences: np.ndarray, level: float = LEVEL) -> AnySeed:
    """Estimate from the differences (..., seeds, images) of one pair, whose own seeds give the variance."""
    seeds = differences.shape[-2]
    return any_seed(differences, differences.mean(axis=-1).var(axis=-1, ddof=1) / seeds, seeds - 1, level)


@cache
def null_study(seeds: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return p, low and high (REPLICATIONS, variants) of ten variants that differ from the baseline by chance only."""
    rng = np.random.default_rng(10 * seeds + round(1000 * spread))
    estimates = []
    for sums, counts in null_sums():
        effects = spread * rng.standard_normal((*sums.shape[:2], seeds, 1))
        values = linearise(sums[:, :, :seeds] + counts * effects, counts.astype(float))
        estimate = pooled_estimate(values)
        estimates.append((estimate.p, estimate.low, estimate.high))
    p, low, high = (np.concatenate(part) for part in zip(*estimates, strict=True))
    return p, low, high


@cache
def null_sums() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return IoUs summed per image (chunk, SYSTEMS, 3, IMAGES), and sentences per image; shared by tests for speed."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(REPLICATIONS // 40):
        iou, counts, starts = simulate(rng, 40, SYSTEMS, 3)
        parts.append((np.add.reduceat(iou, starts, axis=-1), counts))
    return parts


def test_simulated_sentences_are_like_real_ones() -> None:
    iou, counts, _ = simulate(np.random.default_rng(0), 20, 2, 3)
    assert 0.25 < iou.std() < 0.35
    assert np.mean((iou < 0.2) | (iou > 0.7)) > 0.6  # two modes
    assert 3.2 < counts.mean() < 3.8


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_interval_for_any_seed_covers_the_truth(seeds: int, spread: float) -> None:
    _, low, high = null_study(seeds, spread)
    coverage = np.mean((low <= 0) & (high >= 0))
    # The ten intervals of a replication are dependent: the error is at most that of one, 0.4 points for 3000 at 95%.
    assert coverage >= 0.93, f"covers {coverage:.3f}, Monte-Carlo error at most 0.004"


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_holm_holds_false_alarms_of_a_study(seeds: int, spread: float) -> None:
    p, _, _ = null_study(seeds, spread)
    alarms = np.mean([np.any(holm(family) < 0.05) for family in p])
    # At 5% and 3000 studies the Monte-Carlo error is 0.4 points.
    assert alarms <= 0.07, f"{alarms:.3f} of studies without an effect report one, Monte-Carlo error 0.004"


@pytest.mark.slow
def test_interval_for_any_seed_is_not_wide_without_need() -> None:
    """With a large variance between seeds, the tests are near their level."""
    p, _, _ = null_study(3, 0.03)
    assert np.mean(p < 0.05) > 0.03  # nominal 5%


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_scatter_more_in_some_systems_cost_little(seeds: int) -> None:
    """The pooled variance assumes equal scatter; here that of a system is up to twice or half the typical one."""
    rng = np.random.default_rng(seeds)
    covered, alarms = [], []
    for sums, counts in null_sums():
        spread = 0.02 * 2 ** rng.uniform(-1, 1, (*sums.shape[:2], 1, 1))
        effects = spread * rng.standard_normal((*sums.shape[:2], seeds, 1))
        estimate = pooled_estimate(linearise(sums[:, :, :seeds] + counts * effects, counts.astype(float)))
        covered.append((estimate.low <= 0) & (estimate.high >= 0))
        alarms += [bool(np.any(holm(family) < 0.05)) for family in estimate.p]
    # Monte-Carlo errors 0.4 points
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}"
    assert np.mean(alarms) <= 0.07, f"{np.mean(alarms):.3f} false alarms"


@pytest.mark.long
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("systems", [2, 3, 6])
def test_a_small_study_of_unequally_many_seeds(systems: int, spread: float) -> None:
    """Three seeds of `full`, two of one, two or five variants, 200 images: the extended studies on testA."""
    rng = np.random.default_rng(systems)
    present = np.ones((systems, 3), dtype=bool)
    present[1:, 2] = False
    covered, alarms = [], []
    for sums, counts in null_sums():
        some, sentences = sums[:, :systems, :, :200], counts[:200]
        effects = spread * rng.standard_normal((*some.shape[:3], 1))
        values = linearise(some + sentences * effects, sentences.astype(float))
        variance, df = between_seeds(values.mean(axis=-1), present)
        paired = values[:, :, :2]
        estimate = any_seed(paired[:, 1:] - paired[:, :1], 2 * variance[:, None] / 2, df)
        covered.append((estimate.low <= 0) & (estimate.high >= 0))
        alarms += [bool(np.any(holm(family) < 0.05)) for family in estimate.p]
    # Monte-Carlo errors 0.4 points
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}"
    assert np.mean(alarms) <= 0.07, f"{np.mean(alarms):.3f} false alarms"


def test_variance_between_seeds_is_pooled_over_the_runs_there_are() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]], dtype=bool)
    within = [row[mask] for row, mask in zip(values, present, strict=True)]
    squares = sum(((part - part.mean()) ** 2).sum() for part in within)
    variance, df = between_seeds(values, present)
    assert df == 4 and float(variance) == pytest.approx(squares / 4)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("spread", SPREADS)
def test_interval_for_any_seed_covers_oiou(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(10):
        iou, counts, starts = simulate(rng, 60, 2, seeds)
        area = np.repeat(np.exp(rng.normal(0, 1, (60, 1, 1, IMAGES))), counts, axis=-1)
        iou = np.clip(iou + spread * rng.standard_normal((60, 2, seeds, 1)), 0, 1)
        union = area * 2 / (1 + iou)  # of two masks of equal size
        by_image = [np.add.reduceat(areas, starts, axis=-1) for areas in (iou * union, union)]
        values = linearise(*by_image)
        estimate = pooled_estimate(values)
        covered.append((estimate.low <= 0) & (estimate.high >= 0))
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}, Monte-Carlo error 0.009"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_for_these_seeds_covers_their_difference(seeds: int) -> None:
    """Seeds are fixed: the target is the difference of these runs on all images."""
    rng = np.random.default_rng(3)
    effects = np.array([[0.03, -0.05, 0.01], [0.0, 0.04, -0.06]])[:, :seeds, None]
    truth = (effects[1] - effects[0]).mean()
    covered = []
    for chunk in range(20):
        iou, counts, starts = simulate(rng, 60, 2, seeds)
        sums = np.add.reduceat(iou + effects, starts, axis=-1)
        draws = resample({"miou": (sums, counts.astype(float))}, 1000, chunk)["miou"]  # shared by the 60
        low, high = np.percentile((draws[:, 1] - draws[:, 0]).mean(axis=1), [2.5, 97.5], axis=-1)
        covered.append((low <= truth) & (truth <= high))
    # The coverage is near the level from both sides: this interval is not conservative.
    assert 0.925 <= np.mean(covered) <= 0.975, f"covers {np.mean(covered):.3f}, Monte-Carlo error 0.006"


def test_linearised_values_are_the_jackknife_to_first_order() -> None:
    rng = np.random.default_rng(0)
    union = rng.uniform(1, 5, 400)
    intersection = union * rng.uniform(0, 1, 400)
    left_out = (intersection.sum() - intersection) / (union.sum() - union)
    pseudo = 400 * intersection.sum() / union.sum() - 399 * left_out
    values = linearise(intersection, union)
    assert values.mean() == pytest.approx(intersection.sum() / union.sum(), abs=1e-12)
    assert values == pytest.approx(pseudo, abs=0.02)


def test_p_is_dual_to_the_interval() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, (30, 3, 50)) + np.random.default_rng(1).normal(0, 0.1, (30, 3, 1))
    p = pair_alone(values).p
    assert 0 < p.min() < p.max() < 1
    for row, alpha in zip(values, p, strict=True):
        estimate = pair_alone(row, 1 - alpha)
        assert min(abs(estimate.low), abs(estimate.high)) == pytest.approx(0, abs=1e-6)


def test_df_lie_between_those_of_seeds_and_of_images_and_give_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3, 60))
    estimate = pair_alone(values)
    assert np.all((estimate.df > 2) & (estimate.df < 59))
    half = stats.t.ppf(0.975, estimate.df) * estimate.standard_error
    assert estimate.high - estimate.difference == pytest.approx(half, rel=1e-9)
    alike = pair_alone(np.broadcast_to(values[:, :1], values.shape))  # equal seeds: a t test over images
    assert alike.p == pytest.approx(stats.ttest_1samp(values[:, 0], 0, axis=-1).pvalue, rel=1e-6)
    even = pair_alone(np.broadcast_to(values[..., :1], values.shape))  # equal images: a t test over seeds
    assert even.p == pytest.approx(stats.ttest_1samp(values[..., 0], 0, axis=-1).pvalue, rel=1e-6)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust of R
    assert holm([0.5, np.nan, 0.01, 0.9]) == pytest.approx([1, np.nan, 0.03, 1], nan_ok=True)
    assert holm([]).size == 0


def test_detectable_has_eighty_percent_power() -> None:
    assert detectable(1, 1e6) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)
    assert np.isnan(detectable(0, 2)) and np.isnan(detectable(np.nan, np.nan))
    # The noncentral t of the combined df approximates the test's two components; Monte-Carlo error 0.2 points.
    rng = np.random.default_rng(0)
    for seeds, share in ((2, 0.5), (2, 0.9), (3, 0.5), (3, 0.9)):
        quantiles = stats.t.ppf(0.975, [seeds - 1, IMAGES - 1])
        parts = np.array([share, 1 - share])
        half = np.sqrt((quantiles**2 * parts).sum())
        df = 10 ** np.interp(-half, -stats.t.ppf(0.975, 10 ** np.linspace(0, 3, 5000)), np.linspace(0, 3, 5000))
        chi = np.stack([rng.chisquare(k, 40_000) / k for k in (seeds - 1, IMAGES - 1)], axis=-1)
        detected = np.abs(rng.standard_normal(40_000) + detectable(1, df)) > np.sqrt(
            (quantiles**2 * parts * chi).sum(-1)
        )
        assert detected.mean() == pytest.approx(0.8, abs=0.03)
