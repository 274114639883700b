"""Mixed training: three sets in one index, without the images that one trains on and another evaluates on."""

import json
import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from wimfris.cli.app import data_make, data_prepare
from wimfris.data import index, mixed, refer
from wimfris.data.index import read_index
from wimfris.data.source import make_source, source_root
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import MIXED

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "golden" / "refer_fixture"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's two sets, and RefCOCO+ as a copy of RefCOCO with one of its training images in val."""
    root = tmp_path_factory.mktemp("official") / "data"
    shutil.copytree(FIXTURE, root)
    shutil.copytree(root / "refcoco", root / "refcoco+")
    path = root / "refcoco+" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())  # ours, see tests/golden
    moved = min(ref["image_id"] for ref in refs if ref["split"] == "train")
    for ref in refs:
        ref["split"] = "val" if ref["image_id"] == moved else ref["split"]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    return root


def images(frame: pd.DataFrame, split: str) -> set[int]:
    rows = frame["split"] == "train" if split == "train" else frame["split"] != "train"
    return set(frame.loc[rows, "image_id"])


def test_strict_trains_on_no_image_that_is_evaluated(official: Path, tmp_path: Path) -> None:
    strict = mixed.prepare_mixed(official, MIXED, tmp_path / "a", strict=True, check_counts=False)
    published = mixed.prepare_mixed(official, MIXED, tmp_path / "b", strict=False, check_counts=False)
    assert images(strict, "train") and not images(strict, "train") & images(strict, "held out")
    assert images(published, "train") & images(published, "held out")
    # nothing else differs: evaluation is the sets' own, and training the rest
    held_out = images(published, "held out")
    kept = published[(published["split"] != "train") | ~published["image_id"].isin(held_out)]
    pd.testing.assert_frame_equal(strict, kept.reset_index(drop=True))
    assert list(published["dataset"].unique()) == list(MIXED)
    pd.testing.assert_frame_equal(read_index(tmp_path / "a" / "index.parquet"), strict)
    for name in MIXED:
        own = index.prepare(official, name, tmp_path / name, check_counts=False)
        of_set = published[published["dataset"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_set, own)


def test_what_is_left_out_is_counted(official: Path, tmp_path: Path) -> None:
    published = mixed.prepare_mixed(official, MIXED, tmp_path, strict=False, check_counts=False)
    strict = mixed.prepare_mixed(official, MIXED, tmp_path, strict=True, check_counts=False)
    counts = pd.read_csv(tmp_path / mixed.COUNTS).set_index("dataset")
    assert list(counts.index) == [*MIXED, "all"]
    for name in MIXED:
        before, after = (
            frame[(frame["dataset"] == name) & (frame["split"] == "train")] for frame in (published, strict)
        )
        assert counts.loc[name, "objects"] == len(before)
        assert counts.loc[name, "shared_objects"] == len(before) - len(after)
        assert counts.loc[name, "images"] == before["image_id"].nunique()
        assert counts.loc[name, "shared_images"] == before["image_id"].nunique() - after["image_id"].nunique()
    assert counts.loc["all", "shared_objects"] == counts.loc[list(MIXED), "shared_objects"].sum() > 0
    assert counts.loc["all", "images"] == len(images(published, "train"))
    frame = counts.reset_index()
    assert "left out of training" in mixed.told(frame, strict=True)
    assert "leaking" in mixed.told(frame, strict=False) and "leaking" not in mixed.told(frame, strict=True)


def test_each_set_has_the_published_counts(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^refcoco: refs\(unc\)\.p is not the published split"):
        mixed.prepare_mixed(official, MIXED, tmp_path, strict=True)


@pytest.mark.parametrize(("name", "word"), [("mixed_strict", "left out"), ("mixed_as_published", "leaking")])
def test_stages_take_mixed_data(
    name: str,
    word: str,
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content |= {"scale": "base", "data": {"name": name, "root": str(official)}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    settings = read_params().settings()
    assert settings.data.length == 22 and settings.data.splits == ("val", "testA", "testB", "test")
    data_make()
    told = json.loads((settings.folder / "refer" / "source.json").read_text())
    assert len(told["sha256"]) == 6, "no two of the files share a name"
    assert source_root(settings) == official
    monkeypatch.setattr(index, "PUBLISHED_OBJECTS", {})
    data_prepare()
    audit = (settings.folder / "index" / "audit.md").read_text()
    assert word in audit.splitlines()[2] and word in capsys.readouterr().out
    shared = [line for line in audit.splitlines() if line.startswith("| refcoco train | refcoco+ val |")]
    assert bool(shared) == (name == "mixed_as_published"), "the audit's own count of shared images agrees"


def test_a_set_that_is_missing_is_named(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(official, tmp_path / "data"))
    (copy / "refcocog" / "refs(umd).p").unlink()
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"scale": "base"}
    content["data"] = {"name": "mixed_strict", "root": "data"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"refcocog-umd: missing data/refcocog/refs\(umd\)\.p; unpack"):
        make_source(read_params().settings())


def test_leaking_results_say_so(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"scale": "base"}
    told = {}
    for name in ("refcoco", "mixed_strict", "mixed_as_published"):
        content["data"]["name"] = name
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        told[name] = mixed.dataset_label(read_params(tmp_path / "params.yaml").settings().data, "refcoco")
    assert told["refcoco"] == "refcoco"
    assert told["mixed_strict"] == "refcoco (mixed_strict)"
    assert told["mixed_as_published"] == "refcoco (mixed_as_published: leaking)"
    assert refer.layout("refcoco").split_by == "unc"
