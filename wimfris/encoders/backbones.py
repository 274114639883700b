"""Backbones of every family with fresh weights, and their parts. `wimfris.settings.backbones` lists the families."""

from collections.abc import Mapping
from typing import Any, TypeVar

import transformers
from torch import nn

from wimfris.settings.backbones import TEXT, VISION, TextFamily, VisionFamily

ATTENTION = "sdpa"  # of both backbones: torch's fused attention, which does not store the attention weights
MLP_RATIO = 4  # width of the MLP by that of the transformer, in all published encoders of these families

F = TypeVar("F", TextFamily, VisionFamily)


def text_backbone(
    *, width: int, layers: int, heads: int, vocabulary: int, length: int, end_token: int, family: str = "clip"
) -> Any:
    """Return a text transformer with fresh weights, whose sentence has the transformer's width.

    The sentence ends with the token `end_token`, where CLIP pools it (2 would select CLIP's old argmax pooling).
    """
    kind = TEXT[family]
    config = getattr(transformers, kind.config)(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=MLP_RATIO * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        attn_implementation=ATTENTION,
        **({kind.projection: width} if kind.projection else {}),
    )
    return getattr(transformers, kind.model)(config, **model_options(kind))


def vision_backbone(
    *,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    registers: int,
    image_size: int,
    layer_scale: float | None = None,
    family: str = "dinov2_with_registers",
) -> Any:
    """Return a vision transformer with fresh weights, whose position grid is that of `image_size` pixels.

    layer_scale: initial value of DINOv2's and DINOv3's; None leaves the family's default.
    """
    kind = VISION[family]
    config = getattr(transformers, kind.config)(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=image_size,
        attn_implementation=ATTENTION,
        **{kind.inner: MLP_RATIO if kind.inner == "mlp_ratio" else MLP_RATIO * width},
        **({"num_register_tokens": registers} if kind.registers else {}),
        **({} if layer_scale is None else {"layerscale_value": layer_scale}),
        **kind.settings,
    )
    return getattr(transformers, kind.model)(config)


def model_options(kind: TextFamily) -> dict[str, Any]:
    """Return the options of a text model's constructor: BERT's pooling layer is left out, because nothing reads it."""
    return {"add_pooling_layer": False} if kind.sentence == "mean" else {}


def family_of(backbone: Any, families: Mapping[str, F]) -> F:
    """Return the family of a backbone."""
    return next(kind for kind in families.values() if backbone.config.model_type in kind.types)


def blocks_of(backbone: Any) -> nn.ModuleList:
    """Return the blocks of a backbone: its list of as many modules as the configuration has layers.

    Its name differs between families and between versions of transformers.
    """
    depth = backbone.config.num_hidden_layers
    return next(part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
