"""DETRIS, built from our parts and loaded through the map of names, against the authors' own numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.encoders.text import padding_after
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.detris_weights import load_detris

GRIDS = ("native_grid", "interpolated_grid")


@torch.no_grad()
def named_outputs(segmenter: Segmenter, image: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
    """Return every tensor of the golden file, by its name there."""
    padding = padding_after(token_ids, segmenter.text.end_token)
    words, sentence = segmenter.text(token_ids)
    stages = segmenter.vision(image, words, padding)
    fused = segmenter.neck(stages, words, sentence, padding)
    named = {f"mid/vision{i}": stage for i, stage in enumerate(stages)}
    named |= {"mid/words": words, "mid/sentence": sentence, "mid/neck": fused}
    named["mid/decoder"] = segmenter.decoder(fused, words, padding).flatten(2)
    return named | {"out/logits": segmenter(image, token_ids).logits}


def arrays_of(golden: Any, grid: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in golden("detris_small.npz", grid).items()}


def error(ours: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to the largest expected value."""
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_every_golden_number(golden: Any, loaded: dict[str, Segmenter], grid: str) -> None:
    arrays = arrays_of(golden, grid)
    assert (arrays["in/token_ids"] == 0).any()  # padded
    ours = named_outputs(loaded[grid], arrays["in/image"], arrays["in/token_ids"])
    assert ours.keys() == arrays.keys() - {"in/image", "in/token_ids"}
    for name, value in ours.items():
        assert error(value, arrays[name]) < 1e-5, name


@pytest.mark.slow
def test_the_authors_interpolation_of_positions_is_needed(golden: Any, new_detris: Any, states: Any) -> None:
    """Left at 6 x 6, positions are interpolated by transformers, with antialiasing and without the offset."""
    arrays = arrays_of(golden, "interpolated_grid")
    segmenter = new_detris(6)
    load_detris(segmenter, states["interpolated_grid"], 6)
    ours = named_outputs(segmenter, arrays["in/image"], arrays["in/token_ids"])
    assert error(ours["mid/words"], arrays["mid/words"]) < 1e-5
    assert error(ours["mid/vision0"], arrays["mid/vision0"]) > 1e-3
