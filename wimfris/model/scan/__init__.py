"""The selective scan of Mamba, behind one function.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t        out_t = y_t * SiLU(z_t)

with delta = softplus(delta + delta_bias) (Gu & Dao, 2023, equations 2 to 4). Everything is channels-last.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.errors import UserError
from wimfris.kernels.ops import conv_flops, fused_conv, fused_scan, scan_flops
from wimfris.model.scan.reference import scan_states

__all__ = [
    "BACKENDS",
    "Choice",
    "causal_conv_silu",
    "choose_backend",
    "conv_flops",
    "fused_conv",
    "fused_scan",
    "scan_flops",
    "selective_scan",
]

BACKENDS = ("auto", "reference", "cpu", "triton", "mamba_ssm")
SMALL = 2**14  # batch * L * D * N below which a call's fixed cost decides, and the reference is as fast


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and the reason in a few words."""

    backend: str
    why: str


@cache
def _installed(*packages: str) -> bool:
    """Whether all of them can be imported."""
    return all(find_spec(package) is not None for package in packages)


def _obstacle(backend: str, device: str) -> str | None:
    """Why a backend cannot run on a device ("cpu", "cuda"), with what would help; None where it can."""
    if backend == "cpu":
        if device != "cpu":
            return "cpu runs on the CPU alone; use auto or reference"
        return None if _installed("numba") else "cpu needs numba: `pip install numba`; use auto or reference"
    if backend == "triton":
        if not _installed("triton"):
            return "triton needs the package triton: `pip install triton`; use auto or reference"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device == "cuda" or (device == "cpu" and interpreted):
            return None
        return "triton needs a CUDA device (or TRITON_INTERPRET=1, slowly, to test it); use auto or reference"
    if backend == "mamba_ssm" and not (device == "cuda" and _installed("mamba_ssm", "causal_conv1d")):
        return "mamba_ssm needs a CUDA device and `pip install -e '.[cuda]'`; use auto or reference"
    return None


def choose_backend(
    backend: str, device: str, shape: tuple[int, int, int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Choice:
    """What runs on a device ("cpu", "cuda", ...), for a shape (batch, L, D, N) and a dtype of the parameters where they
    are known.

    `auto` takes the compiled kernels on a CPU, except for what is too small to profit from them or float64; on CUDA
    mamba_ssm where it is installed; the reference elsewhere. On `meta`, which has shapes and no numbers, every backend
    is as good as the reference. Raises UserError where the backend is unknown or cannot run.
    """
    if backend not in BACKENDS:
        raise UserError(f"model.scan: no scan backend '{backend}'; allowed: {', '.join(BACKENDS)}")
    if device == "meta":
        return Choice("reference", "meta tensors: shapes alone, nothing is computed")
    if backend != "auto":
        obstacle = _obstacle(backend, device)
        if obstacle:
            raise UserError(f"model.scan: {obstacle}")
        return Choice(backend, "asked for by name")
    if device == "cuda":
        if _obstacle("mamba_ssm", device) is None:
            return Choice("mamba_ssm", "on CUDA, and mamba_ssm is installed")
        told = "triton is there but not measured yet: ask for it by name" if _installed("triton") else "nor is triton"
        return Choice("reference", f"mamba_ssm is not installed; {told}")
    if device != "cpu":
        return Choice("reference", f"nothing faster runs on {device}")
    if _obstacle("cpu", device):
        return Choice("reference", "numba is not installed")
    if dtype != torch.float32:
        return Choice("reference", "the compiled kernels are made for float32")
    if shape is not None and shape[0] * shape[1] * shape[2] * shape[3] < SMALL:
        return Choice("reference", f"fewer than {SMALL} states: too small for the compiled kernels to pay")
    return Choice("cpu", "kernels compiled by numba")


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
    """u, delta, z (batch, L, D); A (D, N); B, C (batch, L, N); D, delta_bias (D,) -> (batch, L, D), in u's dtype.

    Under autocast the fused backends, `cpu` and `triton`, take u, delta, B, C and z in its dtype, and so is what they
    give. The state is in A's or better, by `triton` and `mamba_ssm` in float32.
    """
    batch, length, width = u.shape
    chosen = choose_backend(backend, u.device.type, (batch, length, width, A.shape[1]), A.dtype).backend
    if chosen == "mamba_ssm":
        from wimfris.kernels.mamba_ssm import mamba_ssm_scan

        return mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias)
    if chosen != "reference":
        return fused_scan(u, delta, A, B, C, D, z, delta_bias, backend=chosen)
    state = A.dtype  # the state is kept in the parameters' precision, whatever autocast makes of the inputs
    with torch.autocast(u.device.type, enabled=False):
        drive = u.to(state)
        y = scan_states(drive, F.softplus(delta.to(state) + delta_bias), A, B.to(state), C.to(state))
        return ((y + D * drive) * F.silu(z.to(state))).to(u.dtype)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """SiLU of the causal depthwise convolution before the scan: x (batch, L, D), weight (D, 1, K), bias (D,) -> (batch,
    L, D). A token sees the K tokens up to itself.
    """
    chosen = choose_backend(backend, x.device.type, dtype=weight.dtype).backend
    if chosen == "mamba_ssm":
        from wimfris.kernels.mamba_ssm import causal_conv1d_silu

        return causal_conv1d_silu(x, weight, bias)
    if chosen != "reference":
        return fused_conv(x, weight, bias, backend=chosen)
    # the kernel is short: a sum of shifted copies stays channels-last, which conv1d does not
    kernel, length = weight.squeeze(1), x.shape[1]
    padded = F.pad(x, (0, 0, kernel.shape[1] - 1, 0))
    return F.silu(bias + sum(kernel[:, k] * padded[:, k : k + length] for k in range(kernel.shape[1])))
