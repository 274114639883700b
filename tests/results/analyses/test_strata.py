"""Strata: gains within a stratum, and changes between strata, equal the planted ones."""

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.analyses.strata import sections, strata_table
from wimfris.results.differences import compare
from wimfris.results.formats import markdown_text
from wimfris.runs.records import SCHEMA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def labels() -> pd.DataFrame:
    """Label two sentences of each of 60 images: in odd ones the target is larger and crosses four windows."""
    image = np.repeat(np.arange(60), 2)
    return pd.DataFrame(
        {
            "split": "val",
            "ref_id": image,
            "sent_id": 10 * image + np.tile([0, 1], 60),
            "share": np.where(image % 2, 400 / 64**2, 100 / 64**2),
            "windows": np.where(image % 2, 4, 1),
            "context_windows": np.nan,
            "context_distance": np.nan,
        }
    )


def records(labels: pd.DataFrame, rng: np.random.Generator, gain: float) -> pd.DataFrame:
    """Simulate three seeds of a baseline, and of a system whose IoU is higher by `gain` on large targets."""
    rows = []
    for image_id, sent_id in zip(labels["ref_id"], labels["sent_id"], strict=True):
        for seed in range(3):
            base = rng.uniform(0.3, 0.6)
            for variant, higher in (("no_window", 0.0), ("full", gain * (image_id % 2))):
                iou = base + higher + rng.normal(0, 0.01)
                rows.append(
                    {
                        "run": f"{variant}-{seed}",
                        "variant": variant,
                        "seed": seed,
                        "sent_id": sent_id,
                        "ref_id": image_id,
                        "image_id": image_id,
                        "intersection": round(1000 * iou),
                        "union": 1000,
                    }
                )
    shared = {"dataset": "scenes", "scale": "smoke", "protocol": "cris", "split": "val", "condition": "sentence"}
    frame = pd.DataFrame(rows).assign(**shared, sentence="x", kind="relation", target_area=9)
    return frame[SCHEMA.names]


def test_gain_and_change_equal_the_planted_ones(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    rows = records(labels, rng, gain=0.1)
    table = strata_table(rows, labels, ["full"], "no_window", resamples=500)
    assert set(table["stratum"]) == {"all", "size", "windows"}  # there is one kind of sentence, and no landmark
    whole = table[table["stratum"] == "all"]
    assert whole["gain_miou_any_low"].isna().all(), "reports/comparisons has this interval"
    by_level = table[table["stratum"] == "windows"].set_index("level")
    assert list(by_level.index) == ["1", "3 or 4"] and list(by_level["images"]) == [30, 30]
    assert by_level.loc["1", "gain_miou"] == pytest.approx(0, abs=0.01)
    assert by_level.loc["3 or 4", "gain_miou"] == pytest.approx(0.1, abs=0.01)
    change = by_level.loc["3 or 4"]
    assert change["change_miou"] == pytest.approx(change["gain_miou"] - by_level.loc["1", "gain_miou"])
    assert change["change_miou_any_low"] > 0
    assert change["change_miou_these_low"] < change["change_miou"] < change["change_miou_these_high"]
    assert np.isnan(by_level.loc["1", "change_miou"])
    # The gain within a stratum is the comparison on its sentences.
    odd = rows[rows["image_id"] % 2 == 1]
    alone = {one.metric: one.any_seed for one in compare(odd, [("full", "no_window")], "val", resamples=20)}
    assert change["gain_miou_any_low"] == pytest.approx(alone["miou"].difference - alone["miou"].half_width(0.05))
    assert change["gain_oiou"] == pytest.approx(alone["oiou"].difference)


def test_strata_of_the_same_images_are_paired(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    """If every image has sentences of both strata and an effect of its own, the effect cancels in the change."""
    rows = records(labels, rng, gain=0.0)
    rows["kind"] = np.where(rows["sent_id"] % 10 == 1, "relation", "attribute")
    rows["intersection"] += 100 * (rows["image_id"] % 4) * (rows["variant"] == "full")  # an effect of the image
    table = strata_table(rows, labels, ["full"], "no_window", resamples=500)
    relation = table[(table["stratum"] == "kind") & (table["level"] == "relation")].iloc[0]
    width = {
        kind: relation[f"{kind}_miou_these_high"] - relation[f"{kind}_miou_these_low"] for kind in ("gain", "change")
    }
    assert width["change"] < width["gain"] / 2


def test_a_sentence_without_labels_is_refused(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    with pytest.raises(UserError, match="val: sentence 590 of run no_window-0 has no labels"):
        strata_table(records(labels, rng, 0.0), labels[:-2], ["full"], "no_window")


def test_the_table_shows_n_and_intervals_and_no_verdict(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    table = strata_table(records(labels, rng, 0.1), labels, ["full"], "no_window", resamples=200)
    text = markdown_text("x", sections(table, {"full": "window 4", "no_window": "no window"}))
    assert "window 4 against no window: scenes, scale smoke, protocol cris, split val, seeds 0, 1, 2" in text
    assert "say nothing about the figures in the paper" in text and "have no verdicts" in text


@pytest.mark.slow
def test_labels_are_joined_by_data_set_object_and_sentence(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    """Sentence ids that start again in every object, beside the labels of another data set with the same ids."""
    table = records(labels, rng, 0.1)
    expected = strata_table(table, labels, ["full"], "no_window", resamples=20)
    again = labels.groupby("ref_id").cumcount()
    places = dict(zip(zip(labels["ref_id"], labels["sent_id"], strict=True), again, strict=True))
    table["sent_id"] = [places[key] for key in zip(table["ref_id"], table["sent_id"], strict=True)]
    own = labels.assign(sent_id=again, dataset="scenes")
    other = own.assign(dataset="other", windows=1, share=0.5)
    both = pd.concat([other, own], ignore_index=True)
    pd.testing.assert_frame_equal(strata_table(table, both, ["full"], "no_window", resamples=20), expected)
    with pytest.raises(UserError, match=r"sentence 0 of object \d+ has two labels; label the sentences again"):
        strata_table(table, pd.concat([own, own.iloc[:1]]), ["full"], "no_window", resamples=20)
