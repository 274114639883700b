"""The Mamba block (Gu & Dao, 2023), with the parameter names of mamba_ssm's `Mamba`, so that weights fit both."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.model.scan import causal_conv_silu, choose_backend, fused_conv, fused_scan, selective_scan

DELTA_RANGE = (1e-3, 1e-1)  # the initial step is log-uniform in it; from mamba_ssm


class Mamba(nn.Module):
    """y = out_proj(scan(SiLU(conv1d(x'))) * SiLU(z)) with x', z = in_proj(x).

    width: model width; state: N; conv: kernel of the causal depthwise convolution; expand: inner width over width;
    backend: see `choose_backend`.
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
        """Initialise dt_proj as mamba_ssm does."""
        bias = initial_steps(self.dt_proj.out_features)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, L, width) -> (batch, L, width). Position t sees the positions up to t.

        padding is ignored: it follows the real tokens, which do not see it.
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        backend = choose_backend(self.backend, x.device.type, (*u.shape, self.state), self.A_log.dtype).backend
        u = causal_conv_silu(u, self.conv1d.weight, self.conv_bias, backend=backend)
        delta, A, B, C = self._select(u)
        y = selective_scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, backend=backend)
        return self.out_proj(y)

    def forward_windows(self, tokens: Tensor, text: Tensor, cells: Tensor) -> Tensor:
        """Run over the windows of a map, by a backend whose kernels read them from it: (B, H * W, width) -> the same.

        text (B, 1, width) leads every window of its image. cells (n_win, M), int32: the raster position of each token
        of each window, negative at padding. `in_proj` runs once for each token of the map, and once for each text.
        """
        u, z = self.in_proj(tokens).chunk(2, dim=-1)
        backend = choose_backend(self.backend, tokens.device.type).backend
        lead = F.linear(text, self.in_proj.weight[: len(self.D)])
        u = fused_conv(u, self.conv1d.weight, self.conv_bias, lead, backend=backend, cells=cells)
        delta, A, B, C = self._select(u)
        y = fused_scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, backend=backend, cells=cells)
        return self.out_proj(y)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return delta, A, B and C for the scan, which adds delta's bias itself."""
        delta, B, C = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        return F.linear(delta, self.dt_proj.weight), -torch.exp(self.A_log), B, C

    @property
    def conv_bias(self) -> Tensor:
        """The bias of conv1d, which always has one."""
        bias = self.conv1d.bias
        assert bias is not None
        return bias


def initial_steps(number: int) -> Tensor:
    """Return a bias (number,) whose softplus is log-uniform in DELTA_RANGE."""
    low, high = (math.log(delta) for delta in DELTA_RANGE)
    delta = torch.exp(torch.rand(number) * (high - low) + low).clamp(min=1e-4)
    return delta + torch.log(-torch.expm1(-delta))  # the inverse of softplus


def mixing(width: int, *, heads: int, state: int, conv: int, expand: int, backend: str) -> nn.Module:
    """Return the block of the mixing `ssm`; see `wimfris.model.hmf`."""
    return Mamba(width, state=state, conv=conv, expand=expand, backend=backend)
