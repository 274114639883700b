"""The index: it holds what the annotations say, and every image at fault is reported."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from refer_files import FIXTURE, official

from wimfris.data import index
from wimfris.data.refer import ReferredObject, read_refer
from wimfris.data.rle import decode_rle
from wimfris.errors import UserError


@pytest.fixture(scope="module")
def objects() -> list[ReferredObject]:
    return read_refer(official(FIXTURE, "refcoco"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "images" / "train2014", tmp_path / "images"))


def test_the_written_index_is_the_returned_one(tmp_path: Path, objects: list[ReferredObject]) -> None:
    frame = index.write_index(objects, FIXTURE / "images" / "train2014", tmp_path)
    assert list(frame.columns) == list(index.INDEX_COLUMNS)
    again = index.read_index(tmp_path / "index.parquet")
    pd.testing.assert_frame_equal(again, frame)
    assert all(isinstance(value, list) for column in index.LIST_COLUMNS for value in again[column])
    for referred, row in zip(objects, again.to_dict("records"), strict=True):
        assert row["sentences"] == [sentence.text for sentence in referred.sentences]
        assert row["sent_ids"] == [sentence.sent_id for sentence in referred.sentences]
        mask = index.decode_mask(row)
        assert mask.dtype == np.uint8
        assert mask.shape == (referred.height, referred.width)
        assert mask.sum() == row["area"] == referred.area
    assert np.array_equal(index.decode_mask(again.iloc[0]), index.decode_mask(again.to_dict("records")[0]))
    first = (tmp_path / "index.parquet").read_bytes()
    index.write_index(objects, FIXTURE / "images" / "train2014", tmp_path)
    assert (tmp_path / "index.parquet").read_bytes() == first


def test_every_image_is_listed_once_with_its_checksum(objects: list[ReferredObject], images: Path) -> None:
    _, table, problems = index.build_index(objects, images)
    assert problems == []
    assert table["file_name"].tolist() == sorted({o.file_name for o in objects})
    for row in table.to_dict("records"):
        content = (images / row["file_name"]).read_bytes()
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        with Image.open(images / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"])


def test_all_images_at_fault_are_listed(objects: list[ReferredObject], images: Path, tmp_path: Path) -> None:
    paths = sorted(images.iterdir())
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-2])
    paths[2].write_bytes(b"<html>not found</html>")
    Image.new("RGB", (7, 9)).save(paths[3])
    frame, table, problems = index.build_index(objects, images)
    assert len(frame) == len(objects)
    assert table["file_name"].tolist() == [path.name for path in paths[4:]]
    faults = ("missing", "damaged or truncated", "not a JPEG", "image is 7x9 pixels")
    for path, problem, fault in zip(paths[:4], problems, faults, strict=True):
        assert problem.startswith(f"{path}: {fault}")
    report = tmp_path / "index" / "problems.txt"
    with pytest.raises(UserError, match="4 images cannot be used") as caught:
        index.report_problems(problems, report)
    assert str(report) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert report.read_text().splitlines() == problems
    index.report_problems([], report)
    assert not report.exists()


def test_a_jpeg_truncated_anywhere_is_detected(images: Path) -> None:
    path = min(images.iterdir())
    whole = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    for length in [0, *range(1, len(whole), 211), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:length])
        assert isinstance(index.check_image(path.parent, path.name, width, height), str), (
            f"{length} of {len(whole)} bytes pass"
        )
    path.write_bytes(whole)
    assert isinstance(index.check_image(path.parent, path.name, width, height), dict)


def test_a_file_that_is_not_an_index_is_named(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    with pytest.raises(UserError, match=r"index\.parquet: missing"):
        index.read_index(path)
    path.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=r"index\.parquet: not readable"):
        index.read_index(path)
    pd.DataFrame({"dataset": ["refcoco"]}).to_parquet(path)
    with pytest.raises(UserError, match="columns split, ref_id"):
        index.read_index(path)


def test_chance_iou_is_the_mean_over_the_annotations_of_the_image(objects: list[ReferredObject]) -> None:
    for referred in objects:
        target = decode_rle(referred.rle_counts, referred.height, referred.width).astype(bool)
        guesses = [decode_rle(c, referred.height, referred.width).astype(bool) for c in referred.image_masks]
        expected = np.mean([(guess & target).sum() / (guess | target).sum() for guess in guesses])
        chance = index.chance_iou(referred.rle_counts, referred.image_masks, referred.height, referred.width)
        assert chance == pytest.approx(expected)
        assert chance >= 1 / len(guesses)


def test_a_tenth_of_the_training_images_becomes_the_tuning_split() -> None:
    names = [f"COCO_train2014_{number:012d}.jpg" for number in range(4000)]
    frame = pd.DataFrame({"split": ["train"] * 3000 + ["val"] * 1000, "file_name": names})
    divided = index.with_tuning_split(pd.concat([frame, frame[:500]]))
    images = divided.groupby("file_name")["split"]
    assert (images.nunique() == 1).all(), "all objects of an image are on one side"
    assert (divided["split"] == "val").sum() == 1000
    assert 0.08 < (images.first() == "tune").sum() / 3000 < 0.12
    assert index.with_tuning_split(divided).equals(divided), "a set with a tuning split keeps it"
