"""Differences from records: brute force gives the same numbers, and runs that cannot be compared are refused."""

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.comparisons import COLUMNS, comparison_row
from wimfris.results.differences import compare

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


def quick(frame: pd.DataFrame, *variants: str, split: str = "val", resamples: int = 300) -> pd.DataFrame:
    pairs = [(variant, "full") for variant in variants or ("plain",)]
    rows = [comparison_row(one, "", 0.05) for one in compare(frame, pairs, split, resamples=resamples)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_a_difference_depends_on_its_own_two_systems_alone() -> None:
    frame = records({"full": 3, "plain": 3, "other": 3}, shift=0.05)
    together = quick(frame, "plain", "other")
    own = together[together["system"] == "plain"].reset_index(drop=True)
    pd.testing.assert_frame_equal(quick(frame), own)
    pd.testing.assert_frame_equal(quick(frame.sample(frac=1, random_state=0)), own)


def test_metrics_and_resamples_equal_brute_force() -> None:
    frame = records({"full": 3, "plain": 2}, shift=0.05)
    table = quick(frame, resamples=40).set_index("metric")
    seeds = frame

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
        assert row["rival_value"] == pytest.approx(other.mean(), abs=1e-12)
        assert row["difference"] == pytest.approx(one.mean() - other.mean(), abs=1e-12)
    assert set(table["seeds"]) == {"0 1"} and set(table["rival_seeds"]) == {"0 1 2"} and set(table["images"]) == {40}

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
    assert (row["value"], row["rival_value"]) == (1, 0)


def test_one_seed_gives_no_estimate_for_any_seed() -> None:
    table = quick(records({"full": 3, "plain": 1}, shift=0.1))
    assert table[["low", "high", "seed_variance", "p", "detectable"]].isna().all(axis=None)
    assert table[["value", "difference", "these_low", "these_high", "improvement"]].notna().all(axis=None)
    assert set(table["verdict"]) == {""}


def test_identical_systems_differ_by_nothing() -> None:
    full = records({"full": 3})
    copy = full.assign(variant="plain", run=full["run"].str.replace("full", "plain"))
    table = quick(pd.concat([full, copy]))
    assert (table[["difference", "these_low", "these_high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()
    assert (table["low"] == -table["high"]).all()  # other seeds would differ


def test_improvement_counts_sentences_and_ties_half() -> None:
    frame = records({"full": 2, "plain": 2})
    frame["union"] = 10
    frame["intersection"] = 5
    assert set(quick(frame)["improvement"]) == {0.5}
    frame.loc[(frame["variant"] == "plain") & (frame["seed"] == 0), "intersection"] = 6
    assert set(quick(frame)["improvement"]) == {0.75}  # one of two runs is better everywhere, the other ties
    frame.loc[frame["variant"] == "plain", "intersection"] = 4
    assert set(quick(frame)["improvement"]) == {0.0}


def test_the_intervals_for_these_seeds_depend_on_the_bootstrap_alone() -> None:
    frame = records({"full": 3, "plain": 3}, shift=0.02)
    one, other = (compare(frame, [("plain", "full")], "val", resamples=300, seed=seed)[0] for seed in (0, 1))
    assert one.these_low != other.these_low and one.any_seed == other.any_seed


def test_other_splits_and_conditions_are_left_out() -> None:
    frame = records({"full": 2, "plain": 2})
    controls = frame.assign(condition="shuffled", intersection=0)
    elsewhere = records({"full": 2, "plain": 2}, seed=5, split="testA")
    pd.testing.assert_frame_equal(quick(frame), quick(pd.concat([frame, controls, elsewhere], ignore_index=True)))


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
