import copy
import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from wimfris.data import refer
from wimfris.errors import UserError

FIXTURE = Path(__file__).parents[1] / "golden" / "refer_fixture"
GOLDEN = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "refer")
    return tmp_path / "refer"


def load(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    # A copy, for the fixture's pickle shares strings and not dictionaries.
    return copy.deepcopy(refs), json.loads((root / "refcoco" / "instances.json").read_text())


def save(root: Path, refs: Any, instances: Any, protocol: int = 2) -> None:
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))


@pytest.mark.parametrize(("name", "golden"), [("refcoco", "refcoco"), ("refcocog-umd", "refcocog")])
def test_the_fixture_comes_out_exactly(name: str, golden: str) -> None:
    objects = refer.read_refer(FIXTURE, name)
    assert len(objects) == len(GOLDEN[golden])
    for found, expected in zip(objects, GOLDEN[golden], strict=True):
        mask = refer.decode_rle(found.rle_counts, found.height, found.width)
        assert {
            "ref_id": found.ref_id,
            "image": found.file_name,
            "split": found.split,
            "category": found.category,
            "bbox": list(found.bbox),
            "sentences": [sentence.text for sentence in found.sentences],
            "mask_area": found.area,
            "mask_row_sums": mask.sum(axis=1).tolist(),
        } == expected
        assert found.dataset == name
        assert mask.shape == (found.height, found.width)
        assert found.rle_counts in found.image_masks
        assert {sentence.kind for sentence in found.sentences} == {""}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_protocol_and_the_extra_key_kind_are_read(root: Path, protocol: int) -> None:
    refs, instances = load(root)
    refs[0]["sentences"][0]["kind"] = "relation"
    save(root, refs, instances, protocol)
    objects = refer.read_refer(root, "refcoco")
    assert [sentence.kind for sentence in objects[0].sentences] == ["relation", ""]
    assert [o.ref_id for o in objects] == [o.ref_id for o in refer.read_refer(FIXTURE, "refcoco")]


def test_byte_strings_of_python_2_become_text(tmp_path: Path) -> None:
    def short(text: bytes) -> bytes:  # SHORT_BINSTRING, as Python 2 writes a str
        return b"U" + bytes([len(text)]) + text

    path = tmp_path / "refs(unc).p"
    values = short("café".encode()) + short("café".encode("latin-1")) + short(b"plain")
    path.write_bytes(b"\x80\x02}(" + short(b"sent") + b"](" + values + b"eu.")
    assert refer.load_plain_pickle(path) == {"sent": ["café", "café", "plain"]}
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")  # STRING, protocol 0
    assert refer.load_plain_pickle(path) == ["café"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_a_class_is_named_and_never_executed(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"cos\nsystem\n(S'touch exploded'\ntR.")
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: refused, the pickle asks for os\.system"):
        refer.load_plain_pickle(path)
    path.write_bytes(pickle.dumps([Bomb()], protocol))
    with pytest.raises(UserError, match="the pickle asks for"):
        refer.load_plain_pickle(path)
    path.write_bytes(pickle.dumps([OrderedDict(a=1)], protocol))
    with pytest.raises(UserError, match=r"collections\.OrderedDict"):
        refer.load_plain_pickle(path)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_pickle_is_one_line_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    for protocol in (0, 2):
        whole = pickle.dumps(load(FIXTURE)[0], protocol)
        for kept in [*range(40), *range(40, len(whole), 97), len(whole) - 1]:
            path.write_bytes(whole[:kept])
            with pytest.raises(UserError, match=r"refs\(unc\)\.p: not a readable pickle") as caught:
                refer.load_plain_pickle(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html>\n<html>",
        b"PK\x03\x04",
        b"\x80\x02X\xff\xff\xff\xffa.",
    ],
)
def test_other_files_are_no_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable pickle"):
        refer.load_plain_pickle(path)


def test_pickles_and_json_of_another_form_are_refused_by_key(root: Path) -> None:
    refs, instances = load(root)
    del refs[3]["split"]
    save(root, refs, instances)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: 3\.split: Field required"):
        refer.read_refer(root, "refcoco")
    save(root, {"not": "a list"}, instances)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: the whole file"):
        refer.read_refer(root, "refcoco")
    refs, instances = load(FIXTURE)
    save(root, refs, {key: value for key, value in instances.items() if key != "categories"})
    with pytest.raises(UserError, match=r"instances\.json: categories"):
        refer.read_refer(root, "refcoco")
    (root / "refcoco" / "instances.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances\.json: not readable JSON"):
        refer.read_refer(root, "refcoco")


