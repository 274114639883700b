"""docs/own_data.md: its data set trains, and gets its table."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.data.index import decode_mask, read_index
from wimfris.metrics import summarise_generalised
from wimfris.results.report.tables import main_table
from wimfris.runs.records import read_records
from wimfris.settings.params import merge

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
OUTS = Path("runs/shapes-smoke")
pytestmark = pytest.mark.slow  # all read one training


def call(command: str) -> str:
    """Run `wimfris ...` in this process, and return its output."""
    _, *arguments = shlex.split(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after every step of the page."""
    folder = tmp_path_factory.mktemp("own")
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    python, *rest = (body for name, body in BLOCKS if name in ("python", "sh"))
    for body in (body for name, body in BLOCKS if name == "yaml"):
        content = merge(content, yaml.safe_load(body))
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(python, "own_data.md", "exec"), {})
        outputs = [call(line) for line in rest[0].splitlines()]
    (folder / "outputs.json").write_text(json.dumps(outputs))
    return folder


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("COLUMNS", "200")


def test_every_step_says_what_it_did() -> None:
    check, _, prepare, *_, table = json.loads(Path("outputs.json").read_text())
    assert "all there, all counts right" in check
    assert "72 referred objects, 72 sentences" in prepare
    assert "shapes, scale smoke, protocol cris" in table


def test_the_table_has_the_measures_of_sentences_that_name_nothing() -> None:
    records = read_records(Path("shapes.parquet"))
    pd.testing.assert_frame_equal(records, read_records(OUTS / "core" / "full-0" / "records.parquet"))
    assert set(records["split"]) == {"val", "test"} and set(records["dataset"]) == {"shapes"}
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    expected = summarise_generalised(own["intersection"], own["union"], own["target_area"])
    table = main_table(records).set_index("split")
    metrics = json.loads((OUTS / "core" / "full-0" / "metrics.json").read_text())
    for name, value in expected.items():
        assert table.loc["val", name] == value == metrics["val"]["sentence"][name]


def test_a_mask_is_the_union_of_the_objects_that_a_sentence_names() -> None:
    index = read_index(OUTS / "index" / "index.parquet")
    circle, square, both, none = (decode_mask(row) for row in index.head(4).to_dict("records"))
    assert (both == (circle | square)).all() and circle.any() and square.any() and not none.any()
    assert index["ann_ids"].head(4).tolist() == [[0], [1], [0, 1], []]


def test_an_image_that_changed_after_prepare_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("data/shapes/images/12.png")
    before = path.read_bytes()
    try:
        for content in (before[:-1], bytes([*before[:-40], before[-40] ^ 1, *before[-39:]])):
            path.write_bytes(content)
            result = CliRunner().invoke(app, ["evaluate", "--run", "full-0", "--out", str(tmp_path / "o.parquet")])
            assert f"{path}: changed since `prepare` ({len(content)} bytes, {len(before)} then)" in str(
                result.exception
            )
    finally:
        path.write_bytes(before)


def test_a_word_that_the_encoder_does_not_know_is_named_by_prepare(tmp_path: Path) -> None:
    path = Path("data/shapes/refs.json")
    before = path.read_text()
    try:
        path.write_text(before.replace("the triangle", "the café"))
        call("wimfris data make")
        result = CliRunner().invoke(app, ["data", "prepare"])
        assert re.match(
            r"shapes: natural language needs a published text encoder, .* \(word 'caf\S+ ", str(result.exception)
        )
    finally:
        path.write_text(before)
        call("wimfris data make")
