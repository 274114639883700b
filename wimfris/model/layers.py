"""Small layers that several parts share."""

import torch
from torch import Tensor, nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return a convolution that keeps the map's size, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class CoordConv(nn.Module):
    """Two 3x3 convolutions, the first of which also reads a cell's x and y in [-1, 1]: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.located = conv_norm_relu(width + 2, width, 3)
        self.conv = conv_norm_relu(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        xs = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(batch, 1, height, width)
        ys = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(batch, 1, height, width)
        return self.conv(self.located(torch.cat([x, xs, ys], dim=1)))


def init_up(layer: nn.Linear, init: str) -> nn.Linear:
    """Initialise an adapter's up-projection and return it; its bias starts at zero.

    `zero`: the weights too, so that an untrained adapter leaves the frozen features untouched. `kaiming`: He
    initialisation.
    """
    if init == "zero":
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
