"""Which scan backend runs, and why."""

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from wimfris.errors import UserError
from wimfris.kernels import ops

BACKENDS = ("auto", "reference", *ops.BACKENDS)
SMALL = 2**14  # batch * L * D * N below which a call's fixed cost dominates, and the reference is as fast


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and the reason in a few words."""

    backend: str
    reason: str


def choose_backend(
    backend: str, device: str, shape: tuple[int, int, int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Choice:
    """Return the backend that runs on a device ("cpu", "cuda", ...).

    shape: (batch, L, D, N) of the scan, where it is known; dtype: the parameters'. `auto` takes the compiled kernels on
    a CPU, except for float64 and for scans too small to profit; on CUDA mamba_ssm where it is installed; elsewhere the
    reference. On `meta`, where nothing is computed, every backend is the reference. Raises UserError where the backend
    is unknown or cannot run.
    """
    if backend not in BACKENDS:
        raise UserError(f"model.scan must be one of {', '.join(BACKENDS)}, got '{backend}'")
    if device == "meta":
        return Choice("reference", "meta tensors have shapes and no numbers")
    if backend != "auto":
        obstacle = _obstacle(backend, device)
        if obstacle:
            raise UserError(f"model.scan: {obstacle}")
        return Choice(backend, "named in model.scan")
    if device == "cuda":
        if _obstacle("mamba_ssm", device) is None:
            return Choice("mamba_ssm", "on CUDA, and mamba_ssm is installed")
        other = "triton is installed but not measured yet: set it by name" if _installed("triton") else "nor is triton"
        return Choice("reference", f"mamba_ssm is not installed; {other}")
    if device != "cpu":
        return Choice("reference", f"nothing faster runs on {device}")
    if _obstacle("cpu", device):
        return Choice("reference", "numba is not installed")
    if dtype != torch.float32:
        return Choice("reference", "the compiled kernels are made for float32")
    if shape is not None and shape[0] * shape[1] * shape[2] * shape[3] < SMALL:
        return Choice("reference", f"fewer than {SMALL} states: too small for the compiled kernels to pay")
    return Choice("cpu", "kernels compiled by numba")


@cache
def _installed(*packages: str) -> bool:
    return all(find_spec(package) is not None for package in packages)


def _obstacle(backend: str, device: str) -> str | None:
    """Return why a backend cannot run on a device, and what to do; None where it can."""
    if backend == "cpu":
        if device != "cpu":
            return "cpu runs on the CPU only; use auto or reference"
        return None if _installed("numba") else "cpu needs numba: `pip install numba`; use auto or reference"
    if backend == "triton":
        if not _installed("triton"):
            return "triton needs the package triton: `pip install triton`; use auto or reference"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device == "cuda" or (device == "cpu" and interpreted):
            return None
        return "triton needs a CUDA device (or TRITON_INTERPRET=1, a slow interpreter for tests); use auto or reference"
    if backend == "mamba_ssm" and not (device == "cuda" and _installed("mamba_ssm", "causal_conv1d")):
        return "mamba_ssm needs a CUDA device and `pip install -e '.[cuda]'`; use auto or reference"
    return None
