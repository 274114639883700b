"""The number of parameters of a model, by part."""

from torch import nn

from wimfris.measure.blank_model import blank_segmenter
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings


def count(module: nn.Module, *, trained: bool = True) -> int:
    """Return the number of parameters of a module: the trained ones, or all."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def parameters(segmenter: Segmenter, *, trained: bool = True) -> dict[str, int]:
    """Return part -> number of parameters: the trained ones, or all.

    Parts: text adapters (MTA), vision adapters (MSA), backbones (LoRA's factors and finetuned weights), neck, decoder,
    projector, alignment. `adapters` is the sum of the first three, `total` that of all parts.
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
    parts = {name: sum(count(module, trained=trained) for module in part) for name, part in modules.items()}
    adapters = sum(parts[name] for name in ("text adapters", "vision adapters", "backbones"))
    return {**parts, "adapters": adapters, "total": sum(parts.values())}


def trained_parameters(settings: Settings) -> dict[str, int]:
    """Return part -> trained parameters, see `parameters`. Loads no backbone."""
    return parameters(blank_segmenter(settings))
