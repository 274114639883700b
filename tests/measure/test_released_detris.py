"""A released DETRIS checkpoint, at the size of the golden numbers, under our evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from wimfris.cli.training import evaluate
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.measure.released_detris import detris_settings, released_detris
from wimfris.runs.records import read_records
from wimfris.settings.params import Params, merge

pytestmark = pytest.mark.slow

SHAPES = json.loads((Path(__file__).parents[1] / "golden" / "detris_small.json").read_text())["native_grid"][
    "state_dict"
]
SIZES = {  # of the golden model, on the data of scale smoke
    "data": {"image_size": 56},
    "encoders": {
        "text": {"source": "random", "width": 512, "layers": 12, "heads": 8},
        "vision": {
            "source": "random",
            "width": 64,
            "layers": 12,
            "heads": 4,
            "patch": 14,
            "registers": 4,
            "taps": [4, 8],
        },
    },
    "model": {"hmf": {"width": 512, "heads": 8}, "decoder": {"layers": 3, "heads": 8, "ffn": 512}},
}


@pytest.fixture
def params(project: Any) -> Params:
    """The smoke project with encoders and decoder of the golden model's size, four patches along a side."""
    content = yaml.safe_load((project.folder / "params.yaml").read_text())
    content["scales"]["smoke"] = merge(content["scales"]["smoke"], SIZES)
    content |= {"variants": {"full": {}}, "extended": {}, "controls": {}}
    content["rivals"]["smoke"]["detris"]["heads"] = 8
    (project.folder / "params.yaml").write_text(yaml.safe_dump(content))
    params: Params = project.params()
    return params


@pytest.fixture
def state(params: Params, fill: Callable[..., Any]) -> dict[str, Tensor]:
    """A state dict under DETRIS's names, with the vocabulary and the length of the built-in sentences."""
    tokenizer = load_tokenizer(params.settings())
    vocabulary = {"txt_backbone.token_embedding.weight": tokenizer.vocabulary_size}  # type: ignore[attr-defined]
    rows = vocabulary | {"txt_backbone.positional_embedding": tokenizer.length}
    shapes = {name: [rows[name], *shape[1:]] if name in rows else shape for name, shape in SHAPES.items()}
    return {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in shapes.items()}


def test_settings_follow_from_the_checkpoint(params: Params, state: dict[str, Tensor]) -> None:
    settings = detris_settings(params, state)
    assert settings.text_layers == settings.vision_layers == (1, 3, 5, 7, 9, 11)
    assert settings.model.adapters == settings.model.neck == "detris"
    assert settings.model.rivals is not None
    detris = settings.model.rivals.detris
    assert (detris.width, detris.attention_width, detris.text_width) == (32, 128, 32)


def test_a_checkpoint_without_adapters_is_refused(params: Params) -> None:
    with pytest.raises(
        UserError, match=r"^DETRIS checkpoint: .* adapters of one width, got dinov2 none, txt_backbone none"
    ):
        detris_settings(params, {"decoder.norm.weight": torch.ones(3)})


def test_a_released_file_is_evaluated(
    params: Params, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "best.pth")
    evaluate(out=tmp_path / "records.parquet", detris=tmp_path / "best.pth")
    records = read_records(tmp_path / "records.parquet")
    assert set(records["variant"]) == {"detris_released"} and set(records["protocol"]) == {"cris"}
    assert set(records["split"]) == {"val", "testA", "testB"}
    assert "detris" in capsys.readouterr().out.replace("_", "")
    settings, segmenter = released_detris(params, state, load_tokenizer(params.settings()))
    again = segmenter.state_dict()["decoder.norm.weight"]
    assert torch.equal(again, state["decoder.norm.weight"]) and settings.grid == 4


def test_run_and_checkpoint_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either --run or --detris"):
        evaluate(out=tmp_path / "records.parquet")
