"""docs/ingest.md: the masks of another repository's model get their row, and our own give the same records."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.data.index import read_index
from wimfris.data.protocol import Squashed
from wimfris.errors import UserError
from wimfris.measure.ingest import ingest
from wimfris.results.evidence import (
    EvidenceFiles,
    gather,
    read_evidence,
    read_masks_of,
    read_part,
    write_core,
)
from wimfris.results.ingested import beside_ours, ingested_section, read_ingested
from wimfris.runs.records import SCHEMA, read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
FUNCTION, LOOP = (body for name, body in BLOCKS if name == "python")
INGEST, SHOW, EXPLORE, EXPORT = (body.splitlines() for name, body in BLOCKS if name == "sh")
ADDED = EvidenceFiles("scenes-smoke", added=True)


@pytest.fixture
def own(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Any) -> Any:
    """A project with the trained run full-0 as its core, as the working directory."""
    shutil.copytree(trained_folder / "runs", project.folder / "runs", dirs_exist_ok=True)
    project.edit(variants={"full": {}}, controls={}, seeds=[0], extra_seeds={})
    return project


def call(command: str, code: int = 0) -> str:
    """Run `wimfris ...` in this process, and return its output."""
    result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=code == 0)
    if code == 0:
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def write_as_their_loop(index: pd.DataFrame) -> None:
    """Run the page's lines in a loop like LAVT's, whose model predicts the left half of each 480 x 480 input."""
    refs = {
        row["ref_id"]: {"ref_id": row["ref_id"], "sent_ids": row["sent_ids"], "image_id": row["image_id"]}
        for row in index.to_dict("records")
    }
    images = {row["image_id"]: {"height": row["height"], "width": row["width"]} for row in index.to_dict("records")}
    refer = SimpleNamespace(loadRefs=lambda ids: [refs[one] for one in ids], Imgs=images)
    loader = SimpleNamespace(dataset=SimpleNamespace(refer=refer, ref_ids=list(refs)))
    before, first, inner, after = re.split(r"^# .*\n", LOOP, flags=re.MULTILINE)[1:]
    scope: dict[str, Any] = {"data_loader": loader, "output_mask": np.zeros((1, 480, 480), np.int64)}
    scope["output_mask"][:, :, :240] = 1
    exec(FUNCTION + before, scope)
    for row in index.to_dict("records"):
        exec(first, scope)
        for scope["j"] in range(len(row["sent_ids"])):
            exec(inner, scope)
    exec(after, scope)


def test_another_model_gets_its_row_beside_ours(own: Any) -> None:
    params = own.params()
    write_core(params)
    before = read_evidence(params)
    index = read_index(own.runs / "index" / "index.parquet")
    write_as_their_loop(index[index["split"] == "val"])
    assert "lavt_released" in call(INGEST[0])
    call(SHOW[0])
    main = Path("reports/tables/scenes-smoke/main.md").read_text()
    assert main.count("lavt\\_released") == 2 and "needs seeds" in main and "nan" not in main.lower()
    table = pd.read_csv("reports/tables/scenes-smoke/main.csv").set_index(["system", "split"])
    theirs = table.loc["lavt_released", "val"]
    assert theirs["seeds"] == 0 and np.isnan(theirs["miou_sd"]) and table.loc["full", "val"]["seeds"] == 1
    assert {"right", "iou_right"} <= set(table.columns) and 0 <= theirs["right"] <= 1
    records = read_ingested(params)
    compared = beside_ours(pd.concat([before.records, records]), resamples=300).iloc[0]
    assert compared["miou"] == pytest.approx(theirs["miou"], abs=1e-6)
    assert compared["miou_low"] < compared["miou"] < compared["miou_high"]
    assert compared["difference"] == pytest.approx(theirs["miou"] - table.loc["full", "val"]["miou"], abs=1e-6)
    assert "–" in ingested_section(beside_ours(records)).cells.to_string()
    # It joins no comparison of ours, and gathering runs keeps it.
    pd.testing.assert_frame_equal(read_evidence(params).records, before.records)
    shutil.copy(ROOT / "reports" / "claims.yaml", "reports")
    assert "reports/explorer.html" in call(EXPLORE[0])
    assert '"name":"lavt_released"' in Path("reports/explorer.html").read_text()
    row = read_part(ADDED).runs.iloc[0]
    assert row["seed"] == -1 and '"protocol": "cris"' in row["settings"] and '"val": "' in row["settings"]


def test_the_evidence_is_never_overwritten_silently(own: Any) -> None:
    index = read_index(own.runs / "index" / "index.parquet")
    params = own.params()
    for split in ("val", "testA"):
        write_as_their_loop(index[index["split"] == split])
        ingest(params, "lavt_released", Path("lavt.jsonl"), [split])
    assert set(read_ingested(params)["split"]) == {"val", "testA"}
    content = ADDED.records.read_bytes()
    with pytest.raises(UserError, match="on split testA already, from the same masks; give another name, or replace"):
        ingest(params, "lavt_released", Path("lavt.jsonl"), ["testA"])
    with pytest.raises(UserError, match="nothing was taken in"):
        ingest(params, "another", Path("lavt.jsonl"), ["val"])
    with pytest.raises(UserError, match="full is a variant"):
        ingest(params, "full", Path("lavt.jsonl"), ["testA"])
    assert ADDED.records.read_bytes() == content
    ingest(params, "lavt_released", Path("lavt.jsonl"), ["testA"], replace=True)
    assert ADDED.records.read_bytes() == content


@pytest.mark.parametrize("protocol", ["cris", "lavt", "remamber"])
def test_our_own_masks_give_the_same_records(own: Any, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Squashed.scores

    def half(self: Squashed, logits: Any, size: int) -> np.ndarray:  # a run of a few steps predicts nothing above 0
        values = scores(self, logits, size)
        return values - np.median(values, axis=(1, 2), keepdims=True)

    monkeypatch.setattr(Squashed, "scores", half)
    call(f"{EXPORT[0]} --protocol {protocol}")
    own.edit(evaluate={"protocol": protocol})
    ingest(own.params(), "again", Path("full.jsonl"))
    expected = read_records(Path("full.parquet"))
    expected = expected[expected["condition"] == "sentence"].assign(run="again", variant="again", seed=-1)
    actual = read_ingested(own.params())
    order = SCHEMA.names
    pd.testing.assert_frame_equal(
        actual.sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True), check_exact=True
    )
    assert actual["best_iou"].max() > 0 and actual["right_object"].any()


def test_gathering_runs_keeps_the_systems_that_were_not_trained_here(own: Any) -> None:
    params = own.params()
    call(EXPORT[0])
    ingest(params, "again", Path("full.jsonl"))
    gather(params, params.runs())
    assert set(read_part(ADDED).runs["run"]) == {"again", "full-0"}
    masks = read_masks_of(params, read_part(ADDED))
    own, again = (masks[masks["run"] == name].drop(columns=["run", "records"]) for name in ("full-0", "again"))
    pd.testing.assert_frame_equal(own.reset_index(drop=True), again.reset_index(drop=True))
