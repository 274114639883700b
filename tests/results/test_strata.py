"""Strata: which one a sentence is in, by hand and by brute force; what is compared within and between them."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from wimfris.data.letterbox import letterbox_mask
from wimfris.data.scenes import Description, Thing, World, draw_scene
from wimfris.errors import UserError
from wimfris.results.differences import compare
from wimfris.results.formats import markdown_text
from wimfris.results.strata import STRATA, annotate, landmark, scene_landmarks, sections, strata_table, windows_of
from wimfris.runs.records import SCHEMA


def row(mask: np.ndarray, *, split: str = "val", image_id: int = 1, sentences: int = 1) -> dict[str, object]:
    """A row of the index with this mask."""
    return {
        "split": split,
        "ref_id": image_id,
        "image_id": image_id,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "rle_counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode(),
        "sentences": ["x"] * sentences,
        "sent_ids": [10 * image_id + k for k in range(sentences)],
        "kinds": ["relation"] * sentences,
    }


def block(top: int, left: int, height: int, width: int, canvas: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(canvas, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


box = partial(letterbox_mask, size=64)


def test_a_sentence_by_hand() -> None:
    """A target in the upper left window that reaches into the upper right; a landmark two windows below."""
    target, other = block(4, 12, 8, 8), block(44, 0, 8, 8)
    index = pd.DataFrame([row(target, sentences=2)])
    first, second = annotate(index, box, 16, {10: other.astype(bool)}).to_dict("records")
    assert first["windows"] == 2 and first["share"] == 64 / 64**2 and first["kind"] == "relation"
    assert first["context_windows"] == 2
    assert first["context_distance"] == pytest.approx(np.hypot(40, 12) / 16)
    assert np.isnan(second["context_windows"]) and np.isnan(second["context_distance"])
    levels = {
        name: list(stratum(annotate(index, box, 16, {10: other.astype(bool)}))) for name, stratum in STRATA.items()
    }
    assert levels["windows"] == ["2", "2"] and levels["size"] == ["under 2.5%"] * 2
    assert levels["context"][0] == "further" and levels["distance"][0] == "over 1" and pd.isna(levels["context"][1])


def test_the_letterbox_moves_a_target_across_windows() -> None:
    """An image of half the height lies in the middle: its upper border is 16 px down."""
    index = pd.DataFrame([row(block(12, 0, 8, 8, (32, 64)))])
    assert annotate(index, box, 32, {})["windows"].item() == 2


def test_windows_touched_by_brute_force(rng: np.random.Generator) -> None:
    for _ in range(20):
        mask = (rng.random((64, 64)) < 0.002).astype(np.float32)
        expected = {
            (r, c) for r in range(4) for c in range(4) if mask[16 * r : 16 * r + 16, 16 * c : 16 * c + 16].any()
        }
        assert set(map(tuple, windows_of(mask, 16).tolist())) == expected


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_landmark_is_the_thing_that_its_words_name() -> None:
    things = [Thing("circle", "red", "small", 10, 10, 4), Thing("square", "red", "small", 30, 30, 4)]
    related = Description((("colour", "red"),), relation="left", landmark=(("shape", "square"),))
    assert landmark(World(things), related) == 1
    assert landmark(World(things), Description((("colour", "red"),))) is None


def scenes_index(split: str, count: int, first: int) -> pd.DataFrame:
    """The index rows of a split's first scenes, image ids from `first` on, as the written set has them."""
    rows, sent_id, ref_id = [], 100, 0
    for number in range(count):
        scene = draw_scene(split, number)
        for target, told in scene.refs:
            ref_id += 1
            of_object = row(scene.masks[target].astype(np.uint8), split=split, image_id=first + number)
            sent_ids = list(range(sent_id, sent_id + len(told)))
            kinds = [description.kind for description, _ in told]
            sentences = [text for _, text in told]
            rows.append(of_object | {"ref_id": ref_id, "sent_ids": sent_ids, "sentences": sentences, "kinds": kinds})
            sent_id += len(told)
    return pd.DataFrame(rows)


COUNTS = {"train": 3, "val": 4, "testA": 5, "testB": 1}


def test_landmarks_of_the_built_in_set_are_what_the_sentences_say() -> None:
    """The landmark drawn again has the colour, shape and size that follow the relation's words."""
    index = scenes_index("testA", 5, first=3 + 4 + 1)
    found = scene_landmarks(index, COUNTS, 64)
    assert set(found) == {sent_id for sent_ids in index["sent_ids"] for sent_id in sent_ids}  # relations only
    for _, objects in index.groupby("image_id"):
        scene = draw_scene("testA", int(objects["image_id"].iloc[0]) - 8)
        for one in objects.to_dict("records"):
            for sent_id, text in zip(one["sent_ids"], one["sentences"], strict=True):
                (thing,) = [t for t, m in zip(scene.things, scene.masks, strict=True) if (m == found[sent_id]).all()]
                named = text.split(" the ")[-1].split()
                told = {word for word in named if word in ("red", "green", "blue", "yellow", "purple", "white")}
                assert told <= {thing.colour}
                assert {word for word in named if word in ("circle", "square", "triangle", "cross", "ring")} <= {
                    thing.shape
                }


