"""The Mamba-2 block (Dao & Gu, 2024), with the parameter names of mamba_ssm's `Mamba2`, so that weights fit both."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.kernels.ops import load_backend
from wimfris.model.mamba import initial_steps
from wimfris.model.scan import causal_conv_silu, choose_backend
from wimfris.model.scan.ssd import ssd

DECAY_RANGE = (1.0, 16.0)  # the initial -A is uniform in it; from mamba_ssm
EPSILON = 1e-5  # of the norm; from mamba_ssm


class Mamba2(nn.Module):
    """y = out_proj(RMSNorm(ssd(x', dt, B, C) * SiLU(z))), z, u, dt = in_proj(x), and x', B, C = SiLU(conv1d(u)).

    width: model width; state: N; conv: kernel of the causal depthwise convolution; expand: inner width over width;
    heads: of the inner width; groups: of heads that share B and C; backend: that of the convolution, see
    `choose_backend`. The scan is `mamba_ssm`'s where that is the backend, otherwise `ssd`.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        state: int,
        conv: int = 4,
        expand: int = 2,
        groups: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * width
        self.heads, self.groups, self.state, self.backend = heads, groups, state, backend
        self.split = [inner, inner + 2 * groups * state, heads]
        self.in_proj = nn.Linear(width, sum(self.split), bias=False)
        self.conv1d = nn.Conv1d(self.split[1], self.split[1], conv, groups=self.split[1], padding=conv - 1)
        self.dt_bias = nn.Parameter(initial_steps(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*DECAY_RANGE).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=EPSILON)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, L, width) -> (batch, L, width). Position t sees the positions up to t.

        padding is ignored: it follows the real tokens, which do not see it.
        """
        z, u, delta = self.in_proj(x).split(self.split, dim=-1)
        backend = choose_backend(self.backend, x.device.type, (*u.shape, self.state), self.A_log.dtype).backend
        bias = self.conv1d.bias
        assert bias is not None
        u = causal_conv_silu(u, self.conv1d.weight, bias, backend=backend)
        inputs, B, C = u.split([z.shape[-1], self.groups * self.state, self.groups * self.state], dim=-1)
        scan = load_backend(backend).ssd if backend == "mamba_ssm" else ssd
        y = scan(
            inputs.unflatten(-1, (self.heads, -1)),
            delta,
            -torch.exp(self.A_log),
            B.unflatten(-1, (self.groups, -1)),
            C.unflatten(-1, (self.groups, -1)),
            self.D,
            self.dt_bias,
        )
        return self.out_proj(self.norm(y.flatten(2) * F.silu(z)))


def mixing(width: int, *, heads: int, state: int, conv: int, expand: int, backend: str) -> nn.Module:
    """Return the block of the mixing `ssd`; see `wimfris.model.hmf`."""
    return Mamba2(width, heads=heads, state=state, conv=conv, expand=expand, backend=backend)
