"""The scan and the convolution in plain torch, and their gradients, for comparison."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.scan import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
PER_TOKEN = ("u", "delta", "B", "C", "z")


def naive_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the recurrence as written, one token at a time, differentiated by autograd."""
    delta = F.softplus(delta + delta_bias)
    state, outputs = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        driven = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        state = torch.exp(delta[:, t, :, None] * A) * state + driven
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return (torch.stack(outputs, dim=1) + D * u) * F.silu(z)


def inputs(batch: int, length: int, width: int, state: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    wide, narrow = (batch, length, width), (batch, length, state)
    shapes = {
        "u": wide,
        "delta": wide,
        "A": (width, state),
        "B": narrow,
        "C": narrow,
        "D": (width,),
        "z": wide,
        "delta_bias": (width,),
    }
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    values["A"] = -torch.exp(values["A"])
    return {name: value.requires_grad_() for name, value in values.items()}


def derive(values: dict[str, Tensor], backend: str, weight: Tensor) -> dict[str, Tensor]:
    """Return the output and every gradient."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    y = selective_scan(**leaves, backend=backend)
    grads = torch.autograd.grad((y * weight.to(y.dtype)).sum(), list(leaves.values()))
    return {"y": y.detach()} | dict(zip(NAMES, grads, strict=True))


def derive_plain(values: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Return what `derive` does, by the plain loop in float64."""
    leaves = {name: value.detach().double().requires_grad_() for name, value in values.items()}
    y = naive_scan(**leaves)
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"y": y.detach()} | dict(zip(NAMES, grads, strict=True))


def assert_close(result: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Assert that each result is within `tolerance` of its largest expected value."""
    for name, value in expected.items():
        assert result[name].shape == value.shape, name
        error = (result[name].double() - value).abs().max().item()
        assert error <= tolerance * (value.abs().max().item() + 1e-3), f"{name}: {error}"


def single(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return inputs in float32, and a weight for the output."""
    values = {name: value.detach().float() for name, value in inputs(*shape, seed=seed).items()}
    return values, torch.randn(shape[:3], dtype=torch.float64)


def conv_inputs(batch: int, length: int, width: int, taps: int) -> list[Tensor]:
    """Return x, weight and bias of a causal convolution in float64, and a weight for its output."""
    shapes = (batch, length, width), (width, 1, taps), (width,), (batch, length, width)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by torch's own operation."""
    padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=len(bias)).mT)


def derive_conv(convolution: Any, *values: Tensor) -> dict[str, Tensor]:
    """Return the output and every gradient."""
    *leaves, weight = (value.detach() for value in values)
    y = convolution(*(leaf.requires_grad_() for leaf in leaves))
    grads = torch.autograd.grad((y * weight.to(y.dtype)).sum(), leaves)
    return {"y": y.detach()} | dict(zip(("x", "weight", "bias"), grads, strict=True))
