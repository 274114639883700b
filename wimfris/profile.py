"""Parameter counts of the trained parts, without loading a backbone."""

from torch import nn

from wimfris.build import build_neck, build_text_adapters, build_vision_adapters
from wimfris.model.decoder import Decoder, Projector
from wimfris.params import Settings


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def trained_parameters(settings: Settings) -> dict[str, int]:
    """Part -> trained parameters: MTA, MSA, their sum ("adapters"), neck, decoder, projector, alignment, total."""
    text_width, width, decoder = settings.encoders.text.width, settings.model.hmf.width, settings.model.decoder
    mta = sum(count(adapter) for adapter in build_text_adapters(settings).values())
    msa = sum(count(adapter) for adapter in build_vision_adapters(settings).values())
    parts = {
        "MTA": mta,
        "MSA": msa,
        "adapters": mta + msa,
        "neck": count(build_neck(settings)),
        "decoder": count(
            Decoder(
                width, text_width, layers=decoder.layers, heads=decoder.heads, ffn=decoder.ffn, dropout=decoder.dropout
            )
        ),
        "projector": count(Projector(width, text_width)),
        "alignment": count(nn.Linear(text_width, width)),
    }
    return parts | {"total": sum(n for part, n in parts.items() if part != "adapters")}
