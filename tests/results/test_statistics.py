"""Intervals and tests keep what they promise on simulated runs whose truth is known, at the sizes in use."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wimfris.errors import UserError
from wimfris.results.statistics import (
    AnySeed,
    any_seed,
    between_seeds,
    compare,
    detectable,
    holm,
    linearise,
    power_line,
    resample,
    separated,
)

IMAGES = 250
SENTENCES_BEYOND_FIRST = 2.5  # Poisson mean: 3.5 sentences an image
SPREADS = (0.0, 0.01, 0.03)  # standard deviation of a system's effect between its seeds
SYSTEMS = 11  # one baseline, ten variants
REPLICATIONS = 3000
LEVEL = 0.95


def simulate(
    rng: np.random.Generator, replications: int, systems: int, seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exchangeable systems without seed effects: IoUs (replications, systems, seeds, sentences), counts and starts.

    A sentence's latent score is the sum of its image, itself, system x image (the systems' true differences from image
    to image), and run x image and run x sentence (what another seed would change); steep, so that IoUs are bimodal.
    The sentences of all replications' images lie along one axis of 250 images: the counts are drawn once a call.
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
    """Every system but the first of (replications, systems, seeds, images) against it, as `compare` does."""
    seeds = values.shape[2]
    variance, df = between_seeds(values.mean(axis=-1), np.ones(values.shape[1:3], dtype=bool))
    return any_seed(values[:, 1:] - values[:, :1], LEVEL, (2 * variance[:, None] / seeds, df))


@cache
def null_study(seeds: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, low and high (REPLICATIONS, variants) of ten variants that differ from their baseline in nothing but luck."""
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
    """IoUs summed per image (chunk, SYSTEMS, 3, IMAGES), and sentences per image: shared by all studies for speed."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(REPLICATIONS // 40):
        iou, counts, starts = simulate(rng, 40, SYSTEMS, 3)
        parts.append((np.add.reduceat(iou, starts, axis=-1), counts))
    return parts


def records(
    systems: dict[str, int], *, images: int = 40, seed: int = 0, shift: float = 0.0, split: str = "val"
) -> pd.DataFrame:
    """Records of simulated runs, systems -> number of seeds; variants other than `full` get `shift` more of a union."""
    rng = np.random.default_rng(seed)
    counts = 1 + rng.poisson(SENTENCES_BEYOND_FIRST, images)
    image = np.repeat(np.arange(images), counts)
    area = rng.integers(50, 2000, images)[image]
    difficulty = rng.normal(size=images)[image] + 0.5 * rng.normal(size=image.size)
    parts = []
    for system, seeds in systems.items():
        for number in range(seeds):
            iou = 1 / (1 + np.exp(-3 * (difficulty + 0.5 * rng.normal(size=image.size))))
            iou = np.clip(iou + (shift if system != "full" else 0), 0, 1)
            union = (area * rng.uniform(1, 1.5, image.size)).astype(int)
            parts.append(
                pd.DataFrame(
                    {
                        "run": f"{system}-{number}",
                        "variant": system,
                        "seed": number,
                        "dataset": "scenes",
                        "scale": "tiny",
                        "protocol": "cris",
                        "split": split,
                        "condition": "sentence",
                        "ref_id": image,
                        "sent_id": np.arange(image.size),
                        "image_id": image,
                        "sentence": "thing",
                        "kind": "",
                        "target_area": area,
                        "intersection": (iou * union).astype(int),
                        "union": union,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def quick(frame: pd.DataFrame, *variants: str, **options: object) -> pd.DataFrame:
    return compare(frame, variants or ("plain",), "full", **{"split": "val", "resamples": 300} | options)  # type: ignore[arg-type]


def test_simulated_sentences_are_like_real_ones() -> None:
    iou, counts, _ = simulate(np.random.default_rng(0), 20, 2, 3)
    assert 0.25 < iou.std() < 0.35
    assert np.mean((iou < 0.2) | (iou > 0.7)) > 0.6  # two modes
    assert 3.2 < counts.mean() < 3.8


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_interval_for_any_seed_covers_the_truth(seeds: int, spread: float) -> None:
    _, low, high = null_study(seeds, spread)
    coverage = np.mean((low <= 0) & (high >= 0))
    # Ten dependent intervals a replication: at most the Monte-Carlo error of one each, 0.4 points for 3000 at 95%.
    assert coverage >= 0.93, f"covers {coverage:.3f}, Monte-Carlo error at most 0.004"


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seeds", [2, 3])
def test_holm_holds_false_alarms_of_a_study(seeds: int, spread: float) -> None:
    p, _, _ = null_study(seeds, spread)
    alarms = np.mean([np.any(holm(family) < 0.05) for family in p])
    # At 5% and 3000 studies the Monte-Carlo error is 0.4 points.
    assert alarms <= 0.07, f"{alarms:.3f} of studies without any effect report one, Monte-Carlo error 0.004"


def test_interval_for_any_seed_is_not_wide_without_need() -> None:
    """Where seeds differ much, the tests are near their level."""
    p, _, _ = null_study(3, 0.03)
    assert np.mean(p < 0.05) > 0.03  # nominal 5%


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_scatter_more_in_some_systems_cost_little(seeds: int) -> None:
    """The pooled variance assumes one scatter for all; here a system's is up to twice or half of the typical one."""
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


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("systems", [2, 3, 6])
def test_a_small_study_of_unequally_many_seeds(systems: int, spread: float) -> None:
    """`full` from three seeds, one variant, two or five from two, on 200 images: the extended studies on testA."""
    rng = np.random.default_rng(systems)
    present = np.ones((systems, 3), dtype=bool)
    present[1:, 2] = False
    covered, alarms = [], []
    for sums, counts in null_sums():
        some, of = sums[:, :systems, :, :200], counts[:200]
        effects = spread * rng.standard_normal((*some.shape[:3], 1))
        values = linearise(some + of * effects, of.astype(float))
        variance, df = between_seeds(values.mean(axis=-1), present)
        paired = values[:, :, :2]
        estimate = any_seed(paired[:, 1:] - paired[:, :1], LEVEL, (2 * variance[:, None] / 2, df))
        covered.append((estimate.low <= 0) & (estimate.high >= 0))
        alarms += [bool(np.any(holm(family) < 0.05)) for family in estimate.p]
    # Monte-Carlo errors 0.4 points
    assert np.mean(covered) >= 0.93, f"covers {np.mean(covered):.3f}"
    assert np.mean(alarms) <= 0.07, f"{np.mean(alarms):.3f} false alarms"


