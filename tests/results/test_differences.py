"""Differences from records: brute force gives the same numbers, and runs that cannot be compared are refused."""

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.differences import compare, power_line, separated
from wimfris.results.statistics import holm

SENTENCES_BEYOND_FIRST = 2.5  # Poisson mean: 3.5 sentences an image


def records(
    systems: dict[str, int], *, images: int = 40, seed: int = 0, shift: float = 0.0, split: str = "val"
) -> pd.DataFrame:
    """Simulate records, system -> number of seeds; variants other than `full` have an IoU higher by `shift`."""
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


def test_pooled_systems_change_only_what_rests_on_the_variance() -> None:
    frame = records({"full": 3, "plain": 3, "other": 3}, shift=0.05)
    alone, lent = quick(frame), quick(frame, pool=("full", "other"))
    together = quick(frame, "plain", "other")
    together = together[together["variant"] == "plain"].drop(columns="p_holm").reset_index(drop=True)
    pd.testing.assert_frame_equal(lent.drop(columns="p_holm"), together)
    rest = ["any_low", "any_high", "standard_error", "df", "p", "p_holm", "detectable"]
    pd.testing.assert_frame_equal(alone.drop(columns=rest), lent.drop(columns=rest))


def test_metrics_and_resamples_equal_brute_force() -> None:
    frame = records({"full": 3, "plain": 2}, shift=0.05)
    table = quick(frame, resamples=40).set_index("metric")
    seeds = frame[frame["seed"] < 2]

    def metrics(frame: pd.DataFrame) -> dict[str, list[float]]:
        runs = [run for _, run in frame.groupby("seed")]
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
    assert set(table["seeds"]) == {2} and set(table["images"]) == {40}

    drawn = np.random.default_rng(0).integers(40, size=(40, 40))  # shared by both systems
    by_image = dict(list(seeds.groupby(["variant", "image_id"])))
    draws: dict[str, list[float]] = {metric: [] for metric in variant}
    for images in drawn:
        pair = [metrics(pd.concat([by_image[system, image] for image in images])) for system in ("plain", "full")]
        for metric in draws:
            draws[metric].append(float(np.mean(pair[0][metric]) - np.mean(pair[1][metric])))
    for metric, row in table.iterrows():
        expected = np.percentile(draws[str(metric)], [2.5, 97.5])
        assert [row["these_low"], row["these_high"]] == pytest.approx(expected, abs=1e-12)


def test_pr70_is_strict() -> None:
    frame = records({"full": 2, "plain": 2})
    frame["union"] = 10
    frame["intersection"] = np.where(frame["variant"] == "full", 7, 8)
    row = quick(frame).set_index("metric").loc["pr70"]
    assert (row["value"], row["baseline_value"]) == (1, 0)


def test_one_seed_gives_no_estimate_for_any_seed() -> None:
    table = quick(records({"full": 3, "plain": 1}, shift=0.1))
    absent = ["any_low", "any_high", "standard_error", "df", "p", "p_holm"]
    assert table[[*absent, "detectable"]].isna().all(axis=None)
    assert table[["value", "difference", "these_low", "these_high", "improvement"]].notna().all(axis=None)
    assert not any(separated(row) for _, row in table.iterrows())
    assert power_line(table) == ("With 40 images and 1 seed, no difference in mIoU is detectable for any seed.")


def test_identical_systems_differ_by_nothing() -> None:
    full = records({"full": 3})
    copy = full.assign(variant="plain", run=full["run"].str.replace("full", "plain"))
    table = quick(pd.concat([full, copy]))
    assert (table[["difference", "these_low", "these_high"]] == 0).all(axis=None)
    assert (table[["p", "p_holm"]] == 1).all(axis=None)
    assert (table["any_low"] == -table["any_high"]).all()  # other seeds would differ


def test_improvement_counts_sentences_and_ties_half() -> None:
    frame = records({"full": 2, "plain": 2})
    frame["union"] = 10
    frame["intersection"] = 5
    assert set(quick(frame)["improvement"]) == {0.5}
    frame.loc[(frame["variant"] == "plain") & (frame["seed"] == 0), "intersection"] = 6
    assert set(quick(frame)["improvement"]) == {0.75}  # one of two runs is better everywhere, the other ties
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


def test_holm_is_within_a_metric() -> None:
    table = quick(records({"full": 3, "a": 3, "b": 3}), "a", "b")
    for _, part in table.groupby("metric"):
        assert part["p_holm"].to_numpy() == pytest.approx(holm(part["p"]))


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
        "With 250 images and 2 to 3 seeds, the detectable difference in mIoU is 3.0 points (median of 3 comparisons; "
        "2.0 to 5.0): 80% power for any seed at a two-sided 5%, before Holm's correction."
    )
    assert "is 2.0 points: 80% power" in power_line(table.iloc[[2]])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("dataset", "refcoco", "val: data sets 'refcoco' (run plain-1) and 'scenes' (run full-0)"),
        ("scale", "base", "val: scales 'base' (run plain-1) and 'tiny' (run full-0)"),
        ("protocol", "lavt", "protocols 'cris' (run full-0) and 'lavt' (run plain-1)"),
        ("sent_id", -1, "sentence -1 of object 0 occurs twice in run plain-1"),
        ("image_id", 99, "run plain-1 has other images or targets for its sentences than run full-0"),
        ("target_area", 1, "run plain-1 has other images or targets for its sentences than run full-0"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(column: str, value: str | int, message: str) -> None:
    frame = records({"full": 2, "plain": 2})
    frame.loc[frame["run"] == "plain-1", column] = value
    with pytest.raises(UserError) as refusal:
        quick(frame)
    assert message in str(refusal.value)
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
