"""The strata of a sentence, by hand and by brute force, and the landmarks that the built-in sentences name."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from wimfris.data.index import read_index
from wimfris.data.letterbox import letterbox_mask
from wimfris.data.scenes import Description, Thing, World, draw_scene
from wimfris.errors import UserError
from wimfris.measure.strata_labels import (
    landmark,
    measure_strata_labels,
    scene_landmarks,
    strata_labels,
    touched_windows,
)
from wimfris.results.analyses.strata import STRATA
from wimfris.results.measured import measure_path, read_measure
from wimfris.runs.records import CASE


def row(mask: np.ndarray, *, split: str = "val", image_id: int = 1, sentences: int = 1) -> dict[str, object]:
    """Return a row of the index with this mask."""
    return {
        "dataset": "scenes",
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
    labels = strata_labels(pd.DataFrame([row(target, sentences=2)]), box, 16, {(1, 10): other.astype(bool)})
    first, second = labels.to_dict("records")
    assert first["windows"] == 2 and first["share"] == 64 / 64**2 and first["context_windows"] == 2
    assert first["context_distance"] == pytest.approx(np.hypot(40, 12) / 16)
    assert np.isnan(second["context_windows"]) and np.isnan(second["context_distance"])
    levels = {name: list(STRATA[name](labels)) for name in ("size", "windows", "context", "distance")}
    assert levels["windows"] == ["2", "2"] and levels["size"] == ["under 2.5%"] * 2
    assert levels["context"][0] == "further" and levels["distance"][0] == "over 1" and pd.isna(levels["context"][1])


def test_the_letterbox_moves_a_target_across_windows() -> None:
    """An image of half the height lies in the middle: its upper border is 16 px down."""
    index = pd.DataFrame([row(block(12, 0, 8, 8, (32, 64)))])
    assert strata_labels(index, box, 32, {})["windows"].item() == 2


def test_windows_touched_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = (rng.random((64, 64)) < 0.002).astype(np.float32)
        expected = {
            (r, c) for r in range(4) for c in range(4) if mask[16 * r : 16 * r + 16, 16 * c : 16 * c + 16].any()
        }
        assert set(map(tuple, touched_windows(mask, 16).tolist())) == expected


def test_landmark_is_the_thing_that_its_words_name() -> None:
    things = [Thing("circle", "red", "small", 10, 10, 4), Thing("square", "red", "small", 30, 30, 4)]
    related = Description((("colour", "red"),), relation="left", landmark=(("shape", "square"),))
    assert landmark(World(things), related) == 1
    assert landmark(World(things), Description((("colour", "red"),))) is None


def scenes_index(split: str, count: int, first: int) -> pd.DataFrame:
    """Return the index rows of a split's first scenes, image ids from `first` on, as the written set has them."""
    rows, sent_id, ref_id = [], 100, 0
    for number in range(count):
        scene = draw_scene(split, number)
        for target, described in scene.refs:
            ref_id += 1
            columns: dict[str, Any] = row(scene.masks[target].astype(np.uint8), split=split, image_id=first + number)
            columns["ref_id"] = ref_id
            columns["sent_ids"] = list(range(sent_id, sent_id + len(described)))
            columns["kinds"] = [description.kind for description, _ in described]
            columns["sentences"] = [text for _, text in described]
            rows.append(columns)
            sent_id += len(described)
    return pd.DataFrame(rows)


def test_sentence_ids_may_start_again_in_every_object() -> None:
    rows = [row(block(4, 12, 8, 8), image_id=number) | {"sent_ids": [0]} for number in (1, 2)]
    labels = strata_labels(pd.DataFrame(rows), box, 16, {(2, 0): block(44, 0, 8, 8).astype(bool)})
    assert labels["context_windows"].isna().tolist() == [True, False]


COUNTS = {"train": 3, "val": 4, "testA": 5, "testB": 1}


def test_landmarks_of_the_built_in_set_are_what_the_sentences_say() -> None:
    """The landmark drawn again has the colour, shape and size that follow the relation's words."""
    index = scenes_index("testA", 5, first=3 + 4 + 1)
    masks = scene_landmarks(index, COUNTS, 64)
    keys = {(one["ref_id"], sent_id) for one in index.to_dict("records") for sent_id in one["sent_ids"]}
    assert set(masks) == keys  # relations only
    for _, objects in index.groupby("image_id"):
        scene = draw_scene("testA", int(objects["image_id"].iloc[0]) - 8)
        for one in objects.to_dict("records"):
            for sent_id, text in zip(one["sent_ids"], one["sentences"], strict=True):
                key = one["ref_id"], sent_id
                (thing,) = [t for t, m in zip(scene.things, scene.masks, strict=True) if (m == masks[key]).all()]
                words = set(text.split(" the ")[-1].split())
                assert words & {"red", "green", "blue", "yellow", "purple", "white"} <= {thing.colour}
                assert words & {"circle", "square", "triangle", "cross", "ring"} <= {thing.shape}


def test_another_sets_sentences_are_refused() -> None:
    index = scenes_index("testA", 2, first=8)
    index.at[0, "sentences"] = ["the red ring", "the ring"]
    with pytest.raises(UserError, match=r"image 8 \(testA\): its sentences are not those of its scene"):
        scene_landmarks(index, COUNTS, 64)


def test_every_evaluated_sentence_is_labelled(project: Any) -> None:
    params = project.params()
    measure_strata_labels(params)
    path = measure_path("scenes-smoke", "strata-labels.parquet")
    labels, first = read_measure(params.settings(), path.name), path.read_bytes()
    index = read_index(Path("runs/scenes-smoke/index/index.parquet")).explode(["sent_ids", "kinds"])
    index = index[index["split"].isin(params.settings().data.splits)]
    assert sorted(map(tuple, labels[CASE].to_numpy())) == sorted(
        map(tuple, index[["dataset", "split", "ref_id", "sent_ids"]].to_numpy())
    )
    related = set(index.loc[index["kinds"] == "relation", "sent_ids"])
    assert set(labels.loc[labels["context_windows"].notna(), "sent_id"]) == related
    measure_strata_labels(params)
    assert path.read_bytes() == first
