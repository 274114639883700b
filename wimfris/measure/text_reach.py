"""How far the text token reaches: the derivative of a Mamba block's output at position t by the token at position 0.

The block is Mamba's or Mamba-2's.

The block reads [text token, tokens of a window], normalised. Its output y_t, before gate and residual, is
differentiated by the text token x_0 as the block sees it. Two paths lead from x_0 to y_t. The causal convolution of
kernel K shows x_0 to the positions 0 .. K - 1 directly. Behind them x_0 acts through the state alone:

    dh_t / dx_0 = exp(Delta_t A) dh_{t-1} / dx_0        (t >= K),

because Delta_t no longer depends on x_0. Fit and bound therefore begin at t = K. With lambda = max exp(Delta A) over
the positions, channels and states of a sequence (method.md, section 4), and y_t = W ((C_t h_t + D u_t) * SiLU(z_t)),

    |dy_t / dx_0| <= |W|_2 max_d |SiLU(z_t)_d| |C_t| lambda^(t - K + 1) |dh_{K-1} / dx_0|.

Mamba-2 norms g_t = (C_t h_t + D u_t) * SiLU(z_t) before W: its bound has W diag(w), w the norm's weight, in place of W,
and is divided by the root mean square of g_t.

Norms of derivatives are Frobenius norms, summed from directional derivatives in forward mode: one pass gives all t.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.mamba import Mamba
from wimfris.model.mamba2 import EPSILON, Mamba2
from wimfris.model.scan import causal_conv_silu


@dataclass(frozen=True)
class Reach:
    """The reach in n sequences of L positions, position 0 the text token."""

    norms: Tensor  # (n, L): |dy_t / dx_0|
    bound: Tensor  # (n, L): its upper bound, NaN before t = K
    rate: Tensor  # (n,): lambda


@dataclass(frozen=True)
class Unrolled:
    """The output of a Mamba block and what it is made of."""

    output: Tensor  # (n, L, C)
    states: Tensor  # (n, L, D, N)
    decay: Tensor  # (n, L, D, N), or (n, L, D): exp(Delta A)
    strength: Tensor  # (n, L): the factor of the bound that does not decay


def unroll(block: Mamba | Mamba2, x: Tensor) -> Unrolled:
    """Compute the block's output for x (n, L, C) in plain operations, which forward mode can differentiate."""
    return _unroll_mamba(block, x) if isinstance(block, Mamba) else _unroll_mamba2(block, x)


def _unroll_mamba(mamba: Mamba, x: Tensor) -> Unrolled:
    u, z = mamba.in_proj(x).chunk(2, dim=-1)
    u = causal_conv_silu(u, mamba.conv1d.weight, mamba.conv_bias, backend="reference")
    delta, B, C = mamba.x_proj(u).split([mamba.rank, mamba.state, mamba.state], dim=-1)
    delta = F.softplus(F.linear(delta, mamba.dt_proj.weight, mamba.dt_proj.bias))
    decay = torch.exp(delta[..., None] * -torch.exp(mamba.A_log))
    h, gate = _states(decay, (delta * u)[..., None] * B[:, :, None]), F.silu(z)
    y = ((h @ C[..., None]).squeeze(-1) + mamba.D * u) * gate
    strength = torch.linalg.matrix_norm(mamba.out_proj.weight, 2) * C.norm(dim=-1) * gate.abs().amax(dim=-1)
    return Unrolled(mamba.out_proj(y), h, decay, strength)


def _unroll_mamba2(block: Mamba2, x: Tensor) -> Unrolled:
    """One group of heads; the states' channels are those of all heads."""
    z, u, delta = block.in_proj(x).split(block.split, dim=-1)
    assert block.conv1d.bias is not None and block.groups == 1
    u = causal_conv_silu(u, block.conv1d.weight, block.conv1d.bias, backend="reference")
    u, B, C = u.split([z.shape[-1], block.state, block.state], dim=-1)
    size = z.shape[-1] // block.heads
    delta = F.softplus(delta + block.dt_bias)
    decay = torch.exp(delta * -torch.exp(block.A_log)).repeat_interleave(size, dim=-1)
    drive = (delta.repeat_interleave(size, dim=-1) * u)[..., None] * B[:, :, None]
    h, gate = _states(decay[..., None], drive), F.silu(z)
    y = ((h @ C[..., None]).squeeze(-1) + block.D.repeat_interleave(size) * u) * gate
    spread = (y.square().mean(dim=-1) + EPSILON).sqrt()
    norm = torch.linalg.matrix_norm(block.out_proj.weight * block.norm.weight, 2)
    strength = norm * C.norm(dim=-1) * gate.abs().amax(dim=-1) / spread
    return Unrolled(block.out_proj(block.norm.weight * y / spread[..., None]), h, decay, strength)


