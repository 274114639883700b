"""The Mamba block (Gu & Dao, 2023), with the parameter names of mamba_ssm's `Mamba`: weights are exchangeable."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.model.scan import causal_conv_silu, choose_backend, fused_conv, fused_scan, selective_scan

DELTA_RANGE = (1e-3, 1e-1)  # of the initial step, drawn log-uniformly; from mamba_ssm


class Mamba(nn.Module):
    """y = out_proj(scan(SiLU(conv1d(x'))) * SiLU(z)) with x', z = in_proj(x).

    width: model width; state: N; conv: kernel of the causal depthwise convolution; expand: inner width over width.
    """

    def __init__(self, width: int, *, state: int = 16, conv: int = 4, expand: int = 2, backend: str = "auto") -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.state, self.rank, self.backend = state, rank, backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._init_step()

    def _init_step(self) -> None:
        """dt_proj such that softplus of its bias is log-uniform in DELTA_RANGE, as mamba_ssm does it."""
        low, high = (math.log(delta) for delta in DELTA_RANGE)
        delta = torch.exp(torch.rand(self.dt_proj.out_features) * (high - low) + low).clamp(min=1e-4)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """(batch, L, width) -> (batch, L, width). Position t sees positions up to t."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        chosen = choose_backend(self.backend, x.device.type, (*u.shape, self.state), self.A_log.dtype).backend
        u = causal_conv_silu(u, self.conv1d.weight, self.conv_bias, backend=chosen)
        delta, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.linear(delta, self.dt_proj.weight)  # its bias joins inside the softplus
        y = selective_scan(u, delta, -torch.exp(self.A_log), B, C, self.D, z, self.dt_proj.bias, backend=chosen)
        return self.out_proj(y)

    def fuse_windows(self, tokens: Tensor, text: Tensor, cells: Tensor) -> Tensor:
        """The block over the windows of a map, each led by its image's text token, by Triton: tokens (B, H * W, width),
        text (B, 1, width) -> (B, H * W, width), what `forward` says at the map's tokens.

        cells (n_win, M), int32: the place in the map of every token of every window, negative where it is padding. The
        windows are cut and joined inside the kernels; what stands for itself alone, a projection, is computed once a
        token, for the text too.
        """
        u, z = self.in_proj(tokens).chunk(2, dim=-1)
        lead = F.linear(text, self.in_proj.weight[: len(self.D)])
        u = fused_conv(u, self.conv1d.weight, self.conv_bias, lead, backend="triton", cells=cells)
        delta, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.linear(delta, self.dt_proj.weight)
        A = -torch.exp(self.A_log)
        y = fused_scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, backend="triton", cells=cells)
        return self.out_proj(y)

    @property
    def conv_bias(self) -> Tensor:
        """That of conv1d, which always has one."""
        bias = self.conv1d.bias
        assert bias is not None
        return bias
