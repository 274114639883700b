"""A variant with encoders of its own trains on them, and is recorded beside the others."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.errors import UserError
from wimfris.inference.predict import Predictor
from wimfris.runs.records import read_records

pytestmark = pytest.mark.slow

OTHER = {
    "data": {"image_size": 48},
    "encoders": {"vision": {"family": "dinov3_vit", "width": 24}, "text": {"family": "bert", "width": 32}},
}


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_it_trains_evaluates_and_predicts(project: Any) -> None:
    project.edit(scales__smoke__variants={"other": OTHER}, extended={}, controls={}, variants={"full": {}})
    with pytest.raises(UserError, match="not prepared; run `wimfris encoders record --variant other` first"):
        call("train", "--run", "other-0")
    call("encoders", "record", "--variant", "other")
    record, shared = project.runs / "encoders" / "other.json", project.runs / "encoders.json"
    described = json.loads(record.read_text())
    assert described != json.loads(shared.read_text())
    call("train", "--run", "other-0")
    folder = project.runs / "extended" / "other-0"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["encoders"] == described and manifest["settings"]["encoders"]["text"]["family"] == "bert"
    assert set(read_records(folder / "records.parquet")["run"]) == {"other-0"}
    predictor = Predictor.load(project.params().settings("other"), "other-0")
    assert predictor.segmenter.vision.backbone.config.model_type == "dinov3_vit"
    call("evaluate", "--run", "other-0", "--out", "other.parquet")
    assert read_records(project.folder / "other.parquet").equals(read_records(folder / "records.parquet"))
    record.write_text(json.dumps(described | {"text": described["text"] | {"sha256": "0" * 64}}))
    with pytest.raises(UserError, match=r"has not the encoder that .*other\.json records; run `wimfris"):
        call("train", "--run", "other-0", "--retrain")
