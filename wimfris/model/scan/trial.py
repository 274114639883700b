"""Compare a scan backend with the reference on this device, and remember the result."""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.errors import one_line
from wimfris.files import write_text
from wimfris.kernels import ops
from wimfris.model.scan import reference
from wimfris.model.windows import window_index, window_partition, window_unpartition

TOLERANCE = 1e-4  # relative difference of a backend from the reference, float32
Function = Callable[..., Tensor]


def largest_difference(scan: Function, expected: Function, device: str, length: int = 17) -> float:
    """Return the largest relative difference in the output and all gradients of a small scan.

    Both functions take u, delta, A, B, C, D, z and delta_bias; see `selective_scan`.
    """
    batch, width, state = 2, 32, 16
    wide, narrow = (batch, length, width), (batch, length, state)
    inputs = _draw(device, wide, wide, (width, state), narrow, narrow, (width,), wide, (width,))
    inputs[2] = -inputs[2].exp()  # A
    return _difference(scan, expected, inputs)


def agrees_with_reference(backend: str, device: str) -> tuple[bool, str]:
    """Return whether a backend agrees with the reference on this device, and the result in a few words.

    The result is remembered for each GPU, version of torch, of Triton and of the kernels. A failure is not: the
    backend is tried again by the next process.
    """
    path = _cache_folder() / f"scan-{_key(backend, device)}.json"
    try:
        difference = float(json.loads(path.read_text(encoding="utf-8"))["difference"])
    except (OSError, ValueError, KeyError, TypeError):
        try:
            difference = _try(backend, device)
        except Exception as error:  # a compiler or driver may raise anything
            return False, f"fails on this GPU ({one_line(error)[:200]})"
        _remember(path, difference)
    if difference < TOLERANCE:
        return True, f"agrees with the reference on this GPU (relative difference {difference:.0e})"
    return False, f"differs from the reference on this GPU (relative difference {difference:.0e})"


def _try(backend: str, device: str) -> float:
    """Return the largest difference of the scan, of several chunks and of windows too, and of the convolution."""
    scan = partial(ops.fused_scan, backend=backend)
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        sequences = [largest_difference(scan, reference.selective_scan, device, length) for length in (17, 40)]
        return max(*sequences, _windows_difference(scan, device), _conv_difference(backend, device))


def _windows_difference(scan: Function, device: str) -> float:
    """Return the difference of a scan that reads the windows of a map, of which some have padding."""
    grid, window, images, width, state = (3, 4), (2, 2), 2, 32, 16
    cells, places = window_index(*grid, window, device=torch.device(device))
    sequences, length = images * len(cells), cells.shape[1] + 1
    wide, narrow = (sequences, length, width), (sequences, length, state)
    inputs = _draw(
        device, wide, wide, (width, state), narrow, narrow, (width,), (images, grid[0] * grid[1], width), (width,)
    )
    inputs[2] = -inputs[2].exp()

    def apart(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        gates = F.pad(window_partition(z, cells), (0, 0, 1, 0))  # the text token's output is dropped
        scanned = reference.selective_scan(u, delta, A, B, C, D, gates, bias)
        return window_unpartition(scanned[:, 1:], cells, places)

    return _difference(partial(scan, cells=cells.int()), apart, inputs)


def _conv_difference(backend: str, device: str) -> float:
    inputs = _draw(device, (2, 40, 32), (32, 1, 4), (32,))
    return _difference(partial(ops.fused_conv, backend=backend), reference.causal_conv_silu, inputs)


def _remember(path: Path, difference: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"difference": difference}) + "\n")
    except Exception:  # a home that cannot be written: the next process tries again
        return


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wimfris"


def _key(backend: str, device: str) -> str:
    """Return a digest of all that decides the result: GPU, versions, and the source of the kernels."""
    parts: list[Any] = [backend, torch.__version__, torch.version.cuda]
    if device == "cuda":
        parts += [torch.cuda.get_device_name(), torch.cuda.get_device_capability()]
    try:
        parts.append(version("triton"))
    except PackageNotFoundError:
        parts.append(None)
    digest = hashlib.sha256(json.dumps(parts).encode())
    for source in sorted(Path(ops.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _draw(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return normal numbers of these shapes. They are drawn on the CPU, and torch's random state stays."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(device) for shape in shapes]


def _difference(function: Function, expected: Function, inputs: list[Tensor]) -> float:
    pairs = zip(_derive(function, inputs), _derive(expected, inputs), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _derive(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of every input."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    weights = torch.arange(output.numel(), device=output.device).view_as(output).cos()
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]
