"""From settings to the rivals' parts: what `training.build` calls where a run's adapters or neck are a rival's."""

from torch import nn

from wimfris.rivals.bottleneck import Bottleneck
from wimfris.rivals.detris import DenseAligner, DenseTextAdapter, GatedNeck
from wimfris.rivals.etris import TextBridge, VisionBridge
from wimfris.rivals.lora import inject_lora, lora_parameters
from wimfris.settings.schema import Rivals, Settings

TUNING = ("lora", "finetune")  # what changes the backbones themselves, and has no modules beside them


def build_text_adapters(settings: Settings) -> dict[int, nn.Module]:
    """Text layer -> the rival's adapter; empty for a rival that tunes the backbone itself."""
    if settings.model.adapters in TUNING:
        return {}
    width, rivals = settings.encoders.text.width, _sizes(settings)

    def adapter() -> nn.Module:
        match settings.model.adapters:
            case "detris":
                return DenseTextAdapter(width, rivals.detris.text_width, scale=rivals.detris.scale)
            case "etris":
                return TextBridge(width, rivals.etris.width, heads=rivals.etris.heads)
            case "bottleneck":
                return Bottleneck(width, rivals.bottleneck.text_width, scale=rivals.bottleneck.scale)
            case other:
                raise ValueError(f"no text adapter of {other}")

    return {layer: adapter() for layer in settings.text_layers}


def build_vision_adapters(settings: Settings) -> dict[int, nn.Module]:
    """Vision layer -> the rival's adapter; empty for a rival that tunes the backbone itself."""
    if settings.model.adapters in TUNING:
        return {}
    width, text_width, rivals = settings.encoders.vision.width, settings.encoders.text.width, _sizes(settings)

    def adapter() -> nn.Module:
        match settings.model.adapters:
            case "detris":
                detris = rivals.detris
                return DenseAligner(
                    width,
                    text_width,
                    detris.width,
                    attention_width=detris.attention_width,
                    heads=detris.heads,
                    scale=detris.scale,
                )
            case "etris":
                return VisionBridge(width, text_width, rivals.etris.width, heads=rivals.etris.heads)
            case "bottleneck":
                return Bottleneck(width, rivals.bottleneck.width, scale=rivals.bottleneck.scale)
            case other:
                raise ValueError(f"no vision adapter of {other}")

    return {layer: adapter() for layer in settings.vision_layers}


def _sizes(settings: Settings) -> Rivals:
    assert settings.model.rivals is not None  # as it is for every rival's adapters
    return settings.model.rivals


def build_neck(settings: Settings) -> nn.Module:
    """DETRIS's or ETRIS's neck, at the width and heads of `model.hmf`."""
    hmf = settings.model.hmf
    return GatedNeck(
        settings.encoders.vision.width,
        settings.encoders.text.width,
        hmf.width,
        heads=hmf.heads,
        residual=settings.model.neck == "detris",
    )


def tune_backbones(settings: Settings, text_backbone: nn.Module, vision_backbone: nn.Module) -> None:
    """Make the frozen backbones trainable as the rival does: LoRA in their attentions, all of them to finetune, and
    otherwise nothing. What is trained then is what requires a gradient.
    """
    for backbone in (text_backbone, vision_backbone):
        if settings.model.adapters == "lora":
            lora = _sizes(settings).lora
            inject_lora(backbone, lora.rank, lora.alpha)
        elif settings.model.adapters == "finetune":
            backbone.requires_grad_(True)
            for name, parameter in backbone.named_parameters():
                if name.endswith("mask_token"):  # of DINOv2's own pretraining: no image has masked patches here
                    parameter.requires_grad_(False)


def tuned_parameters(settings: Settings) -> dict[str, int]:
    """Encoder -> trained parameters inside its backbone, without loading it: LoRA's, and 0 for all others.

    Finetuning trains the backbone itself, whose size `encoders.json` tells.
    """
    rank = _sizes(settings).lora.rank if settings.model.adapters == "lora" else 0
    chosen = {"text": settings.encoders.text, "vision": settings.encoders.vision}
    return {name: lora_parameters(backbone.width, backbone.layers, rank) for name, backbone in chosen.items()}
