"""A 3x3 convolution of a map at twice its size, without computing the larger map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.model.tables import table


class UpsampledConv(nn.Conv2d):
    """The 3x3 convolution of the map upsampled bilinearly by two: (B, C, H, W) -> (B, D, 2H, 2W), channels-last.

    The same as `F.interpolate(x, scale_factor=2, mode="bilinear")` and then a convolution without bias, padded with
    zeros, up to rounding. Upsampling acts on each channel alone, so the channels can be mixed first, on the small map,
    for each of the nine taps. Two fixed matrices then upsample the results by row and by column, shift each as its tap
    says, and add them. That takes between a quarter and a half of the operations, stores no upsampled map for backward,
    and its gradient is a matrix product too, which is deterministic on every device.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        taps = self.weight.permute(3, 2, 0, 1).flatten(0, 2)[..., None, None]  # (column, row, output), input
        mixed = F.conv2d(x.contiguous(memory_format=torch.channels_last), taps)
        cells = mixed.permute(0, 2, 3, 1).reshape(batch * height, width * 3, -1)
        rows = _spread(width, device=x.device).to(cells.dtype) @ cells
        rows = rows.unflatten(2, (3, -1)).transpose(1, 2).reshape(batch, height * 3, -1)
        spread = _spread(height, device=x.device).to(rows.dtype) @ rows
        return spread.view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


@table
def _spread(size: int) -> Tensor:
    """Return the matrix from the three taps of each of `size` cells, (2 * size, size * 3), to twice as many cells.

    It upsamples each tap's values bilinearly, shifts the first down and the last up by one, and adds the three. What
    is shifted beyond the border is dropped, and zeros come in.
    """
    up = F.interpolate(torch.eye(size)[None], scale_factor=2, mode="linear")[0].T
    zeros = torch.zeros(1, size)
    taps = torch.cat([zeros, up[:-1]]), up, torch.cat([up[1:], zeros])
    return torch.stack(taps, dim=2).flatten(1)
