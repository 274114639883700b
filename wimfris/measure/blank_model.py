"""A model without weights for given settings, and noise as its input."""

from typing import Any

import torch
from torch import Tensor

from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.encoders.load import new_text, new_vision, sized_text, sized_vision
from wimfris.model.segmenter import Segmenter
from wimfris.settings.backbones import TEXT, VISION
from wimfris.settings.schema import Settings
from wimfris.training.build import assemble


def blank_segmenter(settings: Settings, device: str = "meta") -> Segmenter:
    """Return the model that `training.build` makes, with fresh weights everywhere. On `meta` it takes no memory."""
    with torch.device(device):
        return assemble(settings, _text(settings), _vision(settings))


def example(segmenter: Segmenter, settings: Settings, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return noise images (B, 3, S, S) and sentences (B, L) without padding."""
    size, length = settings.data.image_size, settings.data.length
    token_ids = torch.full((batch, length), 3, dtype=torch.int64, device=device)
    token_ids[:, -1] = segmenter.text.end_token
    return torch.randn(batch, 3, size, size, device=device), token_ids


def _text(settings: Settings) -> Any:
    text = settings.encoders.text
    if not text.is_public:
        return new_text(settings, WordTokenizer(vocabulary(), settings.data.length))
    family = TEXT[text.family]
    return sized_text(text, family.vocabulary, family.positions, end_token=family.vocabulary - 1)


def _vision(settings: Settings) -> Any:
    vision = settings.encoders.vision
    if not vision.is_public:
        return new_vision(settings)
    return sized_vision(vision, VISION[vision.family].pixels)