def test_variance_between_seeds_is_pooled_over_the_runs_there_are() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    present = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]], dtype=bool)
    within = [row[there] for row, there in zip(values, present, strict=True)]
    squares = sum(((part - part.mean()) ** 2).sum() for part in within)
    variance, df = between_seeds(values, present)
    assert df == 4 and float(variance) == pytest.approx(squares / 4)


def test_pooled_systems_lend_their_seeds_and_nothing_else() -> None:
    frame = records({"full": 3, "plain": 3, "other": 3}, shift=0.05)
    alone, lent = quick(frame), quick(frame, pool=("full", "other"))
    together = quick(frame, "plain", "other")
    together = together[together["variant"] == "plain"].drop(columns="p_holm").reset_index(drop=True)
    pd.testing.assert_frame_equal(lent.drop(columns="p_holm"), together)
    rest = ["any_low", "any_high", "standard_error", "df", "p", "p_holm", "detectable"]
    pd.testing.assert_frame_equal(alone.drop(columns=rest), lent.drop(columns=rest))


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


@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_for_these_seeds_covers_their_difference(seeds: int) -> None:
    """Seeds are fixed: the target is the difference that these runs would show on all images."""
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
    # Near the level from both sides: this one has no reason to be conservative.
    assert 0.925 <= np.mean(covered) <= 0.975, f"covers {np.mean(covered):.3f}, Monte-Carlo error 0.006"


