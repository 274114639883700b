"""A model without weights has the parameters of the real one."""

from pathlib import Path
from typing import Any

import pytest

from wimfris.encoders.load import load_tokenizer
from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.parameters import parameters, trained_parameters
from wimfris.settings.params import read_params
from wimfris.training.build import build_segmenter

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "none", "detris_adapters_detris_neck", "lora", "finetune"])
def test_a_blank_model_has_the_parameters_of_the_real_one(project: Any, variant: str) -> None:
    settings = project.params().settings(variant)
    blank, real = blank_segmenter(settings), build_segmenter(settings, load_tokenizer(settings))
    shapes = [{name: (p.shape, p.requires_grad) for name, p in model.named_parameters()} for model in (blank, real)]
    assert shapes[0] == shapes[1]
    assert trained_parameters(settings)["total"] == sum(p.numel() for p in real.parameters() if p.requires_grad)
    parts = parameters(blank, trained=False)
    adapters = sum(parts[part] for part in ("text adapters", "vision adapters", "backbones"))
    assert parts["total"] == sum(p.numel() for p in real.parameters()) and parts["adapters"] == adapters


def test_the_papers_sizes() -> None:
    """2.997M in the adapters, and the hub's encoders: CLIP's text tower with projection and DINOv2-B with registers."""
    settings = read_params(ROOT / "params.yaml").model_copy(update={"scale": "base"}).settings("full")
    assert trained_parameters(settings)["adapters"] == 2_997_174
    frozen = parameters(blank_segmenter(settings), trained=False)["backbones"]
    assert frozen == 63_428_096 + 86_583_552