def _states(decay: Tensor, drive: Tensor) -> Tensor:
    """Return h_t = decay_t h_{t-1} + drive_t for drive (n, L, D, N)."""
    states = [drive[:, 0]]
    for t in range(1, drive.shape[1]):
        states.append(decay[:, t] * states[-1] + drive[:, t])
    return torch.stack(states, dim=1)


def directions(width: int, probes: int, seed: int = 0) -> Tensor:
    """Return directions (k, width) whose squared directional derivatives sum to the squared norm.

    They are the axes where `probes` is at least the width. Fewer probes are random directions, for which the sum holds
    in expectation.
    """
    if probes >= width:
        return torch.eye(width, dtype=torch.float64)
    drawn = torch.randn(probes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn / probes**0.5


def text_reach(mamba: Mamba | Mamba2, x: Tensor, along: Tensor) -> Reach:
    """Return the reach of the first token of sequences x (n, L, C), the block's inputs, in double precision.

    along: the directions (k, C) of differentiation, see `directions`.
    """
    block = deepcopy(mamba).double().requires_grad_(False)
    x = x.detach().double()
    kernel = block.conv1d.kernel_size[0]  # K

    def outputs(prefix: Tensor) -> tuple[Tensor, Tensor]:
        unrolled = unroll(block, torch.cat([prefix, x[:, 1:]], dim=1))
        return unrolled.output, unrolled.states[:, min(kernel, x.shape[1]) - 1]

    squared, at_start = torch.zeros(x.shape[:2], dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    for direction in along.to(x.device):
        tangent = direction.expand(len(x), 1, -1).contiguous()
        output, state = torch.func.jvp(outputs, (x[:, :1],), (tangent,))[1]
        squared += output.square().sum(dim=-1).cpu()
        at_start += state.square().sum(dim=(-2, -1)).cpu()
    inside = unroll(block, x)
    rate = inside.decay[:, 1:].flatten(1).max(dim=1).values
    past = torch.arange(x.shape[1]) - kernel + 1
    bound = inside.strength.cpu() * at_start.sqrt()[:, None]
    bound = bound * rate[:, None] ** past.clamp(min=0)
    return Reach(squared.sqrt(), bound.masked_fill(past <= 0, torch.nan), rate)


@dataclass(frozen=True)
class Fit:
    """The line log norm = a + t log(rate), by least squares over `first` <= t <= `last`."""

    first: int
    last: int
    rate: float  # of the sequences' geometric mean
    rates: NDArray[np.float64]  # (n,): of each sequence
    explained: float  # share of the geometric mean's variance that the line explains

    @property
    def half(self) -> float:
        """The number of tokens over which the norm halves."""
        return float(np.log(0.5) / np.log(self.rate)) if self.rate < 1 else float("inf")


def fit_rate(norms: NDArray[np.float64], first: int) -> Fit | None:
    """Fit norms (n, L) from position `first` to the last; return None for fewer than three positions."""
    last = norms.shape[1] - 1
    t = np.arange(first, last + 1)
    if len(t) < 3:
        return None
    logs = np.log(norms[:, first:])
    slopes = (logs - logs.mean(axis=1, keepdims=True)) @ (t - t.mean()) / np.square(t - t.mean()).sum()
    mean = logs.mean(axis=0)
    line = mean.mean() + slopes.mean() * (t - t.mean())
    explained = 1 - np.square(mean - line).sum() / np.square(mean - mean.mean()).sum()
    return Fit(first, last, float(np.exp(slopes.mean())), np.exp(slopes), float(explained))
