"""The official files: drawn for the built-in set, otherwise the user's own, read in place."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from params_file import write_params
from refer_files import FIXTURE

from wimfris.data.source import make_source, source_images, sources
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Scale base on RefCOCO, whose official files are a copy of the fixture."""
    shutil.copytree(FIXTURE, tmp_path / "official")
    write_params(tmp_path, scale="base", data={"name": "refcoco", "root": "official"})
    monkeypatch.chdir(tmp_path)
    return read_params().settings()


def test_official_files_are_recorded_and_not_copied(settings: Settings) -> None:
    folder = make_source(settings)
    assert folder == Path("runs/refcoco-base/refer")
    assert [path.name for path in folder.rglob("*")] == ["source.json"]
    pointer = json.loads((folder / "source.json").read_text())
    files = [f"official/refcoco/{name}" for name in ("refs(unc).p", "instances.json")]
    assert list(pointer["sha256"]) == files
    assert [str(path) for source in sources(settings) for path in source.annotations] == files
    assert source_images(settings) == Path("official/images/train2014")


def test_missing_official_files_are_named(settings: Settings) -> None:
    Path("official/refcoco/instances.json").unlink()
    with pytest.raises(UserError, match=r"refcoco: missing official/refcoco/instances\.json; put it there") as error:
        make_source(settings)
    assert "\n" not in str(error.value)


def test_changed_official_files_are_refused(settings: Settings) -> None:
    make_source(settings)
    with Path("official/refcoco/instances.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"instances\.json: changed since stage `data`; .*dvc repro -f data"):
        sources(settings)


def test_a_stage_that_has_not_run_is_named(settings: Settings) -> None:
    for find in (sources, source_images):
        with pytest.raises(UserError, match=r"^runs/refcoco-base/refer.*: missing; run `dvc repro data`$"):
            find(settings)


def test_the_built_in_set_has_the_counts_of_the_scale(project: Any) -> None:
    settings = project.params().settings()
    assert sources(settings)[0].refs == Path("runs/scenes-smoke/refer/scenes/refs(seed).p")
    images = list(source_images(settings).iterdir())
    assert len(images) == sum(dict(settings.data.scenes).values())