def test_metrics_and_resamples_equal_brute_force() -> None:
    frame = records({"full": 3, "plain": 2}, shift=0.05)
    table = quick(frame, resamples=40).set_index("metric")
    seeds = frame[frame["seed"] < 2]

    def metrics(of: pd.DataFrame) -> dict[str, list[float]]:
        runs = [run for _, run in of.groupby("seed")]
        return {
            "miou": [(run["intersection"] / run["union"]).mean() for run in runs],
            "oiou": [run["intersection"].sum() / run["union"].sum() for run in runs],
            "pr70": [(run["intersection"] / run["union"] > 0.7).mean() for run in runs],
        }

    variant, baseline = (metrics(seeds[seeds["variant"] == system]) for system in ("plain", "full"))
    for metric, row in table.iterrows():
        one, other = np.array(variant[str(metric)]), np.array(baseline[str(metric)])
        assert row["value"] == pytest.approx(one.mean(), abs=1e-12)
        assert row["baseline_value"] == pytest.approx(other.mean(), abs=1e-12)
        assert row["difference"] == pytest.approx((one - other).mean(), abs=1e-12)
        assert row["sd"] == pytest.approx(one.std(ddof=1), abs=1e-12)
        assert row["baseline_sd"] == pytest.approx(other.std(ddof=1), abs=1e-12)
        assert row["difference_sd"] == pytest.approx((one - other).std(ddof=1), abs=1e-12)
    assert set(table["seeds"]) == {2} and set(table["images"]) == {40}

    drawn = np.random.default_rng(0).integers(40, size=(40, 40))  # the same images for both systems, with all sentences
    by_image = dict(list(seeds.groupby(["variant", "image_id"])))
    draws: dict[str, list[float]] = {metric: [] for metric in variant}
    for images in drawn:
        pair = [metrics(pd.concat([by_image[system, image] for image in images])) for system in ("plain", "full")]
        for metric in draws:
            draws[metric].append(float(np.mean(pair[0][metric]) - np.mean(pair[1][metric])))
    for metric, row in table.iterrows():
        expected = np.percentile(draws[str(metric)], [2.5, 97.5])
        assert [row["these_low"], row["these_high"]] == pytest.approx(expected, abs=1e-12)


def test_linearised_values_are_the_jackknife_to_first_order() -> None:
    rng = np.random.default_rng(0)
    union = rng.uniform(1, 5, 400)
    intersection = union * rng.uniform(0, 1, 400)
    left_out = (intersection.sum() - intersection) / (union.sum() - union)
    pseudo = 400 * intersection.sum() / union.sum() - 399 * left_out
    values = linearise(intersection, union)
    assert values.mean() == pytest.approx(intersection.sum() / union.sum(), abs=1e-12)
    assert values == pytest.approx(pseudo, abs=0.02)


def test_pr70_is_strict() -> None:
    frame = records({"full": 2, "plain": 2})
    frame["union"] = 10
    frame["intersection"] = np.where(frame["variant"] == "full", 7, 8)
    row = quick(frame).set_index("metric").loc["pr70"]
    assert (row["value"], row["baseline_value"]) == (1, 0)


def test_p_is_dual_to_the_interval() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, (30, 3, 50)) + np.random.default_rng(1).normal(0, 0.1, (30, 3, 1))
    p = any_seed(values).p
    assert 0 < p.min() < p.max() < 1
    for row, alpha in zip(values, p, strict=True):
        estimate = any_seed(row, 1 - alpha)
        assert min(abs(estimate.low), abs(estimate.high)) == pytest.approx(0, abs=1e-6)


