"""The adapter family `wimfris`: MTA in the text encoder, MSA in the vision encoder; see `wimfris.rivals.families`."""

from typing import Any

from torch import nn

from wimfris.model.msa import MultiScaleAligner
from wimfris.model.mta import MambaTextAdapter


def text_adapter(model: Any, text_width: int) -> nn.Module:
    """Return the MTA of one text layer."""
    mta = model.mta
    return MambaTextAdapter(
        text_width,
        mta.width,
        state=mta.state,
        conv=mta.conv,
        expand=mta.expand,
        scale=mta.scale,
        init=mta.init,
        backend=model.scan,
    )


def vision_adapter(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the MSA of one vision layer."""
    msa = model.msa
    return MultiScaleAligner(
        vision_width,
        text_width,
        msa.width,
        heads=msa.heads,
        kernels=msa.kernels,
        mixer=msa.mixer,
        emphasis=msa.emphasis,
        emphasis_initial=msa.emphasis_initial,
        init=msa.init,
    )
