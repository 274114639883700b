"""Plain adapters (Houlsby et al., 2019; beside the MLP as in AdaptFormer, Chen et al., 2022), for either encoder."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.model.layers import init_up


class Bottleneck(nn.Module):
    """scale * Up(ReLU(Down(x))): (B, L, D) -> (B, L, D), beside a layer's MLP.

    Up starts at zero, so that an untrained adapter leaves the frozen features untouched. The vision encoder's guidance
    is ignored: these adapters see one modality only.
    """

    def __init__(self, outer_width: int, width: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(outer_width, width)
        self.up = init_up(nn.Linear(width, outer_width), "zero")

    def forward(self, x: Tensor, guidance: Guidance | None = None) -> Tensor:
        return self.scale * self.up(F.relu(self.down(x)))


def text_adapter(model: Any, text_width: int) -> nn.Module:
    """Return the adapter of one text layer; see `families`."""
    sizes = model.rivals.bottleneck
    return Bottleneck(text_width, sizes.text_width, scale=sizes.scale)


def vision_adapter(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the adapter of one vision layer; see `families`."""
    sizes = model.rivals.bottleneck
    return Bottleneck(vision_width, sizes.width, scale=sizes.scale)
