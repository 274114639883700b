"""Build the model, its loss and its device from the settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_text, load_vision, weights_hash
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.errors import UserError
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.loss import SegmentationLoss
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.families import load_family, load_neck
from wimfris.settings.schema import Settings


def build_device(settings: Settings) -> torch.device:
    """Return the device of the settings. Raises UserError where torch does not see it."""
    if settings.train.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device is cuda, but torch sees no CUDA device; "
            f"set scales.{settings.scale}.train.device to cpu, or repair the driver"
        )
    return torch.device(settings.train.device)


def build_segmenter(settings: Settings, tokenizer: Tokenizer) -> Segmenter:
    """Return the model with its backbones loaded and everything else drawn from torch's global random state."""
    text, vision = load_text(settings, tokenizer), load_vision(settings)
    return assemble(settings, text, vision, {"text": weights_hash(text), "vision": weights_hash(vision)})


def assemble(
    settings: Settings,
    text: Any,
    vision: Any,
    hashes: dict[str, str] | None = None,
) -> Segmenter:
    """Return the model around two backbones, with the adapters and the neck that the settings name.

    The backbones are frozen, except for what the adapter family tunes. hashes: theirs, by encoder, where they were
    loaded. The order in which the parts are built decides the initial weights.
    """
    model, decoder, checkpointing = settings.model, settings.model.decoder, settings.train.gradient_checkpointing
    text_width, vision_width = settings.encoders.text.width, settings.encoders.vision.width
    family = load_family(model.adapters)
    segmenter = Segmenter(
        TextEncoder(
            text,
            _adapters(getattr(family, "text_adapter", None), settings.text_layers, model, text_width),
            checkpointing=checkpointing,
        ),
        VisionEncoder(
            vision,
            _adapters(getattr(family, "vision_adapter", None), settings.vision_layers, model, vision_width, text_width),
            settings.encoders.vision.taps,
            checkpointing=checkpointing,
        ),
        load_neck(model.neck).neck(model, vision_width, text_width),
        Decoder(
            model.hmf.width,
            text_width,
            layers=decoder.layers,
            heads=decoder.heads,
            ffn=decoder.ffn,
            dropout=decoder.dropout,
            checkpointing=checkpointing,
        ),
        Projector(model.hmf.width, text_width),
        nn.Linear(text_width, model.hmf.width),
        hashes,
    )
    if hasattr(family, "tune"):
        for backbone in (text, vision):
            family.tune(model, backbone)
    return segmenter


def _adapters(
    build: Callable[..., nn.Module] | None, layers: tuple[int, ...], *arguments: object
) -> dict[int, nn.Module]:
    """Return layer -> adapter; empty where the family has none in this encoder."""
    return {} if build is None else {layer: build(*arguments) for layer in layers}


def build_loss(settings: Settings) -> SegmentationLoss:
    """Return the weighted sum of the three losses."""
    loss = settings.loss
    return SegmentationLoss(
        contrast=loss.contrast, dice=loss.dice, align=loss.align, window=settings.align_window, target=loss.align_target
    )
