"""The official REFER layout: the fixture is read exactly, and every fault is named."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from refer_files import FIXTURE, SETS, official

from wimfris.data import refer
from wimfris.data.refer import declared_source
from wimfris.data.rle import decode_rle
from wimfris.errors import UserError

GOLDEN = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "refer")
    return tmp_path / "refer"


def load(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the references and instances of RefCOCO."""
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    return refs, json.loads((root / "refcoco" / "instances.json").read_text())


def save(root: Path, refs: Any, instances: Any, protocol: int = 2) -> None:
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))


@pytest.mark.parametrize(("name", "golden"), [("refcoco", "refcoco"), ("refcocog-umd", "refcocog")])
def test_the_fixture_is_read_exactly(name: str, golden: str) -> None:
    objects = refer.read_refer(official(FIXTURE, name))
    assert len(objects) == len(GOLDEN[golden])
    for referred, expected in zip(objects, GOLDEN[golden], strict=True):
        mask = decode_rle(referred.rle_counts, referred.height, referred.width)
        assert {
            "ref_id": referred.ref_id,
            "image": referred.file_name,
            "split": referred.split,
            "category": referred.category,
            "sentences": [sentence.text for sentence in referred.sentences],
            "mask_area": referred.area,
            "mask_row_sums": mask.sum(axis=1).tolist(),
        } == {key: value for key, value in expected.items() if key != "bbox"}
        assert referred.dataset == name
        assert mask.shape == (referred.height, referred.width)
        assert referred.rle_counts in referred.image_masks
        assert {sentence.kind for sentence in referred.sentences} == {""}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_protocol_and_the_extra_key_kind_are_read(root: Path, protocol: int) -> None:
    refs, instances = load(root)
    refs[0]["sentences"][0]["kind"] = "relation"
    save(root, refs, instances, protocol)
    objects = refer.read_refer(official(root))
    assert [sentence.kind for sentence in objects[0].sentences] == ["relation", ""]
    assert [o.ref_id for o in objects] == [o.ref_id for o in refer.read_refer(official(FIXTURE))]


def test_pickles_and_json_of_another_form_are_refused_by_key(root: Path) -> None:
    refs, instances = load(root)
    del refs[3]["split"]
    save(root, refs, instances)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: 3\.split: Field required"):
        refer.read_refer(official(root))
    save(root, {"not": "a list"}, instances)
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: the whole file"):
        refer.read_refer(official(root))
    refs, instances = load(FIXTURE)
    save(root, refs, {key: value for key, value in instances.items() if key != "categories"})
    with pytest.raises(UserError, match=r"instances\.json: categories"):
        refer.read_refer(official(root))
    (root / "refcoco" / "instances.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances\.json: not readable JSON"):
        refer.read_refer(official(root))


def test_all_unusable_references_are_listed_together(root: Path) -> None:
    refs, instances = load(root)
    refs[0]["ann_id"] = -5
    refs[1]["image_id"] = -6
    refs[2]["sentences"] = []
    broken = next(a for a in instances["annotations"] if a["id"] == refs[5]["ann_id"])
    broken["segmentation"] = []
    save(root, refs, instances)
    with pytest.raises(UserError) as caught:
        refer.read_refer(official(root))
    message = str(caught.value)
    assert "4 of 32 references cannot be used" in message
    assert "ref 1 has no annotation (ann_id -5)" in message
    assert "ref 2 has no image (image_id -6)" in message
    assert "ref 3 has no sentence" in message
    assert "ref 6 has no usable mask" in message
    assert "\n" not in message


def test_an_empty_sentence_is_a_case_like_any_other(root: Path) -> None:
    refs, instances = load(root)
    refs[0]["sentences"][0]["sent"] = "  "
    save(root, refs, instances)
    assert refer.read_refer(official(root))[0].sentences[0].text == ""


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refcocog/refs\(google\)\.p and .*refcocog/instances\.json; put it there"):
        refer.check_annotations(official(tmp_path, "refcocog-google"))
    with pytest.raises(UserError, match=r"scenes/refs\(seed\)\.p.*; run `dvc repro data`"):
        refer.check_annotations(refer.scenes_source(tmp_path))
    refer.check_annotations(official(FIXTURE))


@pytest.mark.parametrize("table", ["images", "annotations", "categories"])
def test_an_id_that_occurs_twice_in_a_table_is_refused(root: Path, table: str) -> None:
    refs, instances = load(root)
    instances[table].append(dict(instances[table][0]))
    save(root, refs, instances)
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[table]
    with pytest.raises(UserError, match=rf"instances\.json: {kind} id {instances[table][0]['id']} occurs twice"):
        refer.read_refer(official(root))


def test_a_ref_id_and_a_sentence_id_that_occur_twice_are_refused(root: Path) -> None:
    refs, instances = load(root)
    refs[3]["ref_id"] = refs[4]["ref_id"]
    save(root, refs, instances)
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p: ref id {refs[4]['ref_id']} occurs twice"):
        refer.read_refer(official(root))
    refs, instances = load(FIXTURE)
    refs[0]["sentences"] = [dict(refs[0]["sentences"][0]) for _ in "12"]
    save(root, refs, instances)
    with pytest.raises(UserError, match=r"ref 1: sentence id \d+ occurs twice"):
        refer.read_refer(official(root))


