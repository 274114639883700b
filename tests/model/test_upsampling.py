"""The convolution of an upsampled map, held against torch's own upsampling and convolution."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.upsampling import UpsampledConv


def expected(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear"), weight, padding=1)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("grid", [(4, 4), (1, 5), (3, 2), (8, 16)])
def test_output_and_gradients_are_those_of_upsampling_and_convolution(grid: tuple[int, int]) -> None:
    conv = UpsampledConv(6, 5).double()
    x = torch.randn(2, 6, *grid, dtype=torch.float64, requires_grad=True)
    ours, theirs = conv(x), expected(x, conv.weight)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert relative(ours, theirs) < 2e-15
    weights = torch.randn_like(theirs)
    inputs = (x, conv.weight)
    gradients = (torch.autograd.grad(y, inputs, weights) for y in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        assert relative(a, b) < 2e-15


def test_a_kernel_of_its_centre_alone_is_bilinear_upsampling() -> None:
    conv = UpsampledConv(3, 3).double()
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[range(3), range(3), 1, 1] = 1
    x = torch.rand(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = conv(x), F.interpolate(x, scale_factor=2, mode="bilinear")
    assert relative(ours, theirs) < 4e-16
    weights = torch.randn_like(theirs)
    assert relative(*(torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs))) < 1e-15


def test_under_autocast_it_is_as_close_to_float32_as_upsampling_and_convolution_are() -> None:
    conv = UpsampledConv(64, 64)
    x = torch.randn(2, 64, 8, 8)
    exact = expected(x, conv.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = conv(x), expected(x, conv.weight)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() < 2 * (theirs - exact).abs().mean()
