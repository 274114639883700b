"""Fixtures: DETRIS at the size of the golden numbers, and settings of the shipped params.yaml at any scale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from params_file import write_params
from torch import Tensor, nn

from wimfris.encoders.backbones import text_backbone, vision_backbone
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.detris import DenseAligner, DenseTextAdapter, GatedNeck
from wimfris.rivals.detris_weights import load_detris
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings

ROOT = Path(__file__).parents[2]
SHAPES = json.loads((ROOT / "tests" / "golden" / "detris_small.json").read_text())
LAYERS = (1, 3, 5, 7, 9, 11)
END, GRID = 63, 4  # the end-of-text token; patches along a side of the 56 px image


def _detris(position_grid: int = GRID, layers: tuple[int, ...] = LAYERS) -> Segmenter:
    text = text_backbone(width=512, layers=12, heads=8, vocabulary=64, length=77, end_token=END)
    vision = vision_backbone(width=64, layers=12, heads=4, patch=14, registers=4, image_size=14 * position_grid)
    aligners = {
        layer: DenseAligner(64, 512, 32, attention_width=128, heads=8, scale=0.2) for layer in layers
    }  # DETRIS's attention is 128 wide whatever the aligner's width
    return Segmenter(
        TextEncoder(text, {layer: DenseTextAdapter(512, 32, scale=0.2) for layer in layers}),
        VisionEncoder(vision, aligners, taps=(4, 8)),
        GatedNeck(64, 512, 512, heads=8, residual=True),
        Decoder(512, 512, layers=3, heads=8, ffn=512, dropout=0.1),
        Projector(512, 512),
        nn.Linear(512, 512),
    ).eval()


@pytest.fixture(scope="package")
def new_detris() -> Callable[..., Segmenter]:
    """Return new_detris(position_grid, layers), which builds DETRIS with fresh weights."""
    return _detris


@pytest.fixture(scope="package")
def states(fill: Any) -> dict[str, dict[str, Tensor]]:
    """Return grid -> the state dict behind the golden numbers, under DETRIS's names. Tests must not change it."""
    return {
        grid: {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in shapes["state_dict"].items()}
        for grid, shapes in SHAPES.items()
    }


@pytest.fixture(scope="package")
def loaded(states: dict[str, dict[str, Tensor]]) -> dict[str, Segmenter]:
    """Return grid -> DETRIS with that state loaded. Tests must not change it."""
    segmenters = {grid: _detris(SHAPES[grid]["pos_grid"]) for grid in SHAPES}
    for grid, segmenter in segmenters.items():
        load_detris(segmenter, states[grid], GRID)
    return segmenters


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[[str, str], Settings]:
    """Return settings_of(scale, variant), which reads the shipped params.yaml."""

    def settings(scale: str, variant: str) -> Settings:
        return read_params(write_params(tmp_path, only_full=False, scale=scale)).settings(variant)

    return settings
