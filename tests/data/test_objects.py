"""The objects of an image: which one a prediction overlaps most, at the size of judgement."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wimfris.data.objects import NO_OBJECT, ImageObjects, objects_table, read_objects
from wimfris.data.protocol import PROTOCOLS
from wimfris.data.refer import read_refer, scenes_source
from wimfris.data.rle import encode_mask
from wimfris.data.scenes import write_scenes
from wimfris.errors import UserError

HEIGHT, WIDTH = 40, 60


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


BOXES = {7: ("cat", box(0, 0, 10, 10)), 8: ("cat", box(20, 20, 10, 20)), 9: ("dog", box(0, 40, 20, 20))}
ROW = {"dataset": "pets", "image_id": 1, "ann_ids": [8], "height": HEIGHT, "width": WIDTH}


def objects(protocol: str = "cris") -> ImageObjects:
    rows = [("pets", 1, ann_id, category, encode_mask(mask)) for ann_id, (category, mask) in BOXES.items()]
    frame = pd.DataFrame(rows, columns=["dataset", "image_id", "ann_id", "category", "rle_counts"])
    return ImageObjects(frame, PROTOCOLS[protocol])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_best_object_is_that_of_the_highest_iou(protocol: str) -> None:
    candidates = objects(protocol).candidates(ROW)
    scored = PROTOCOLS[protocol].target
    for ann_id, (_, mask) in BOXES.items():
        half = mask & (np.arange(WIDTH) < np.nonzero(mask)[1].mean())
        predicted = scored(half)
        best = candidates.best(encode_mask(predicted), *predicted.shape)
        expected = (predicted & scored(mask)).sum() / (predicted | scored(mask)).sum()
        assert best == {
            "best_object": ann_id,
            "best_iou": pytest.approx(expected),
            "right_object": ann_id == 8,
            "distractors": 1,
        }


def test_a_prediction_without_overlap_has_no_object() -> None:
    candidates = objects().candidates(ROW)
    for predicted in (np.zeros((HEIGHT, WIDTH), bool), box(35, 0, 5, 5)):
        best = candidates.best(encode_mask(predicted), HEIGHT, WIDTH)
        assert best == {"best_object": NO_OBJECT, "best_iou": 0.0, "right_object": False, "distractors": 1}


def test_of_equal_objects_the_target_is_the_best() -> None:
    rows = [("pets", 1, ann_id, "cat", encode_mask(BOXES[7][1])) for ann_id in (3, 4, 5)]
    frame = pd.DataFrame(rows, columns=["dataset", "image_id", "ann_id", "category", "rle_counts"])
    candidates = ImageObjects(frame, PROTOCOLS["cris"]).candidates(ROW | {"ann_ids": [4]})
    assert candidates.best(rows[0][-1], HEIGHT, WIDTH)["best_object"] == 4 and candidates.distractors == 2


def test_every_object_of_a_scene_is_there_once(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 3, "val": 2, "testA": 0, "testB": 0}, 64)
    referred = read_refer(scenes_source(tmp_path))
    table = objects_table(referred)
    assert not table.duplicated(["image_id", "ann_id"]).any()
    for image_id, part in table.groupby("image_id"):
        one = next(o for o in referred if o.image_id == image_id)
        assert part["rle_counts"].tolist() == list(one.image_masks) and (part["category"] != "").all()


def test_data_prepared_before_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objects.parquet: missing, .* run `wimfris data prepare`"):
        read_objects(tmp_path)