def test_df_lie_between_those_of_seeds_and_of_images_and_give_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3, 60))
    estimate = any_seed(values)
    assert np.all((estimate.df > 2) & (estimate.df < 59))
    half = stats.t.ppf(0.975, estimate.df) * estimate.standard_error
    assert estimate.high - estimate.difference == pytest.approx(half, rel=1e-9)
    alike = any_seed(np.broadcast_to(values[:, :1], values.shape))  # seeds that do not differ: a t test over images
    assert alike.p == pytest.approx(stats.ttest_1samp(values[:, 0], 0, axis=-1).pvalue, rel=1e-6)
    even = any_seed(np.broadcast_to(values[..., :1], values.shape))  # images that do not differ: one over seeds
    assert even.p == pytest.approx(stats.ttest_1samp(values[..., 0], 0, axis=-1).pvalue, rel=1e-6)


def test_one_seed_says_nothing_of_any_seed() -> None:
    table = quick(records({"full": 3, "plain": 1}, shift=0.1))
    absent = ["any_low", "any_high", "standard_error", "df", "p", "p_holm", "sd", "baseline_sd", "difference_sd"]
    assert table[[*absent, "detectable"]].isna().all(axis=None)
    assert table[["value", "difference", "these_low", "these_high", "improvement"]].notna().all(axis=None)
    assert not any(separated(row) for _, row in table.iterrows())
    assert power_line(table) == (
        "With 40 images and 1 seed a side, no difference in mIoU could have been shown to hold for any seed."
    )


def test_identical_systems_differ_by_nothing() -> None:
    full = records({"full": 3})
    copy = full.assign(variant="plain", run=full["run"].str.replace("full", "plain"))
    table = quick(pd.concat([full, copy]))
    assert (table[["difference", "these_low", "these_high"]] == 0).all(axis=None)
    assert (table[["p", "p_holm"]] == 1).all(axis=None)
    assert (table["any_low"] == -table["any_high"]).all()  # other seeds would tell them apart


def test_improvement_counts_sentences_and_ties_half() -> None:
    frame = records({"full": 2, "plain": 2})
    frame["union"] = 10
    frame["intersection"] = 5
    assert set(quick(frame)["improvement"]) == {0.5}
    frame.loc[(frame["variant"] == "plain") & (frame["seed"] == 0), "intersection"] = 6
    assert set(quick(frame)["improvement"]) == {0.75}  # one of two runs wins everywhere, the other ties
    frame.loc[frame["variant"] == "plain", "intersection"] = 4
    assert set(quick(frame)["improvement"]) == {0.0}


def test_a_clear_difference_is_separated_and_a_null_one_is_not() -> None:
    frame = pd.concat([records({"full": 3, "better": 3}, shift=0.2), records({"same": 3})], ignore_index=True)
    table = quick(frame, "better", "same")
    primary = {row["variant"]: row for _, row in table[table["metric"] == "miou"].iterrows()}
    assert separated(primary["better"]) and not separated(primary["same"])
    assert primary["better"]["improvement"] > 0.6
    assert np.all(table["these_high"] - table["these_low"] <= table["any_high"] - table["any_low"])


def test_order_of_records_does_not_matter_and_the_seed_does() -> None:
    frame = records({"full": 3, "plain": 3, "other": 2}, shift=0.02)
    table = quick(frame, "plain", "other")
    pd.testing.assert_frame_equal(
        table, quick(frame.sample(frac=1, random_state=0), "plain", "other"), check_exact=True
    )
    swapped = quick(frame, "other", "plain").sort_values(["variant", "metric"], ignore_index=True)
    pd.testing.assert_frame_equal(table.sort_values(["variant", "metric"], ignore_index=True), swapped)
    another = quick(frame, "plain", "other", seed=1)
    chance = ["these_low", "these_high"]
    assert (table[chance] != another[chance]).any(axis=None)
    pd.testing.assert_frame_equal(table.drop(columns=chance), another.drop(columns=chance), check_exact=True)


def test_other_splits_and_conditions_are_left_out() -> None:
    frame = records({"full": 2, "plain": 2})
    controls = frame.assign(condition="shuffled", intersection=0)
    elsewhere = records({"full": 2, "plain": 2}, seed=5, split="testA")
    pd.testing.assert_frame_equal(quick(frame), quick(pd.concat([frame, controls, elsewhere], ignore_index=True)))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # p.adjust of R
    assert holm([0.5, np.nan, 0.01, 0.9]) == pytest.approx([1, np.nan, 0.03, 1], nan_ok=True)
    assert holm([]).size == 0