def test_another_sets_sentences_are_refused() -> None:
    index = scenes_index("testA", 2, first=8)
    index.at[0, "sentences"] = ["the red ring", "the ring"]
    with pytest.raises(UserError, match=r"image 8 \(testA\): its sentences are not those of the scene"):
        scene_landmarks(index, COUNTS, 64)


# --- results by stratum -----------------------------------------------------------------------------------------------


@pytest.fixture
def index(rng: np.random.Generator) -> pd.DataFrame:
    """Make the index of 60 images; in odd ones the target crosses all four windows of 32 px."""
    small, large = block(2, 2, 10, 10), block(22, 22, 20, 20)
    return pd.DataFrame([row(large if k % 2 else small, image_id=k, sentences=2) for k in range(60)])


def records(index: pd.DataFrame, rng: np.random.Generator, gain: float) -> pd.DataFrame:
    """Simulate three seeds of a baseline, and of a system whose IoU is higher by `gain` on large targets."""
    rows = []
    for one in index.to_dict("records"):
        for sent_id in one["sent_ids"]:
            for seed in range(3):
                base = rng.uniform(0.3, 0.6)
                for variant, higher in (("no_window", 0.0), ("full", gain * (one["image_id"] % 2))):
                    iou = base + higher + rng.normal(0, 0.01)
                    rows.append(
                        {
                            "run": f"{variant}-{seed}",
                            "variant": variant,
                            "seed": seed,
                            "sent_id": sent_id,
                            "ref_id": one["ref_id"],
                            "image_id": one["image_id"],
                            "intersection": round(1000 * iou),
                            "union": 1000,
                        }
                    )
    constants = {"dataset": "scenes", "scale": "smoke", "protocol": "cris", "split": "val", "condition": "sentence"}
    frame = pd.DataFrame(rows).assign(**constants, sentence="x", kind="relation", target_area=9)
    return frame[SCHEMA.names]


def test_gain_and_change_equal_the_planted_ones(index: pd.DataFrame, rng: np.random.Generator) -> None:
    frame = records(index, rng, gain=0.1)
    table = strata_table(frame, annotate(index, box, 32, {}), ["full"], "no_window", resamples=500)
    assert set(table["stratum"]) == {"all", "size", "windows"}  # there is one kind of sentence, and no landmark
    by_level = table[table["stratum"] == "windows"].set_index("level")
    assert list(by_level.index) == ["1", "3 or 4"] and list(by_level["images"]) == [30, 30]
    assert by_level.loc["1", "gain_miou"] == pytest.approx(0, abs=0.01)
    assert by_level.loc["3 or 4", "gain_miou"] == pytest.approx(0.1, abs=0.01)
    change = by_level.loc["3 or 4"]
    assert change["change_miou"] == pytest.approx(change["gain_miou"] - by_level.loc["1", "gain_miou"])
    assert change["change_miou_any_low"] > 0 and change["change_miou_p_holm"] < 0.05
    assert change["change_miou_these_low"] < change["change_miou"] < change["change_miou_these_high"]
    assert np.isnan(by_level.loc["1", "change_miou"])
    # The gain within a stratum is the comparison on its sentences.
    odd = frame[frame["image_id"] % 2 == 1]
    alone = compare(odd, ["full"], "no_window", split="val", resamples=500).set_index("metric")
    assert change["gain_miou_any_low"] == pytest.approx(alone.loc["miou", "any_low"])
    assert change["gain_oiou"] == pytest.approx(alone.loc["oiou", "difference"])


def test_strata_of_the_same_images_are_paired(index: pd.DataFrame, rng: np.random.Generator) -> None:
    """If every image has sentences of both strata and an effect of its own, the effect cancels in the change."""
    annotation = annotate(index, box, 32, {})
    frame = records(index, rng, gain=0.0)
    frame["kind"] = np.where(frame["sent_id"] % 10 == 1, "relation", "attribute")
    image = 100 * (frame["image_id"] % 4) * (frame["variant"] == "full")  # an effect of the image
    table = strata_table(
        frame.assign(intersection=frame["intersection"] + image), annotation, ["full"], "no_window", resamples=500
    )
    relation = table[(table["stratum"] == "kind") & (table["level"] == "relation")].iloc[0]
    width = {
        kind: relation[f"{kind}_miou_these_high"] - relation[f"{kind}_miou_these_low"] for kind in ("gain", "change")
    }
    assert width["change"] < width["gain"] / 2


def test_a_sentence_outside_the_index_is_refused(index: pd.DataFrame, rng: np.random.Generator) -> None:
    with pytest.raises(UserError, match="val: sentence 590 of run no_window-0 is not in the index"):
        strata_table(records(index, rng, 0.0), annotate(index[:-1], box, 32, {}), ["full"], "no_window")


def test_the_table_shows_n_intervals_and_power(index: pd.DataFrame, rng: np.random.Generator) -> None:
    table = strata_table(records(index, rng, 0.1), annotate(index, box, 32, {}), ["full"], "no_window", resamples=200)
    text = markdown_text("x", sections(table, {"full": "window 4", "no_window": "no window"}))
    assert "window 4 against no window: scenes, scale smoke, protocol cris, split val, seeds 0, 1, 2" in text
    assert "say nothing about the figures in the paper" in text and "the detectable difference in mIoU is" in text
