"""Mixed training: three sets in one index, with and without the images that one trains on and another evaluates on."""

import json
import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
import refer_files
from params_file import edit_yaml, write_params

from wimfris.cli.prepare import data_make, data_prepare
from wimfris.data.index import build_index
from wimfris.data.mixed import count_shared, dataset_label, drop_shared, summary
from wimfris.data.prepare import prepare_index
from wimfris.data.refer import ReferredObject, read_refer
from wimfris.data.source import make_source, sources
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings

ROOT = Path(__file__).parents[2]


MIXED = ("refcoco", "refcoco+", "refcocog-umd")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's two sets, and RefCOCO+ as a copy of RefCOCO with one of its training images in val."""
    root = tmp_path_factory.mktemp("official") / "data"
    shutil.copytree(refer_files.FIXTURE, root)
    shutil.copytree(root / "refcoco", root / "refcoco+")
    path = root / "refcoco+" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())  # our own file, so it is safe
    moved = min(ref["image_id"] for ref in refs if ref["split"] == "train")
    for ref in refs:
        ref["split"] = "val" if ref["image_id"] == moved else ref["split"]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    return root


@pytest.fixture(scope="module")
def objects(official: Path) -> list[ReferredObject]:
    return [referred for name in MIXED for referred in read_refer(refer_files.official(official, name))]


def project(folder: Path, name: str, root: Path, monkeypatch: pytest.MonkeyPatch, *, counts: bool = False) -> Settings:
    """Change to a project folder at scale base with this data set, and return its settings."""
    path = write_params(folder, scale="base", data={"name": name, "root": str(root)})
    if not counts:  # the fixture is an excerpt
        edit_yaml(path, **{f"datasets__{declared}__counts": {} for declared in refer_files.SETS})
    monkeypatch.chdir(folder)
    return read_params().settings()


def images(frame: pd.DataFrame, split: str) -> set[int]:
    rows = frame["split"] == "train" if split == "train" else frame["split"] != "train"
    return set(frame.loc[rows, "image_id"])


@pytest.mark.slow
def test_strict_trains_on_no_image_that_is_evaluated(official: Path, objects: list[ReferredObject]) -> None:
    folder = official / "images" / "train2014"
    strict, published = build_index(drop_shared(objects), folder)[0], build_index(objects, folder)[0]
    assert images(strict, "train") and not images(strict, "train") & images(strict, "held out")
    assert images(published, "train") & images(published, "held out")
    # Everything else is equal: the evaluation splits, and the rest of training.
    held_out = images(published, "held out")
    rest = published[(published["split"] != "train") | ~published["image_id"].isin(held_out)]
    pd.testing.assert_frame_equal(strict, rest.reset_index(drop=True))
    assert list(published["dataset"].unique()) == list(MIXED)
    for name in MIXED:
        own = build_index(read_refer(refer_files.official(official, name)), folder)[0]
        part = published[published["dataset"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, own)


def test_shared_images_are_counted(official: Path, objects: list[ReferredObject]) -> None:
    folder = official / "images" / "train2014"
    strict, published = build_index(drop_shared(objects), folder)[0], build_index(objects, folder)[0]
    frame = count_shared(objects)
    shared = frame.set_index("dataset")
    assert list(shared.index) == [*MIXED, "all"]
    for name in MIXED:
        before, after = (
            index[(index["dataset"] == name) & (index["split"] == "train")] for index in (published, strict)
        )
        assert shared.loc[name, "objects"] == len(before)
        assert shared.loc[name, "shared_objects"] == len(before) - len(after)
        assert shared.loc[name, "images"] == before["image_id"].nunique()
        assert shared.loc[name, "shared_images"] == before["image_id"].nunique() - after["image_id"].nunique()
    assert shared.loc["all", "shared_objects"] == shared.loc[list(MIXED), "shared_objects"].sum() > 0
    assert shared.loc["all", "images"] == len(images(published, "train"))
    assert "left out of training" in summary(frame, strict=True)
    assert "leaking" in summary(frame, strict=False) and "leaking" not in summary(frame, strict=True)


def test_each_set_must_have_the_declared_counts(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = project(tmp_path, "mixed_strict", official, monkeypatch, counts=True)
    make_source(settings)
    with pytest.raises(
        UserError, match=r"refs\(unc\)\.p: not the split that datasets\.refcoco\.counts declares: train has"
    ):
        prepare_index(settings)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "word"), [("mixed_strict", "left out"), ("mixed_as_published", "leaking")])
def test_stages_accept_mixed_data(
    name: str,
    word: str,
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = project(tmp_path, name, official, monkeypatch)
    assert settings.data.length == 17 and settings.data.splits == ("val", "testA", "testB", "test")
    data_make()
    pointer = json.loads((settings.folder / "refer" / "source.json").read_text())
    assert len(pointer["sha256"]) == 6, "all files have different names"
    assert [one.refs.parent.parent for one in sources(settings)] == [official] * 3
    data_prepare()
    folder = settings.folder / "index"
    audit = (folder / "audit.md").read_text()
    assert word in audit.splitlines()[2] and word in capsys.readouterr().out
    shared = [line for line in audit.splitlines() if line.startswith("| refcoco train | refcoco+ val |")]
    assert bool(shared) == (name == "mixed_as_published"), "the audit's own count of shared images agrees"
    assert list(pd.read_csv(folder / "mixed.csv")["dataset"]) == [*MIXED, "all"]


def test_a_missing_set_is_named(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(official, tmp_path / "data"))
    (copy / "refcocog" / "refs(umd).p").unlink()
    settings = project(tmp_path, "mixed_strict", Path("data"), monkeypatch)
    with pytest.raises(UserError, match=r"refcocog-umd: missing data/refcocog/refs\(umd\)\.p; put it there"):
        make_source(settings)


def test_leaking_results_are_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {
        name: dataset_label(project(tmp_path, name, Path("data"), monkeypatch).data, "refcoco")
        for name in ("refcoco", "mixed_strict", "mixed_as_published")
    }
    assert labels["refcoco"] == "refcoco"
    assert labels["mixed_strict"] == "refcoco (mixed_strict)"
    assert labels["mixed_as_published"] == "refcoco (mixed_as_published: leaking)"
