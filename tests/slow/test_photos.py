"""Real photos with real outlines, from their declaration to the pictures of the report (docs/own_data.md).

The encoders have the sizes of CLIP ViT-B/16 and DINOv2 ViT-B/14 and random weights, and read images of 70 pixels, so
this shows that the data path works and nothing about quality. It needs the folder of photos in REFER's layout that
WIMFRIS_PHOTOS names, by default ../shared/photos, and CLIP's byte pairs beside it.
"""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.data.index import decode_mask, read_index
from wimfris.data.tokens import BYTE_PAIRS
from wimfris.encoders.backbones import text_backbone
from wimfris.runs.records import read_records
from wimfris.settings.backbones import TEXT
from wimfris.settings.params import merge

ROOT = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("WIMFRIS_PHOTOS", ROOT.parent / "shared" / "photos"))
PAIRS = PHOTOS.parent / "golden" / BYTE_PAIRS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (PHOTOS.is_dir() and PAIRS.is_file()), reason=f"no photos in {PHOTOS}"),
]

FOLDER = Path("runs/photos-base")
PROTOCOLS = ("cris", "lavt", "remamber")
COUNTS = {"train": [164, 328, 24], "val": [65, 130, 9], "testA": [62, 124, 8], "testB": [34, 68, 7]}
CHANGES = {
    "scale": "base",
    "data": {"name": "photos", "root": "data"},
    "seeds": [0],
    "datasets": {
        "photos": {
            "refs": "photos/refs(tpl).p",
            "instances": "photos/instances.json",
            "images": "images/train2014",
            "splits": ["val"],
            "tokens": 17,
            "counts": COUNTS,
        }
    },
    "scales": {
        "base": {
            "data": {"image_size": 70},
            "encoders": {
                "text": {"source": "data/text.safetensors", "revision": None},
                "vision": {"source": "random", "revision": None},
            },
            "train": {
                "epochs": 1,
                "epoch_steps": 3,
                "batch_size": 2,
                "learning_rate": 1.0e-3,
                "schedule": {"kind": "cosine", "warmup": 1},
                "precision": "fp32",
                "device": "cpu",
                "threads": 1,
                "workers": 0,
            },
            "evaluate": {"batch_size": 10},
        }
    },
}
STEPS = """\
wimfris data check
wimfris data make
wimfris data prepare
wimfris data audit
wimfris encoders record
wimfris train --run full-0
wimfris evaluate --run full-0 --protocol lavt --out lavt.parquet
wimfris evaluate --run full-0 --protocol remamber --out remamber.parquet
wimfris gather --variants full
wimfris figures
wimfris predict --run full-0 --image data/images/train2014/{photo} --text 'left person' --out predicted
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after every step."""
    folder = tmp_path_factory.mktemp("photos")
    content = merge(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), CHANGES)
    content |= {
        "variants": {"full": {}},
        "extended": {},
        "controls": {},
        "explorer": ["full"],
    }  # the windows of others do not fit a grid of 5 x 5
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "data").mkdir()
    for name in ("photos", "images"):
        (folder / "data" / name).symlink_to(PHOTOS / name)
    shutil.copy(PAIRS, folder / "data")
    clip = TEXT["clip"]
    sizes = {"vocabulary": clip.vocabulary, "length": clip.positions, "end_token": clip.vocabulary - 1}
    torch.manual_seed(0)
    text = text_backbone(width=512, layers=12, heads=8, **sizes)
    save_file(text.state_dict(), folder / "data" / "text.safetensors")
    photo = next((PHOTOS / "images" / "train2014").iterdir()).name
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        for line in STEPS.format(photo=photo).splitlines():
            _, *arguments = shlex.split(line)
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            outputs[line] = result.output
    (folder / "outputs.json").write_text(json.dumps(outputs))
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def test_every_step_says_what_it_did() -> None:
    outputs = json.loads(Path("outputs.json").read_text())
    assert "all there, all counts right" in outputs["wimfris data check"]
    assert "325 referred objects, 650 sentences" in outputs["wimfris data prepare"]
    assert "photos" in outputs["wimfris data audit"]
    for protocol in PROTOCOLS[1:]:
        line = f"wimfris evaluate --run full-0 --protocol {protocol} --out {protocol}.parquet"
        assert f"photos, scale base, protocol {protocol}" in outputs[line]


def test_every_photo_and_mask_is_in_the_index() -> None:
    """A mask is the one that COCO's own code draws from the polygons, and has the photo's size."""
    index = read_index(FOLDER / "index" / "index.parquet")
    instances = json.loads((PHOTOS / "photos" / "instances.json").read_text())
    polygons = {annotation["id"]: annotation["segmentation"] for annotation in instances["annotations"]}
    assert index["file_name"].nunique() == 48 and len(index) == 325
    for row in index.to_dict("records"):
        mask = decode_mask(row)
        with Image.open(PHOTOS / "images" / "train2014" / row["file_name"]) as photo:
            assert mask.shape == photo.size[::-1]
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons[row["ann_ids"][0]], *mask.shape))
        assert mask.any() and (coco_mask.decode(runs) == mask).all()


def test_records_hold_every_sentence_under_each_protocol() -> None:
    """Training evaluates under cris."""
    index = read_index(FOLDER / "index" / "index.parquet")
    areas = {row["ref_id"]: decode_mask(row).sum() for row in index.to_dict("records")}
    for protocol in PROTOCOLS:
        path = FOLDER / "core" / "full-0" / "records.parquet" if protocol == "cris" else Path(f"{protocol}.parquet")
        records = read_records(path)
        assert set(records["protocol"]) == {protocol} and set(records["split"]) == {"val"}
        assert records.groupby("condition").size().to_dict() == {"sentence": 130, "shuffled": 130, "empty": 130}
        assert (records["intersection"] <= records["union"]).all()
        if protocol != "lavt":  # which judges at 480 x 480
            assert (records["target_area"] == records["ref_id"].map(areas)).all()


def test_the_record_of_the_encoders_names_the_tokenizer() -> None:
    described = json.loads((FOLDER / "encoders.json").read_text())
    assert len(described["text"]["tokenizer_sha256"]) == 64
    assert 60e6 < described["text"]["parameters"] < 64e6 and 85e6 < described["vision"]["parameters"] < 88e6


def test_the_pictures_are_drawn() -> None:
    with Image.open("reports/figures/photos-base/gallery.png") as gallery:
        assert min(gallery.size) > 800
        assert gallery.mode == "RGB", "a palette would posterise photos"
    photo = next((PHOTOS / "images" / "train2014").iterdir())
    with Image.open(photo) as original:
        for path in Path("predicted").iterdir():
            with Image.open(path) as picture:
                assert picture.size == original.size, path
