"""The model of any settings without its weights, and the parameters of its parts."""

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.encoders.load import new_text, new_vision
from wimfris.encoders.text import text_backbone
from wimfris.encoders.vision import vision_backbone
from wimfris.model.segmenter import Segmenter
from wimfris.settings.params import Settings
from wimfris.training.build import assemble

CLIP_TOKENS, CLIP_LENGTH = 49408, 77  # vocabulary and positions of the hub's CLIP, end of text last (openai/CLIP)
DINO_PIXELS = 518  # the image size that the hub's DINOv2 with registers has positions for


def blank_segmenter(settings: Settings, device: str = "meta") -> Segmenter:
    """The model as `training.build` makes it, with fresh weights everywhere: nothing is loaded. On `meta` it has shapes
    alone, takes no memory and computes nothing.
    """
    with torch.device(device):
        return assemble(settings, _text(settings), _vision(settings))


def _text(settings: Settings) -> CLIPTextModelWithProjection:
    text = settings.encoders.text
    if not text.is_public:
        return new_text(settings, WordTokenizer(vocabulary(), settings.data.length))
    return text_backbone(
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        vocabulary=CLIP_TOKENS,
        length=CLIP_LENGTH,
        end_token=CLIP_TOKENS - 1,
    )


def _vision(settings: Settings) -> Dinov2WithRegistersModel:
    vision = settings.encoders.vision
    if not vision.is_public:
        return new_vision(settings)
    return vision_backbone(
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        patch=vision.patch,
        registers=vision.registers,
        image_size=DINO_PIXELS,
    )


def count(module: nn.Module, *, trained: bool = True) -> int:
    """Number of parameters; those that are trained, or all."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def parameters(segmenter: Segmenter, *, trained: bool = True) -> dict[str, int]:
    """Part -> parameters, those that are trained or all: text adapters (MTA), vision adapters (MSA), backbones (LoRA's,
    and finetuned weights), neck, decoder, projector, alignment; adapters (the first three) and total are sums of these.
    """
    modules: dict[str, list[nn.Module]] = {
        "text adapters": [segmenter.text.adapters],
        "vision adapters": [segmenter.vision.adapters],
        "backbones": [segmenter.text.backbone, segmenter.vision.backbone],
        "neck": [segmenter.neck],
        "decoder": [segmenter.decoder],
        "projector": [segmenter.projector],
        "alignment": [segmenter.alignment],
    }
    parts = {part: sum(count(module, trained=trained) for module in of_part) for part, of_part in modules.items()}
    adapters = sum(parts[part] for part in ("text adapters", "vision adapters", "backbones"))
    return {**parts, "adapters": adapters, "total": sum(parts.values())}


def trained_parameters(settings: Settings) -> dict[str, int]:
    """Part -> trained parameters, see `parameters`, without loading a backbone."""
    return parameters(blank_segmenter(settings))
