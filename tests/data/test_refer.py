"""The official REFER layout: the fixture is read exactly, and every fault is named."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from wimfris.data import refer
from wimfris.data.rle import decode_rle
from wimfris.errors import UserError

FIXTURE = Path(__file__).parents[1] / "golden" / "refer_fixture"
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
    objects = refer.read_refer(FIXTURE, name)
    assert len(objects) == len(GOLDEN[golden])
    for referred, expected in zip(objects, GOLDEN[golden], strict=True):
        mask = decode_rle(referred.rle_counts, referred.height, referred.width)
        assert {
            "ref_id": referred.ref_id,
            "image": referred.file_name,
            "split": referred.split,
            "category": referred.category,
            "bbox": list(referred.bbox),
            "sentences": [sentence.text for sentence in referred.sentences],
            "mask_area": referred.area,
            "mask_row_sums": mask.sum(axis=1).tolist(),
        } == expected
        assert referred.dataset == name
        assert mask.shape == (referred.height, referred.width)
        assert referred.rle_counts in referred.image_masks
        assert {sentence.kind for sentence in referred.sentences} == {""}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_protocol_and_the_extra_key_kind_are_read(root: Path, protocol: int) -> None:
    refs, instances = load(root)
    refs[0]["sentences"][0]["kind"] = "relation"
    save(root, refs, instances, protocol)
    objects = refer.read_refer(root, "refcoco")
    assert [sentence.kind for sentence in objects[0].sentences] == ["relation", ""]
    assert [o.ref_id for o in objects] == [o.ref_id for o in refer.read_refer(FIXTURE, "refcoco")]


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
    with pytest.raises(UserError, match=r"data set must be one of scenes, refcoco, .*, got 'refcocog'"):
        refer.annotation_files(tmp_path, "refcocog")
    files = refer.annotation_files(FIXTURE, "refcoco")
    assert files["refs"].name == "refs(unc).p"
    assert files["instances"].is_file()
