"""MTA, the Mamba text adapter: a Mamba block between a down- and an up-projection, beside the MLP of a text layer."""

from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.model.layers import init_up
from wimfris.model.mamba import Mamba


class MambaTextAdapter(nn.Module):
    """scale * Up(Mamba(x_fc) + x_fc), x_fc = ReLU(Down(x)): (B, L, T) -> (B, L, T).

    x is the residual stream after the layer's attention; the result is added to the output of the layer's MLP. init:
    see `init_up`.
    """

    def __init__(
        self,
        text_width: int,
        width: int,
        *,
        state: int,
        conv: int,
        expand: int,
        scale: float,
        init: str,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(text_width, width)
        self.mamba = Mamba(width, state=state, conv=conv, expand=expand, backend=backend)
        self.up = init_up(nn.Linear(width, text_width), init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        return self.scale * self.up(self.mamba(x) + x)