def test_sentence_ids_that_start_again_in_every_object_are_read(root: Path) -> None:
    refs, instances = load(root)
    for ref in refs:
        for number, sentence in enumerate(ref["sentences"]):
            sentence["sent_id"] = number
    save(root, refs, instances)
    assert refer.read_refer(official(root))[5].sentences[0].sent_id == 0


BOX = [2, 2, 20, 2, 20, 20, 2, 20]
FAULTS = [
    ([BOX[:7]], "odd number of coordinates (7)"),
    ([[1, 1, 5, 5]], "no polygon has three points"),
    ([[2.1e8, *BOX[1:]]], "coordinate 2.1e+08 lies far outside"),
    ([[float("nan"), *BOX[1:]]], "coordinate nan"),
    ([[*BOX[:7], float("inf")]], "coordinate inf"),
    ([[-(10.0**9), *BOX[1:]]], "far outside"),
    ([[True, *BOX[1:]]], "something other than numbers"),
    ([2, 2, 20, 2, 20, 20], "no list of coordinates"),
    ({"size": [3, 4], "counts": [12]}, "size [3, 4]"),
    ({"size": 3, "counts": [12]}, "size 3"),
]


@pytest.mark.parametrize(("segmentation", "fault"), FAULTS)
def test_geometry_that_is_no_mask_is_named_by_its_annotation(root: Path, segmentation: Any, fault: str) -> None:
    """A reference to it is refused; an annotation that no reference names is left out, and noted."""
    refs, instances = load(root)
    refs = refs[:1]
    save(root, refs, instances)
    whole = refer.read_refer(official(root))[0]
    own = refs[0]["ann_id"]
    (annotation,) = (a for a in instances["annotations"] if a["id"] == own)
    right, annotation["segmentation"] = annotation["segmentation"], segmentation
    save(root, refs, instances)
    with pytest.raises(UserError) as error:
        refer.read_refer(official(root))
    assert f"ref 1 has no usable mask (ann_id {own}: " in str(error.value) and fault in str(error.value)
    annotation["segmentation"] = right
    instances["annotations"].append(annotation | {"id": 987654, "segmentation": segmentation})
    save(root, refs, instances)
    notes: list[str] = []
    assert refer.read_refer(official(root), notes) == [whole]
    (note,) = notes
    assert "annotation 987654 is left out: " in note and fault in note


def test_masks_without_a_pixel_and_polygons_that_are_left_out_are_counted(root: Path) -> None:
    refs, instances = load(root)
    by_id = {annotation["id"]: annotation for annotation in instances["annotations"]}
    image = {image["id"]: image for image in instances["images"]}[refs[0]["image_id"]]
    outside = [image["width"] + number for number in (3, 3, 9, 3, 9, 9)]
    by_id[refs[0]["ann_id"]]["segmentation"] = [outside]
    by_id[refs[-1]["ann_id"]]["segmentation"] = [[1, 1, 4, 4], [1, 1, 9, 1, 9, 9, 1, 9]]
    save(root, refs, instances)
    notes: list[str] = []
    objects = refer.read_refer(official(root), notes)
    assert objects[0].area == 0 and objects[-1].area > 0
    short, empty = notes
    assert f"fewer than three points are left out of annotation {refs[-1]['ann_id']}" in short
    assert f"the mask of annotation {refs[0]['ann_id']} has no pixel" in empty and "scores 0" in empty


def test_references_may_name_several_objects_or_none(root: Path) -> None:
    """gRefCOCO's form: JSON, `ann_id` a list, [-1] for a sentence that names nothing."""
    refs, instances = load(root)
    image = refs[0]["image_id"]
    ids = [annotation["id"] for annotation in instances["annotations"] if annotation["image_id"] == image][:2]
    several, none = (copy.deepcopy(refs[0]) for _ in "12")
    several |= {"ref_id": 1, "ann_id": ids, "category_id": [1, 1]}
    none |= {"ref_id": 2, "ann_id": [-1], "category_id": [-1], "no_target": True}
    (root / "refcoco" / "grefs(unc).json").write_text(json.dumps([several, none]))
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    files = SETS["refcoco"].model_copy(update={"refs": "refcoco/grefs(unc).json"})
    both, nothing = refer.read_refer(declared_source("grefcoco", files, root))
    one = {o.ann_ids[0]: o for o in refer.read_refer(official(root)) if o.image_id == image}
    assert both.ann_ids == tuple(ids) and nothing.ann_ids == () and nothing.category == ""
    masks = [decode_rle(counts, both.height, both.width) for counts in both.image_masks]
    assert (decode_rle(both.rle_counts, both.height, both.width) == (masks[0] | masks[1])).all()
    assert not decode_rle(nothing.rle_counts, nothing.height, nothing.width).any() and nothing.area == 0
    assert len(one) >= 1


def test_an_annotation_file_that_cannot_be_read_is_named(root: Path) -> None:
    path = root / "refcoco" / "instances.json"
    path.unlink()
    path.symlink_to(root / "gone.json")
    with pytest.raises(UserError, match=r"refcoco: missing .*instances\.json"):
        refer.read_refer(official(root))
    path.unlink()
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"instances\.json: not readable JSON"):
        refer.read_refer(official(root))
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"instances\.json: not readable JSON"):
        refer.read_refer(official(root))
