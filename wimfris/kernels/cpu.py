"""Launch the scan's and the convolution's compiled kernels (see `numba_kernels`) on a CPU, on torch's threads.

Thousands of windows and one long sequence take the same path: either is cut into tasks of some sequences and some
blocks of channels.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wimfris.kernels import numba_kernels as kernels
from wimfris.kernels.layout import CPU_CHUNK, evenly_spaced, saved_states

PARTS = 16  # most tasks, and so most threads with work; fixed, because the order of the sums depends on it
GRAIN = 2**21  # fewest numbers (batch, L, D, N) for a thread: with fewer, starting it takes longer than it saves


@lru_cache(maxsize=64)
def _tasks(batch: int, width: int) -> NDArray[np.int64]:
    """Return at most `PARTS` tasks that cover all, as rows (sequence, its end, channel, its end, part, side).

    `part` numbers the groups of sequences, `side` those of channels.
    """
    parts = min(batch, PARTS)
    blocks = -(-width // kernels.BLOCK)
    sides = min(blocks, PARTS // parts)
    sequences = [batch * k // parts for k in range(parts + 1)]
    channels = [min(blocks * k // sides * kernels.BLOCK, width) for k in range(sides + 1)]
    return np.array(
        [
            (sequences[part], sequences[part + 1], channels[side], channels[side + 1], part, side)
            for part in range(parts)
            for side in range(sides)
        ],
        dtype=np.int64,
    )


def _share(kernel: Any, work: int, tasks: NDArray[np.int64], *arguments: Any) -> None:
    """Run all tasks, in contiguous shares, on torch's threads or on fewer where there are few numbers to compute.

    work: how many numbers (batch, L, D, N).
    """
    threads = min(torch.get_num_threads(), len(tasks), max(work // GRAIN, 1))
    if threads == 1:
        kernel(0, len(tasks), tasks, *arguments)
        return
    bounds = [len(tasks) * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # of this call: a lasting pool would not survive a fork
        list(pool.map(lambda k: kernel(bounds[k], bounds[k + 1], tasks, *arguments), range(threads)))


def _precision(state: torch.dtype, *tensors: Tensor) -> torch.dtype:
    """Return the dtype that the kernels read and write.

    It is bfloat16 where all tensors are and the state is float32; else the state's, to which other tensors are copied.
    """
    half = state == torch.float32 and all(x.dtype == torch.bfloat16 for x in tensors)
    return torch.bfloat16 if half else state


def _numbers(x: Tensor) -> NDArray[Any]:
    """Return the tensor for numba; bfloat16, which numba does not know, as its bits."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def _flat(x: Tensor, dtype: torch.dtype) -> tuple[NDArray[Any], int]:
    """Return x (batch, L, width) as one row of numbers, and the distance between two tokens in it."""
    x, step = evenly_spaced(x.detach().to(dtype))
    span = (x.shape[0] * x.shape[1] - 1) * step + x.shape[2]
    return _numbers(x.as_strided((span,), (1,))), step


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    save: bool, cells: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run `ops.fused_scan` forward.

    Returns the output (batch, L, D) in u's dtype, and where `save` the states that `scan_backward` starts from,
    (batch, chunks - 1, N, D) in A's. Raises NotImplementedError for `cells`.
    """
    if cells is not None:
        raise NotImplementedError("the scan on a CPU does not cut windows: cut them before, without `cells`")
    batch, length, width = u.shape
    precision = _precision(A.dtype, u, delta, z, B, C)
    out = torch.empty(batch * length * width, dtype=precision)
    starts = torch.empty(batch, saved_states(length, "cpu") if save else 0, A.shape[1], width, dtype=A.dtype)
    if out.numel():
        flats = [number for x in (u, delta, z, B, C) for number in _flat(x, precision)]
        parameters, outs = _parameters(A, D, delta_bias), (_numbers(out), starts.numpy())
        work = out.numel() * A.shape[1]
        _share(kernels.forward, work, _tasks(batch, width), length, CPU_CHUNK, *flats, *parameters, *outs)
    return out.view(batch, length, width).to(u.dtype), starts


def scan_backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    starts: Tensor, cells: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the derivatives by u, delta, A, B, C, D, z and delta_bias, each in its dtype."""
    (batch, length, width), state = u.shape, A.dtype
    tasks = _tasks(batch, width)
    parts, sides = int(tasks[-1, 4]) + 1, int(tasks[-1, 5]) + 1
    precision = _precision(state, u, delta, z, B, C, grad)
    grad_u, grad_delta, grad_z = (torch.empty(batch * length * width, dtype=precision) for _ in range(3))
    grad_B, grad_C = (torch.zeros(sides, batch * length, A.shape[1], dtype=state) for _ in range(2))
    grad_rates = torch.zeros(parts, A.shape[1], width, dtype=state)
    grad_D, grad_bias = (torch.zeros(parts, width, dtype=state) for _ in range(2))
    _share(
        kernels.backward,
        u.numel() * A.shape[1],
        tasks,
        length,
        CPU_CHUNK,
        *(number for x in (u, delta, z, B, C) for number in _flat(x, precision)),
        *_parameters(A, D, delta_bias),
        starts.numpy(),
        *_flat(grad, precision),
        *(_numbers(x) for x in (grad_u, grad_delta, grad_z, grad_B, grad_C, grad_rates, grad_D, grad_bias)),
    )
    shape = (batch, length, -1)
    return (
        grad_u.view(shape).to(u.dtype),
        grad_delta.view(shape).to(delta.dtype),
        grad_rates.sum(0).t().contiguous(),
        grad_B.sum(0).view(shape).to(B.dtype),
        grad_C.sum(0).view(shape).to(C.dtype),
        grad_D.sum(0).to(D.dtype),
        grad_z.view(shape).to(z.dtype),
        grad_bias.sum(0).to(delta_bias.dtype),
    )