def test_holm_is_within_a_metric() -> None:
    table = quick(records({"full": 3, "a": 3, "b": 3}), "a", "b")
    for _, part in table.groupby("metric"):
        assert part["p_holm"].to_numpy() == pytest.approx(holm(part["p"]))


def test_detectable_has_eighty_percent_power() -> None:
    assert detectable(1, 1e6) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)
    assert np.isnan(detectable(0, 2)) and np.isnan(detectable(np.nan, np.nan))
    # The noncentral t of the combined df stands for the test's own two components; Monte-Carlo error 0.2 points.
    rng = np.random.default_rng(0)
    for seeds, share in ((2, 0.5), (2, 0.9), (3, 0.5), (3, 0.9)):
        quantiles = stats.t.ppf(0.975, [seeds - 1, IMAGES - 1])
        parts = np.array([share, 1 - share])
        half = np.sqrt((quantiles**2 * parts).sum())
        df = 10 ** np.interp(-half, -stats.t.ppf(0.975, 10 ** np.linspace(0, 3, 5000)), np.linspace(0, 3, 5000))
        chi = np.stack([rng.chisquare(k, 40_000) / k for k in (seeds - 1, IMAGES - 1)], axis=-1)
        found = np.abs(rng.standard_normal(40_000) + detectable(1, df)) > np.sqrt((quantiles**2 * parts * chi).sum(-1))
        assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_power_line() -> None:
    table = pd.DataFrame(
        {
            "metric": ["miou", "oiou", "miou", "miou"],
            "images": 250,
            "seeds": [2, 2, 3, 3],
            "detectable": [0.05, 0.9, 0.02, 0.03],
        }
    )
    assert power_line(table) == (
        "With 250 images and 2 to 3 seeds a side, a difference in mIoU of 3.0 points (median over 3 comparisons, from "
        "2.0 to 5.0) is the smallest that had an 80% chance to be shown for any seed, at a two-sided 5% before "
        "correction for several comparisons."
    )
    assert "of 2.0 points is" in power_line(table.iloc[[2]])


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("dataset", "refcoco", "val: data sets 'refcoco' (run plain-1) and 'scenes' (run full-0)"),
        ("scale", "base", "val: scales 'base' (run plain-1) and 'tiny' (run full-0)"),
        ("protocol", "lavt", "protocols 'cris' (run full-0) and 'lavt' (run plain-1)"),
        ("sent_id", -1, "sentence -1 of object 0 is there twice in run plain-1"),
        ("image_id", 99, "run plain-1 has other images or targets for its sentences than run full-0"),
        ("target_area", 1, "run plain-1 has other images or targets for its sentences than run full-0"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(column: str, value: str | int, told: str) -> None:
    frame = records({"full": 2, "plain": 2})
    frame.loc[frame["run"] == "plain-1", column] = value
    with pytest.raises(UserError) as refusal:
        quick(frame)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_sentences_runs_and_seeds_are_refused() -> None:
    frame = records({"full": 2, "plain": 2})
    fewer = frame.drop(frame.index[-1])
    with pytest.raises(
        UserError, match=r"run plain-1 \(\d+ sentences\) was not evaluated on the sentences of run full-0"
    ):
        quick(fewer)
    with pytest.raises(UserError, match="val: no records of absent"):
        quick(frame, "absent")
    with pytest.raises(UserError, match="test: no records of full"):
        quick(frame, split="test")
    apart = frame[~((frame["variant"] == "plain") & (frame["seed"] == 0)) & ~(frame["run"] == "full-1")]
    with pytest.raises(UserError, match="val: plain and full have no seed in common"):
        quick(apart)
    with pytest.raises(ValueError, match="named once"):
        quick(frame, "plain", "full")