def test_all_unusable_references_are_listed_together(root: Path) -> None:
    refs, instances = load(root)
    refs[0]["ann_id"] = -5
    refs[1]["image_id"] = -6
    refs[2]["sentences"] = []
    refs[3]["ref_id"] = refs[4]["ref_id"]
    broken = next(a for a in instances["annotations"] if a["id"] == refs[5]["ann_id"])
    broken["segmentation"] = []
    save(root, refs, instances)
    with pytest.raises(UserError) as caught:
        refer.read_refer(root, "refcoco")
    message = str(caught.value)
    assert "5 of 32 references cannot be used" in message
    assert "ref 1 has no annotation (ann_id -5)" in message
    assert "ref 2 has no image (image_id -6)" in message
    assert "ref 3 has no sentence" in message
    assert "ref 5 occurs twice" in message
    assert "ref 6 has no usable mask" in message
    assert "\n" not in message


def test_an_empty_sentence_is_a_case_like_any_other(root: Path) -> None:
    refs, instances = load(root)
    refs[0]["sentences"][0]["sent"] = "  "
    save(root, refs, instances)
    assert refer.read_refer(root, "refcoco")[0].sentences[0].text == ""


def test_missing_files_and_unknown_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refcocog/refs\(google\)\.p and .*refcocog/instances\.json; unpack"):
        refer.annotation_files(tmp_path, "refcocog-google")
    with pytest.raises(UserError, match=r"scenes/refs\(seed\)\.p"):
        refer.annotation_files(tmp_path, "scenes")
    with pytest.raises(UserError, match="'refcocog' is not known: choose one of scenes, refcoco, "):
        refer.annotation_files(tmp_path, "refcocog")
    files = refer.annotation_files(FIXTURE, "refcoco")
    assert files["refs"].name == "refs(unc).p"
    assert files["instances"].is_file()


MASKS = npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


@given(MASKS)
def test_both_run_length_forms_give_the_mask_back(mask: np.ndarray) -> None:
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    column_major = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(column_major)) + 1
    runs = np.diff([0, *edges, mask.size]).tolist()
    if column_major[0]:
        runs = [0, *runs]
    for counts in (compressed, runs):
        encoded = refer.encode_segmentation({"size": [height, width], "counts": counts}, height, width)
        assert np.array_equal(refer.decode_rle(encoded, height, width), mask)


@given(MASKS, st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=12))
def test_run_lengths_that_do_not_cover_the_image_are_refused(mask: np.ndarray, text: str) -> None:
    height, width = mask.shape
    try:
        encoded = refer.encode_segmentation({"size": [height, width], "counts": text}, height, width)
    except refer.SegmentationError:
        return
    assert refer.decode_rle(encoded, height, width).max() <= 1  # what passes has every pixel set by a run


def test_polygons_are_a_union() -> None:
    left, right = [0, 0, 6, 0, 6, 8, 0, 8], [4, 0, 10, 0, 10, 8, 4, 8]
    both = refer.decode_rle(refer.encode_segmentation([left, right], 8, 12), 8, 12)
    parts = [refer.decode_rle(refer.encode_segmentation([polygon], 8, 12), 8, 12) for polygon in (left, right)]
    assert both.max() == 1
    assert np.array_equal(both, parts[0] | parts[1])
    assert both.sum() == 80
    # Four numbers are two points, which enclose nothing; they are not a box.
    assert np.array_equal(refer.decode_rle(refer.encode_segmentation([[0, 0, 12, 8], left], 8, 12), 8, 12), parts[0])


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "neither"),
        ({"size": [4, 5]}, "neither"),
        ([], "no polygon"),
        ([[1, 2, 3, 4]], "no polygon"),
        ([["a"] * 6], "numbers"),
        ({"size": [5, 4], "counts": [20]}, "size"),
        ({"size": [4, 5], "counts": [19]}, "cover the 20 pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "cover"),
        ({"size": [4, 5], "counts": "P"}, "break off"),
        ({"size": [4, 5], "counts": "é"}, "foreign"),
    ],
)
def test_a_segmentation_that_is_no_mask_says_why(segmentation: Any, reason: str) -> None:
    with pytest.raises(refer.SegmentationError, match=reason):
        refer.encode_segmentation(segmentation, 4, 5)


def test_pairwise_iou_is_that_of_the_pixels() -> None:
    masks = np.random.default_rng(0).random((4, 9, 7)) < 0.5
    masks[3] = False
    counts = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"].decode() for m in masks]
    union = (masks[:, None] | masks[None]).sum((2, 3))
    expected = (masks[:, None] & masks[None]).sum((2, 3)) / np.maximum(union, 1)
    assert np.allclose(refer.pairwise_iou(counts, counts, 9, 7), expected)
    assert refer.pairwise_iou([], counts, 9, 7).shape == (0, 4)
