import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wimfris.checks import audit
from wimfris.data import index, refer
from wimfris.errors import UserError

FIXTURE = Path(__file__).parents[1] / "golden" / "refer_fixture"


@pytest.fixture(scope="module")
def objects() -> list[refer.ReferredObject]:
    return refer.read_refer(FIXTURE, "refcoco")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return Path(shutil.copytree(refer.images_folder(FIXTURE), tmp_path / "images"))


def test_prepare_writes_what_it_returns(tmp_path: Path, objects: list[refer.ReferredObject]) -> None:
    frame = index.prepare(FIXTURE, "refcoco", tmp_path, check_counts=False)
    assert list(frame.columns) == list(index.INDEX_COLUMNS)
    again = index.read_index(tmp_path / "index.parquet")
    pd.testing.assert_frame_equal(again, frame)
    assert all(isinstance(value, list) for column in index.LIST_COLUMNS for value in again[column])
    for found, row in zip(objects, again.to_dict("records"), strict=True):
        assert row["sentences"] == [sentence.text for sentence in found.sentences]
        assert row["sent_ids"] == [sentence.sent_id for sentence in found.sentences]
        mask = index.decode_mask(row)
        assert mask.dtype == np.uint8
        assert mask.shape == (found.height, found.width)
        assert mask.sum() == row["area"] == found.area
    assert np.array_equal(index.decode_mask(again.iloc[0]), index.decode_mask(again.to_dict("records")[0]))
    first = (tmp_path / "index.parquet").read_bytes()
    index.prepare(FIXTURE, "refcoco", tmp_path, check_counts=False)
    assert (tmp_path / "index.parquet").read_bytes() == first


def test_every_image_is_there_once_with_its_checksum(objects: list[refer.ReferredObject], images: Path) -> None:
    _, table, problems = index.build_index(objects, images)
    assert problems == []
    assert table["file_name"].tolist() == sorted({o.file_name for o in objects})
    for row in table.to_dict("records"):
        content = (images / row["file_name"]).read_bytes()
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        with Image.open(images / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"])


def test_images_at_fault_are_all_listed_at_once(
    objects: list[refer.ReferredObject], images: Path, tmp_path: Path
) -> None:
    paths = sorted(images.iterdir())
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-2])
    paths[2].write_bytes(b"<html>not found</html>")
    Image.new("RGB", (7, 9)).save(paths[3])
    frame, table, problems = index.build_index(objects, images)
    assert len(frame) == len(objects)
    assert table["file_name"].tolist() == [path.name for path in paths[4:]]
    for path, problem, words in zip(
        paths[:4], problems, ("missing", "damaged or truncated", "damaged or truncated", "is 7x9 pixels"), strict=True
    ):
        assert problem.startswith(f"{path}: {words}")
    report = tmp_path / "index" / "problems.txt"
    with pytest.raises(UserError, match="4 images cannot be used") as caught:
        index.refuse_problems(problems, report)
    assert str(report) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert report.read_text().splitlines() == problems
    index.refuse_problems([], report)
    assert not report.exists()


def test_a_jpeg_cut_anywhere_is_found_out(images: Path) -> None:
    path = min(images.iterdir())
    whole = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    for kept in [0, *range(1, len(whole), 211), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:kept])
        outcome = index.check_image(path, width, height)
        assert isinstance(outcome, str), f"{kept} of {len(whole)} bytes pass"
    path.write_bytes(whole)
    assert isinstance(index.check_image(path, width, height), dict)


def test_counts_are_those_published(objects: list[refer.ReferredObject], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="testA has 4 objects, published are 1975"):
        index.prepare(FIXTURE, "refcoco", tmp_path)
    published = [replace(objects[0], split=s) for s, n in index.PUBLISHED_OBJECTS["refcoco+"].items() for _ in range(n)]
    index.check_published_counts(published, "refcoco+")
    with pytest.raises(UserError, match=r"refcoco: .*train has 42278 objects, published are 42404"):
        index.check_published_counts(published, "refcoco")
    with pytest.raises(UserError, match="extra has 1 objects, published are 0"):
        index.check_published_counts([*published, replace(objects[0], split="extra")], "refcoco+")
    index.check_published_counts(objects, "scenes")


def test_files_that_are_no_index_are_named(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    with pytest.raises(UserError, match=r"index\.parquet: missing"):
        index.read_index(path)
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(UserError, match=r"index\.parquet: not readable"):
        index.read_index(path)
    pd.DataFrame({"dataset": ["refcoco"]}).to_parquet(path)
    with pytest.raises(UserError, match="lacks the columns split, ref_id"):
        index.read_index(path)


def test_chance_is_the_mean_over_the_images_annotations(objects: list[refer.ReferredObject]) -> None:
    for found in objects:
        target = refer.decode_rle(found.rle_counts, found.height, found.width).astype(bool)
        guesses = [refer.decode_rle(c, found.height, found.width).astype(bool) for c in found.image_masks]
        expected = np.mean([(guess & target).sum() / (guess | target).sum() for guess in guesses])
        chance = index.chance_iou(found.rle_counts, found.image_masks, found.height, found.width)
        assert chance == pytest.approx(expected)
        assert chance >= 1 / len(guesses)


def test_random_object_miou_weighs_objects_by_their_sentences() -> None:
    frame = pd.DataFrame({"chance_iou": [0.2, 0.5], "sentences": [["a", "b", "c"], ["d"]]})
    assert audit.random_object_miou(frame) == pytest.approx((3 * 0.2 + 0.5) / 4)


def test_the_audit_counts_what_is_there(tmp_path: Path) -> None:
    refcoco = index.prepare(FIXTURE, "refcoco", tmp_path / "a", check_counts=False)
    umd = index.prepare(FIXTURE, "refcocog-umd", tmp_path / "b", check_counts=False)
    scenes = refcoco.assign(dataset="scenes", kinds=refcoco["kinds"].map(lambda kinds: ["relation"] * len(kinds)))
    text = audit.audit({"refcoco": refcoco, "refcocog-umd": umd, "scenes": scenes})
    assert "| refcoco train | 20 | 42 | 5 | 4.0 |" in text
    assert "| refcoco testA | refcocog-umd test | 1 |" in text
    assert "| refcoco | refcocog-umd | 8 |" in text
    assert "| refcoco | scenes |" not in text  # ids of drawn images are not COCO's
    assert "| scenes train | 42 |" in text
    assert f"| refcoco val | {audit.random_object_miou(refcoco[refcoco['split'] == 'val']):.3f} |" in text
    assert "Sentence kinds" not in audit.audit({"refcoco": refcoco})
    assert "None." in audit.audit({"refcoco": refcoco})


def test_the_audit_tells_repeated_from_ambiguous(tmp_path: Path) -> None:
    frame = index.prepare(FIXTURE, "refcoco", tmp_path, check_counts=False)
    one_image = frame[frame["image_id"] == frame["image_id"].iloc[0]].head(2).copy()
    one_image["sentences"] = [["Left  man", "left man"], ["LEFT MAN"]]
    assert "| refcoco train | 1 | 1 | 1 |" in audit.audit({"refcoco": one_image})


def test_images_that_are_trained_on_and_evaluated_are_told() -> None:
    frame = pd.DataFrame({"image_id": [1, 1, 2, 3], "split": ["train", "train", "train", "val"]})
    assert audit.shared_images(frame) == ""
    told = audit.shared_images(frame.assign(image_id=[1, 1, 2, 1]))
    assert told.startswith("1 of 2 training images (2 of 3 objects) are also in the val or test split")