def _parameters(A: Tensor, D: Tensor, delta_bias: Tensor) -> tuple[NDArray[Any], ...]:
    """Return A transposed, D and the bias, in A's precision."""
    A, D, delta_bias = A.detach(), D.detach(), delta_bias.detach()
    return A.t().contiguous().numpy(), D.to(A.dtype).contiguous().numpy(), delta_bias.to(A.dtype).contiguous().numpy()


def conv(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None) -> Tensor:
    """Run `ops.fused_conv` forward, in the weights' precision. Raises NotImplementedError for `text` and `cells`."""
    if text is not None or cells is not None:
        raise NotImplementedError("the convolution on a CPU does not cut windows: cut them before, without `cells`")
    batch, length, width = x.shape
    precision = _precision(weight.dtype, x)
    out = torch.empty(batch * length * width, dtype=precision)
    if out.numel():
        flats = _flat(x, precision)
        work, taps = out.numel() * weight.shape[-1], _taps(weight, bias)
        _share(kernels.conv_forward, work, _tasks(batch, width), length, CPU_CHUNK, *flats, *taps, _numbers(out))
    return out.view(batch, length, width).to(x.dtype)


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by x, weight and bias, each in its dtype, and one of size 0 for the absent text."""
    (batch, length, width), state = x.shape, weight.dtype
    tasks = _tasks(batch, width)
    parts = int(tasks[-1, 4]) + 1
    precision = _precision(state, x, grad)
    grad_x = torch.empty(batch * length * width, dtype=precision)
    grad_taps = torch.zeros(parts, weight.shape[-1], width, dtype=state)
    grad_bias = torch.zeros(parts, width, dtype=state)
    _share(
        kernels.conv_backward,
        x.numel() * weight.shape[-1],
        tasks,
        length,
        CPU_CHUNK,
        *_flat(x, precision),
        *_taps(weight, bias),
        *_flat(grad, precision),
        *(_numbers(x) for x in (grad_x, grad_taps, grad_bias)),
    )
    by_weight = grad_taps.sum(0).t().reshape(weight.shape).contiguous()
    return grad_x.view(x.shape).to(x.dtype), by_weight, grad_bias.sum(0).to(bias.dtype), x.new_empty(0)


def _taps(weight: Tensor, bias: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the weight (D, 1, K) as (K, D), and the bias in the weight's precision."""
    weight, bias = weight.detach(), bias.detach()
    return weight[:, 0].t().contiguous().numpy(), bias.to(weight.dtype).contiguous().numpy()
