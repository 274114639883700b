"""The audit counts what the index holds."""

import pandas as pd
import pytest
from refer_files import FIXTURE, official

from wimfris.data.audit import audit, random_object_miou, shared_images_note
from wimfris.data.index import build_index
from wimfris.data.refer import read_refer


def build(name: str) -> pd.DataFrame:
    """Return the index of one of the fixture's data sets."""
    return build_index(read_refer(official(FIXTURE, name)), FIXTURE / "images" / "train2014")[0]


def test_random_object_miou_weighs_objects_by_their_sentences() -> None:
    frame = pd.DataFrame({"chance_iou": [0.2, 0.5], "sentences": [["a", "b", "c"], ["d"]]})
    assert random_object_miou(frame) == pytest.approx((3 * 0.2 + 0.5) / 4)


def test_counts_of_several_data_sets() -> None:
    refcoco, umd = build("refcoco"), build("refcocog-umd")
    scenes = refcoco.assign(
        dataset="scenes",
        sha256="0" + refcoco["sha256"],
        kinds=refcoco["kinds"].map(lambda kinds: ["relation"] * len(kinds)),
    )
    text = audit({"refcoco": refcoco, "refcocog-umd": umd, "scenes": scenes})
    assert "| refcoco train | 20 | 42 | 5 | 4.0 |" in text
    assert "| refcoco testA | refcocog-umd test | 1 |" in text
    assert "| refcoco | refcocog-umd | 8 |" in text
    assert "| refcoco | scenes |" not in text  # the same ids, other images
    assert "| scenes train | 42 |" in text
    assert f"| refcoco val | {random_object_miou(refcoco[refcoco['split'] == 'val']):.3f} |" in text
    assert "Sentence kinds" not in audit({"refcoco": refcoco})
    assert "None." in audit({"refcoco": refcoco})


def test_repeated_and_ambiguous_sentences_are_counted_apart() -> None:
    frame = build("refcoco")
    one_image = frame[frame["image_id"] == frame["image_id"].iloc[0]].head(2).copy()
    one_image["sentences"] = [["Left  man", "left man"], ["LEFT MAN"]]
    assert "| refcoco train | 1 | 1 | 1 |" in audit({"refcoco": one_image})


def test_images_in_training_and_evaluation_are_noted() -> None:
    frame = pd.DataFrame({"image_id": [1, 1, 2, 3], "split": ["train", "train", "train", "val"]})
    assert shared_images_note(frame) == ""
    note = shared_images_note(frame.assign(image_id=[1, 1, 2, 1]))
    assert note.startswith("1 of 2 training images (2 of 3 objects) are also in the val or test split")
