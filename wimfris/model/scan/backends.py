"""Which scan backend runs, and why."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from wimfris.errors import UserError
from wimfris.kernels import ops
from wimfris.model.scan.trial import agrees_with_reference

BACKENDS = ("auto", "reference", *ops.BACKENDS)
SMALL = 2**14  # batch * L * D * N below which a call's fixed cost dominates, and the reference is as fast
EXTENSIONS = {  # what the backend `mamba_ssm` imports: packages, and the compiled code that a build can leave out
    "mamba-ssm": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"),
    "causal-conv1d": ("causal_conv1d", "causal_conv1d_cuda"),
}
CONV_TAPS = (2, 3, 4)  # kernels that causal_conv1d has
CONV_MULTIPLE = 8  # it wants a multiple of these channels where the tokens lie channels-last


Result = TypeVar("Result")


def _once(function: Callable[..., Result]) -> Any:
    """Cache a function's results. torch.compile takes them as constants."""
    cached = cache(function)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @wraps(function)
    def read(*arguments: Any) -> Result:
        return cached(*arguments)

    read.cache_clear = cached.cache_clear
    return read


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
    a CPU, except for float64 and for scans too small to profit; on CUDA mamba_ssm where its extensions can be imported
    and take the channels, else Triton where it agrees with the reference on this GPU; elsewhere the reference. On
    `meta`, where nothing is computed, every backend is the reference. Raises UserError where the backend is unknown or
    cannot run.
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
        return Choice(*_choose_on_cuda(shape is None or shape[2] % CONV_MULTIPLE == 0))
    if device != "cpu":
        return Choice("reference", f"nothing faster runs on {device}")
    if _obstacle("cpu", device):
        return Choice("reference", "numba is not installed")
    if dtype != torch.float32:
        return Choice("reference", "the compiled kernels are made for float32")
    if shape is not None and shape[0] * shape[1] * shape[2] * shape[3] < SMALL:
        return Choice("reference", f"fewer than {SMALL} states: too small for the compiled kernels to pay")
    return Choice("cpu", "kernels compiled by numba")


def check_conv(backend: str, taps: int, width: int) -> None:
    """Raise UserError where causal_conv1d, which `mamba_ssm` calls, lacks a kernel for these taps and channels."""
    if backend == "mamba_ssm" and (taps not in CONV_TAPS or width % CONV_MULTIPLE):
        raise UserError(
            f"model.scan is mamba_ssm, whose convolution takes 2 to 4 taps and a multiple of {CONV_MULTIPLE} channels, "
            f"got {taps} taps and {width} channels; set model.scan to triton or reference"
        )


@_once
def _choose_on_cuda(convolves: bool) -> tuple[str, str]:
    """Return the backend of `auto` on CUDA, and the reason. convolves: whether causal_conv1d takes the channels."""
    failure = mamba_failure() if convolves else f"causal_conv1d wants a multiple of {CONV_MULTIPLE} channels"
    if failure is None:
        return "mamba_ssm", "its extensions can be imported"
    if not torch.cuda.is_available():
        return "reference", f"{failure}; torch sees no CUDA device"
    if not _installed("triton"):
        return "reference", f"{failure}; triton is not installed"
    agrees, result = agrees_with_reference("triton", "cuda")
    return "triton" if agrees else "reference", f"{failure}; triton {result}"


@_once
def _installed(*packages: str) -> bool:
    return all(find_spec(package) is not None for package in packages)


@_once
def mamba_failure() -> str | None:
    """Return why the backend `mamba_ssm` cannot be imported, or None. A build can leave out the compiled code."""
    for package, modules in EXTENSIONS.items():
        for module in modules:
            try:
                import_module(module)
            except ModuleNotFoundError as error:
                part = "is not installed" if error.name == modules[0].split(".")[0] else f"lacks {error.name}"
                return f"{package} {part}"
            except Exception as error:  # a build for another torch or CUDA may raise anything
                return f"{package} cannot be imported ({type(error).__name__} in {module})"
    return None


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
    if backend == "mamba_ssm":
        if device != "cuda":
            return "mamba_ssm needs a CUDA device; use auto or reference"
        failure = mamba_failure()
        return f"{failure}; install it as docs/gpu.md says, or use auto or reference" if failure else None
    return None
