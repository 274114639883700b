"""The whole of DETRIS, built of our parts and loaded through the map of names, against the authors' own numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wimfris.encoders.text import TextEncoder, text_backbone
from wimfris.encoders.vision import VisionEncoder, vision_backbone
from wimfris.model.baselines.checkpoint import load_detris
from wimfris.model.baselines.detris import DenseAligner, DenseTextAdapter, GatedNeck
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.segmenter import Segmenter, padding_after

SHAPES = json.loads((Path(__file__).parents[2] / "golden" / "detris_small.json").read_text())
GRIDS = ("native_grid", "interpolated_grid")
LAYERS = (1, 3, 5, 7, 9, 11)
END, GRID = 63, 4  # the end-of-text token; patches along a side of the 56 px image


def new_detris(position_grid: int = GRID, layers: tuple[int, ...] = LAYERS) -> Segmenter:
    text = text_backbone(width=512, layers=12, heads=8, vocabulary=64, length=77, end_token=END)
    vision = vision_backbone(width=64, layers=12, heads=4, patch=14, registers=4, image_size=14 * position_grid)
    aligner = {"attention_width": 128, "heads": 8, "scale": 0.2}
    return Segmenter(
        TextEncoder(text, {layer: DenseTextAdapter(512, 32, scale=0.2) for layer in layers}),
        VisionEncoder(vision, {layer: DenseAligner(64, 512, 32, **aligner) for layer in layers}, taps=(4, 8)),
        GatedNeck(64, 512, 512, heads=8, residual=True),
        Decoder(512, 512, layers=3, heads=8, ffn=512, dropout=0.1),
        Projector(512, 512),
        nn.Linear(512, 512),
    )


@pytest.fixture(scope="module")
def states(fill: Any) -> dict[str, dict[str, Tensor]]:
    """Grid -> the state dict that the golden numbers were made with, under DETRIS's names."""
    return {
        grid: {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in SHAPES[grid]["state_dict"].items()}
        for grid in GRIDS
    }


@pytest.fixture(scope="module")
def loaded(states: dict[str, dict[str, Tensor]]) -> dict[str, Segmenter]:
    segmenters = {}
    for grid in GRIDS:
        segmenters[grid] = new_detris(SHAPES[grid]["pos_grid"]).eval()
        load_detris(segmenters[grid], states[grid], GRID)
    return segmenters


@torch.no_grad()
def stages_of(segmenter: Segmenter, image: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
    """Every tensor that the golden file names, by its name there."""
    padding = padding_after(token_ids, END)
    words, sentence = segmenter.text(token_ids)
    stages = segmenter.vision(image, words, padding)
    fused = segmenter.neck(stages, words, sentence, padding)
    named = {f"mid/vision{i}": stage for i, stage in enumerate(stages)}
    named |= {"mid/words": words, "mid/sentence": sentence, "mid/neck": fused}
    named["mid/decoder"] = segmenter.decoder(fused, words, padding).flatten(2)
    return named | {"out/logits": segmenter(image, token_ids).logits}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_golden_number(golden: Any, loaded: dict[str, Segmenter], grid: str) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in golden("detris_small.npz", grid).items()}
    assert (arrays["in/token_ids"] == 0).any()
    ours = stages_of(loaded[grid], arrays["in/image"], arrays["in/token_ids"])
    assert ours.keys() == arrays.keys() - {"in/image", "in/token_ids"}
    for name, value in ours.items():
        expected = arrays[name]
        assert value.shape == expected.shape, name
        error = float((value - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, (name, error)
