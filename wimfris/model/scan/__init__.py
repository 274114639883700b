"""The selective scan of Mamba, behind one function.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t        out_t = y_t * SiLU(z_t)

with delta = softplus(delta + delta_bias) (Gu & Dao, 2023, equations 2 to 4). Everything is channels-last.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.errors import UserError
from wimfris.model.scan.reference import scan_states

BACKENDS = ("auto", "reference", "mamba_ssm")


@cache
def _installed() -> bool:
    """Whether mamba_ssm and its causal convolution can be imported."""
    return all(find_spec(package) is not None for package in ("mamba_ssm", "causal_conv1d"))


def choose_backend(backend: str, on_cuda: bool) -> str:
    """The backend that runs: `auto` takes mamba_ssm where the tensors are on CUDA and it is installed, the reference
    elsewhere.
    """
    if backend == "auto":
        return "mamba_ssm" if on_cuda and _installed() else "reference"
    if backend not in BACKENDS:
        raise UserError(f"model.scan: no scan backend '{backend}'; allowed: {', '.join(BACKENDS)}")
    if backend == "mamba_ssm" and not (on_cuda and _installed()):
        raise UserError(
            "model.scan: mamba_ssm needs a CUDA device and `pip install -e '.[cuda]'`; use auto or reference"
        )
    return backend


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """u, delta, z (batch, L, D); A (D, N); B, C (batch, L, N); D, delta_bias (D,) -> (batch, L, D), in u's dtype."""
    if choose_backend(backend, u.is_cuda) == "mamba_ssm":
        from wimfris.model.scan.cuda import mamba_ssm_scan

        return mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias)
    state = A.dtype  # the state is kept in the parameters' precision, whatever autocast makes of the inputs
    with torch.autocast(u.device.type, enabled=False):
        drive = u.to(state)
        y = scan_states(drive, F.softplus(delta.to(state) + delta_bias), A, B.to(state), C.to(state))
        return ((y + D * drive) * F.silu(z.to(state))).to(u.dtype)
