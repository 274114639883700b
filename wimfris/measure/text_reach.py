"""How far the text token reaches: the derivative of the Mamba block's output at position t by the prefix token.

The block reads [text token, tokens of a window], normalised; its output y_t, before gate and residual, is
differentiated by the text token x_0 as the block sees it. Two paths lead from x_0 to y_t. The causal convolution of
kernel K shows x_0 to the positions 0 .. K - 1 directly; behind them it is in the state alone, where

    dh_t / dx_0 = exp(Delta_t A) dh_{t-1} / dx_0        (t >= K),

since Delta_t depends on x_0 no longer. So the fit and the bound begin at t = K. With lambda = max exp(Delta A) over the
positions, channels and states of a sequence (method.md, section 4), and y_t = W ((C_t h_t + D u_t) * SiLU(z_t)),

    |dy_t / dx_0| <= |W|_2 max_d |SiLU(z_t)_d| |C_t| lambda^(t - K + 1) |dh_{K-1} / dx_0|.

Norms of derivatives are Frobenius norms, summed from directional derivatives in forward mode: one pass gives all t.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wimfris.data.dataset import Case, ReferDataset
from wimfris.encoders.load import load_tokenizer
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.mamba import Mamba
from wimfris.model.scan import causal_conv_silu
from wimfris.model.segmenter import Segmenter
from wimfris.model.windows import window_padding
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter

BATCH = 32  # images at a time


@dataclass(frozen=True)
class Reach:
    """Of n sequences of L positions, position 0 the text token: norms (n, L) of dy_t / dx_0; their bound (n, L), NaN
    before t = K; its rate lambda (n,).
    """

    norms: Tensor
    bound: Tensor
    rate: Tensor


@dataclass(frozen=True)
class _Unrolled:
    output: Tensor  # (n, L, C)
    states: Tensor  # (n, L, D, N)
    decay: Tensor  # (n, L, D, N): exp(Delta A)
    readout: Tensor  # (n, L, N): C
    gate: Tensor  # (n, L, D): SiLU(z)


def unroll(mamba: Mamba, x: Tensor) -> _Unrolled:
    """`Mamba.forward` on (n, L, C) in plain operations, which forward mode can differentiate, and what is inside."""
    u, z = mamba.in_proj(x).chunk(2, dim=-1)
    u = causal_conv_silu(u, mamba.conv1d.weight, mamba.conv_bias, backend="reference")
    delta, B, C = mamba.x_proj(u).split([mamba.rank, mamba.state, mamba.state], dim=-1)
    delta = F.softplus(F.linear(delta, mamba.dt_proj.weight, mamba.dt_proj.bias))
    decay = torch.exp(delta[..., None] * -torch.exp(mamba.A_log))
    drive = (delta * u)[..., None] * B[:, :, None]
    states = [drive[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(decay[:, t] * states[-1] + drive[:, t])
    h, gate = torch.stack(states, dim=1), F.silu(z)
    y = ((h @ C[..., None]).squeeze(-1) + mamba.D * u) * gate
    return _Unrolled(mamba.out_proj(y), h, decay, C, gate)


def directions(width: int, probes: int, seed: int = 0) -> Tensor:
    """Directions (k, width) whose squared directional derivatives sum to the squared norm: the axes where there are
    enough probes for all of them, else random ones (k = probes), by which the sum is right in expectation.
    """
    if probes >= width:
        return torch.eye(width, dtype=torch.float64)
    drawn = torch.randn(probes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn / probes**0.5


def text_reach(mamba: Mamba, x: Tensor, along: Tensor) -> Reach:
    """The reach of the first token of sequences x (n, L, C), the block's inputs; `along`: see `directions`. In double
    precision.
    """
    block = deepcopy(mamba).double().requires_grad_(False)
    x = x.detach().double()
    reached = block.conv1d.kernel_size[0]  # K

    def of_prefix(prefix: Tensor) -> tuple[Tensor, Tensor]:
        found = unroll(block, torch.cat([prefix, x[:, 1:]], dim=1))
        return found.output, found.states[:, min(reached, x.shape[1]) - 1]

    squared, at_start = torch.zeros(x.shape[:2], dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    for direction in along.to(x.device):
        tangent = direction.expand(len(x), 1, -1).contiguous()
        output, state = torch.func.jvp(of_prefix, (x[:, :1],), (tangent,))[1]
        squared += output.square().sum(dim=-1).cpu()
        at_start += state.square().sum(dim=(-2, -1)).cpu()
    inside = unroll(block, x)
    rate = inside.decay[:, 1:].flatten(1).max(dim=1).values
    past = torch.arange(x.shape[1]) - reached + 1
    strength = inside.readout.norm(dim=-1) * inside.gate.abs().max(dim=-1).values
    bound = torch.linalg.matrix_norm(block.out_proj.weight, 2) * strength.cpu() * at_start.sqrt()[:, None]
    bound = bound * rate[:, None] ** past.clamp(min=0)
    return Reach(squared.sqrt(), bound.masked_fill(past <= 0, torch.nan), rate)


@dataclass(frozen=True)
class Fit:
    """log norm = a + t log(rate), by least squares over `first` <= t <= `last`: rates (n,) of each sequence, that of
    their geometric mean, and how much of that mean's variance the line explains.
    """

    first: int
    last: int
    rate: float
    rates: NDArray[np.float64]
    explained: float

    @property
    def half(self) -> float:
        """Tokens over which the norm halves."""
        return float(np.log(0.5) / np.log(self.rate)) if self.rate < 1 else float("inf")


def fit_rate(norms: NDArray[np.float64], first: int) -> Fit | None:
    """Fit norms (n, L) from position `first` to the last; None where that leaves fewer than three positions."""
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


# --- of a run ---------------------------------------------------------------------------------------------------------


def untrained(settings: Settings, seed: int) -> Segmenter:
    """The model that a run of this seed starts from."""
    torch.manual_seed(seed)
    return build_segmenter(settings, load_tokenizer(settings)).eval()


def fusion_of(segmenter: Segmenter) -> WindowMambaFusion:
    """Its window-Mamba fusion. Raises ValueError where it has none, or one without a text token before the others."""
    fusion = segmenter.neck.fusion if isinstance(segmenter.neck, Neck) else None
    if fusion is None or fusion.mamba is None or fusion.text_token != "first":
        raise ValueError("this neck has no scan with the text token first")
    return fusion


@torch.no_grad()
def block_inputs(
    segmenter: Segmenter, settings: Settings, rows: pd.DataFrame, images: Path, count: int, most: int
) -> Tensor:
    """What the Mamba block of the neck reads for `count` images of these index rows (evenly spread over them, the first
    sentence of an object of each): (n, M + 1, C), at most `most` of the windows, drawn with a fixed seed, those at the
    border that hold padding left out.
    """
    fusion = fusion_of(segmenter)
    assert fusion.mamba is not None
    objects = rows.drop_duplicates("image_id").reset_index(drop=True)
    chosen = np.unique(np.linspace(0, len(objects) - 1, min(count, len(objects))).round().astype(int))
    cases = [Case(int(row), 0, objects["sentences"].iloc[row][0]) for row in chosen]
    size = settings.data.image_size
    dataset = ReferDataset(objects, cases, images, load_tokenizer(settings), size, with_mask=False)
    read: list[Tensor] = []
    hook = fusion.mamba.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        for first in range(0, len(dataset), BATCH):
            items = [dataset[k] for k in range(first, min(first + BATCH, len(dataset)))]
            segmenter(*(torch.stack([item[key] for item in items]) for key in ("image", "token_ids")))
    finally:
        hook.remove()
    sequences = torch.cat(read)
    side = fusion.window or settings.grid
    whole = ~window_padding(settings.grid, settings.grid, (side, side)).any(dim=1)
    sequences = sequences[whole.repeat(len(sequences) // len(whole))]
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    return sequences[order[:most].sort().values]


def curve(reach: Reach, **told: object) -> pd.DataFrame:
    """A row a position t >= 1: geometric mean, 5% and 95% quantile of the norm over sequences, each relative to the
    norm at t = 1 (share, low, high), and the geometric mean of the bound likewise; the columns of `told` before them.
    """
    norms, bound = reach.norms.numpy(), reach.bound.numpy()
    share, above = norms[:, 1:] / norms[:, 1:2], bound[:, 1:] / norms[:, 1:2]
    low, high = np.quantile(share, [0.05, 0.95], axis=0)
    columns = {"t": np.arange(1, norms.shape[1]), "share": np.exp(np.log(share).mean(axis=0)), "low": low, "high": high}
    return pd.DataFrame({**told, **columns, "bound": np.exp(np.log(above).mean(axis=0))})
