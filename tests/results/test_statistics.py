"""Intervals and tests hold their level on simulated runs whose truth is known, at the sizes in use."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from wimfris.results.looks import information, nominal_levels
from wimfris.results.statistics import Estimate, detectable, estimate, linearise, resample, seed_components, selected

IMAGES = 250
SENTENCES_BEYOND_FIRST = 2.5  # Poisson mean: 3.5 sentences an image
SPREADS = (0.0, 0.01, 0.03)  # standard deviation of a system's effect between its seeds
SYSTEMS = 3  # one baseline, two variants
REPLICATIONS = 400
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


def estimates(values: np.ndarray) -> list[Estimate]:
    """Compare every system of (replications, systems, seeds, images) with the first one."""
    return [estimate(system, world[0]) for world in values for system in world[1:]]


def covers(values: np.ndarray, truth: float = 0.0) -> float:
    """Return the share of 95% intervals of `estimates` that cover the true difference."""
    return float(np.mean([abs(one.difference - truth) <= one.half_width(1 - LEVEL) for one in estimates(values)]))


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
    rng = np.random.default_rng(10 * seeds + round(1000 * spread))
    covered = []
    for sums, counts in null_sums():
        effects = spread * rng.standard_normal((len(sums), 3, seeds, 1))
        covered.append(covers(linearise(sums[:, :3, :seeds] + counts * effects, counts.astype(float))))
    # Two intervals of each of 400 replications: the Monte-Carlo error is at most 1.1 points.
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}, Monte-Carlo error at most 0.011"


@pytest.mark.parametrize(
    ("spreads", "seeds"),
    [((1.3, 1.3), (6, 6)), ((2.4, 0.6), (6, 6)), ((0.6, 3.0), (3, 2)), ((0.6, 3.0), (3, 3)), ((0.0, 0.0), (3, 3))],
)
def test_no_system_needs_to_scatter_as_another_does(spreads: tuple[float, float], seeds: tuple[int, int]) -> None:
    """A small part of benchmarks/intervals.py, which simulates whole claims."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1500):
        runs = [
            spread * rng.standard_normal((number, 1)) + rng.standard_normal(50) + rng.standard_normal((number, 50))
            for spread, number in zip(spreads, seeds, strict=True)
        ]
        one = estimate(*runs)
        covered.append(abs(one.difference) <= one.half_width(1 - LEVEL))
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}, Monte-Carlo error 0.006"


def test_a_system_with_two_seeds_is_a_component_of_its_own() -> None:
    variances = np.array([0.3, 0.1])
    assert seed_components(variances, np.array([3, 2])) == ((0.3, 2.0), (0.1, 1.0))
    ((total, df),) = seed_components(variances, np.array([6, 4]))
    assert total == pytest.approx(0.4) and df == pytest.approx(0.4**2 / (0.3**2 / 5 + 0.1**2 / 3))


def test_two_looks_spend_the_error() -> None:
    first, final = nominal_levels(0.05, 0.5)
    z = [stats.norm.isf(level / 2) for level in (first, final)]
    assert z == pytest.approx([2.963, 1.969], abs=1e-3)  # Lan and DeMets (1983), two looks
    assert information(1.0, 0.0, 6, 12) == 0.5 and information(0.0, 1.0, 6, 12) == 1.0
    rng = np.random.default_rng(0)
    for share in (0.5, 0.9):
        levels = nominal_levels(0.05, share)
        draws = rng.standard_normal((400_000, 2))
        at_first = np.sqrt(share) * draws[:, 0] + np.sqrt(1 - share) * draws[:, 1]
        crossed = [
            np.abs(z) > stats.norm.isf(level / 2) for z, level in zip((at_first, draws[:, 0]), levels, strict=True)
        ]
        assert np.mean(crossed[0] | crossed[1]) == pytest.approx(0.05, abs=0.002)


def test_discoveries_are_those_whose_adjusted_interval_excludes_0() -> None:
    assert selected([0.01, 0.04, 0.03, 0.005], 0.05) == (4, 4)
    assert selected([0.5, np.nan, 0.01, 0.9], 0.05) == (1, 3)
    assert selected([], 0.05) == (0, 0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.2, 20) ** 2
        discoveries, tests = selected(p, 0.05)
        assert (p <= 0.05 * max(discoveries, 1) / tests).sum() == discoveries


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
        covered.append(covers(values))
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
    values = np.random.default_rng(0).normal(0.1, 1, (20, 2, 3, 50)) + np.random.default_rng(1).normal(
        0, 0.1, (20, 2, 3, 1)
    )
    for one in estimates(values):
        assert 0 < one.p() <= 1 and one.half_width(one.p()) == pytest.approx(abs(one.difference), rel=1e-6)


def test_equal_seeds_give_a_t_test_over_images_and_equal_images_one_over_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4, 60))
    alike = estimate(*np.broadcast_to(values[:, :1], values.shape))
    assert alike.p() == pytest.approx(stats.ttest_rel(values[0, 0], values[1, 0]).pvalue, rel=1e-5)
    even = estimate(*np.broadcast_to(values[..., :1], values.shape))
    assert even.p() == pytest.approx(stats.ttest_ind(*values[..., 0], equal_var=False).pvalue, rel=1e-5)


def test_detectable_has_eighty_percent_power() -> None:
    assert detectable(1, 1e6, 0.05) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)
    assert np.isnan(detectable(0, 2, 0.05)) and np.isnan(detectable(np.nan, np.nan, 0.05))
    # The noncentral t of the combined df approximates the test's two components; Monte-Carlo error 0.2 points.
    rng = np.random.default_rng(0)
    for seeds, share in ((2, 0.5), (2, 0.9), (3, 0.5), (3, 0.9)):
        quantiles = stats.t.ppf(0.975, [seeds - 1, IMAGES - 1])
        parts = np.array([share, 1 - share])
        half = np.sqrt((quantiles**2 * parts).sum())
        df = 10 ** np.interp(-half, -stats.t.ppf(0.975, 10 ** np.linspace(0, 3, 5000)), np.linspace(0, 3, 5000))
        chi = np.stack([rng.chisquare(k, 40_000) / k for k in (seeds - 1, IMAGES - 1)], axis=-1)
        detected = np.abs(rng.standard_normal(40_000) + detectable(1, df, 0.05)) > np.sqrt(
            (quantiles**2 * parts * chi).sum(-1)
        )
        assert detected.mean() == pytest.approx(0.8, abs=0.03)
