"""What is compared within and between strata."""

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.statistics import compare
from wimfris.results.strata import sections, strata_table
from wimfris.results.tables import markdown_text
from wimfris.runs.records import SCHEMA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def labels() -> pd.DataFrame:
    """Two sentences of 60 images each: the target of an odd image is larger and crosses four windows."""
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
    """Three seeds of a baseline, and of a system whose IoU is higher by `gain` on large targets."""
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


def test_gain_and_change_are_what_was_put_in(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    rows = records(labels, rng, gain=0.1)
    table = strata_table(rows, labels, ["full"], "no_window", resamples=500)
    assert set(table["stratum"]) == {"all", "size", "windows"}  # one kind alone, no landmark
    by_level = table[table["stratum"] == "windows"].set_index("level")
    assert list(by_level.index) == ["1", "3 or 4"] and list(by_level["images"]) == [30, 30]
    assert by_level.loc["1", "gain_miou"] == pytest.approx(0, abs=0.01)
    assert by_level.loc["3 or 4", "gain_miou"] == pytest.approx(0.1, abs=0.01)
    change = by_level.loc["3 or 4"]
    assert change["change_miou"] == pytest.approx(change["gain_miou"] - by_level.loc["1", "gain_miou"])
    assert change["change_miou_any_low"] > 0 and change["change_miou_p_holm"] < 0.05
    assert change["change_miou_these_low"] < change["change_miou"] < change["change_miou_these_high"]
    assert np.isnan(by_level.loc["1", "change_miou"])
    # within a stratum it is the comparison of its sentences alone
    odd = rows[rows["image_id"] % 2 == 1]
    alone = compare(odd, ["full"], "no_window", split="val", resamples=500).set_index("metric")
    assert change["gain_miou_any_low"] == pytest.approx(alone.loc["miou", "any_low"])
    assert change["gain_oiou"] == pytest.approx(alone.loc["oiou", "difference"])


def test_strata_of_the_same_images_are_paired(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    """Where every image has a sentence of both strata and its own level of difficulty, that level drops out of the
    change.
    """
    rows = records(labels, rng, gain=0.0)
    rows["kind"] = np.where(rows["sent_id"] % 10 == 1, "relation", "attribute")
    rows["intersection"] += 100 * (rows["image_id"] % 4) * (rows["variant"] == "full")  # a gain of the image's own
    table = strata_table(rows, labels, ["full"], "no_window", resamples=500)
    relation = table[(table["stratum"] == "kind") & (table["level"] == "relation")].iloc[0]
    width = {
        kind: relation[f"{kind}_miou_these_high"] - relation[f"{kind}_miou_these_low"] for kind in ("gain", "change")
    }
    assert width["change"] < width["gain"] / 2


def test_a_sentence_without_labels_is_refused(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    with pytest.raises(UserError, match="val: sentence 590 of run no_window-0 has no labels"):
        strata_table(records(labels, rng, 0.0), labels[:-2], ["full"], "no_window")


def test_the_table_shows_n_intervals_and_power(labels: pd.DataFrame, rng: np.random.Generator) -> None:
    table = strata_table(records(labels, rng, 0.1), labels, ["full"], "no_window", resamples=200)
    text = markdown_text("x", sections(table, {"full": "window 4", "no_window": "no window"}))
    assert "window 4 against no window: scenes, scale smoke, protocol cris, split val, seeds 0, 1, 2" in text
    assert "say nothing about the figures in the paper" in text and "smallest that had an 80% chance" in text
