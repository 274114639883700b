"""Build the model, its loss and its device from the settings."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Return the model with its backbones loaded and everything else drawn from torch's seed; see `assemble`."""
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
    loaded. torch's seed and the name of a part decide the part's initial weights, so that variants with the same seed
    start alike in all parts that they share (common random numbers).
    """
    model, decoder, checkpointing = settings.model, settings.model.decoder, settings.train.gradient_checkpointing
    text_width, vision_width = settings.encoders.text.width, settings.encoders.vision.width
    family = load_family(model.adapters)
    text_adapters = _adapters("text", family, settings.text_layers, model, text_width)
    vision_adapters = _adapters("vision", family, settings.vision_layers, model, vision_width, text_width)
    with _drawn("neck"):
        neck = load_neck(model.neck).neck(model, vision_width, text_width)
    with _drawn("decoder"):
        layers = Decoder(
            model.hmf.width,
            text_width,
            layers=decoder.layers,
            heads=decoder.heads,
            ffn=decoder.ffn,
            dropout=decoder.dropout,
            checkpointing=checkpointing,
        )
    with _drawn("projector"):
        projector = Projector(model.hmf.width, text_width)
    with _drawn("anchor"):
        anchor = nn.Linear(text_width, model.hmf.width)
    segmenter = Segmenter(
        TextEncoder(text, text_adapters, checkpointing=checkpointing),
        VisionEncoder(vision, vision_adapters, settings.encoders.vision.taps, checkpointing=checkpointing),
        neck,
        layers,
        projector,
        anchor,
        hashes,
    )
    if hasattr(family, "tune"):
        for name, backbone in (("text", text), ("vision", vision)):
            with _drawn(f"{name} tuning"):
                family.tune(model, backbone)
    return segmenter


@contextmanager
def _drawn(part: str) -> Iterator[None]:
    """Draw a part's initial weights from torch's seed and the name of the part alone."""
    digest = hashlib.sha256(f"{torch.initial_seed()} {part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little"))
        yield


def _adapters(encoder: str, family: Any, layers: tuple[int, ...], *arguments: object) -> dict[int, nn.Module]:
    """Return layer -> adapter; empty where the family has none in this encoder."""
    build: Callable[..., nn.Module] | None = getattr(family, f"{encoder}_adapter", None)
    adapters: dict[int, nn.Module] = {}
    if build is None:
        return adapters
    for layer in layers:
        with _drawn(f"{encoder} {layer}"):
            adapters[layer] = build(*arguments)
    return adapters


def build_loss(settings: Settings) -> SegmentationLoss:
    """Return the weighted sum of the three losses."""
    loss = settings.loss
    return SegmentationLoss(
        contrast=loss.contrast,
        dice=loss.dice,
        align=loss.align,
        window=settings.align_window,
        target=loss.align_target,
        resize=loss.target_resize,
    )
