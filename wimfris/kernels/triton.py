"""Launch the Triton kernels of the scan and the convolution.

Under TRITON_INTERPRET=1 they run on the CPU, slowly: so they are tested where there is no GPU.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from wimfris.kernels import triton_conv, triton_scan
from wimfris.kernels.layout import GPU_CHUNK, evenly_spaced

T = TypeVar("T")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Channels of a tile, which one warp holds: two for each thread, in the backward one, for which the registers suffice.
# Few under the interpreter, where every element costs.
BLOCK, BLOCK_BACK = (4, 4) if INTERPRETED else (64, 32)
CONV_CHUNK = 32  # tokens of a tile of the convolution
GROUPS = 128  # most groups of chunks; each group has its own part of the sums over sequences


def on_device(function: Callable[..., T]) -> Callable[..., T]:
    """Run a launcher on the device of its first tensor: Triton launches on the current one, whatever the tensors'."""

    @wraps(function)
    def run(first: Tensor, *arguments: Any, **options: Any) -> T:
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            return function(first, *arguments, **options)

    return run


def scan_chunks(length: int) -> tuple[int, int]:
    """Return the tokens of a tile of the scan and the number of chunks, without the lead."""
    tokens = min(triton.next_power_of_2(max(length - 1, 1)), GPU_CHUNK)
    return tokens, max(triton.cdiv(length - 1, tokens), 1)


def rounds(tokens: int) -> int:
    """Return in how many rounds a tile's rows share the exchanges of `triton_scan._sums`."""
    return min(tokens, BLOCK_BACK // 2).bit_length() - 1


def _tiles(x: Tensor, tokens: int, chunks: int) -> tuple[Tensor, Tensor]:
    """Return B or C (batch, L, N) as the kernels read it: (batch, chunks, N, tokens), and the leads (batch, N)."""
    rest = F.pad(x[:, 1:].float(), (0, 0, 0, tokens * chunks - x.shape[1] + 1))
    return rest.unflatten(1, (chunks, tokens)).mT.contiguous(), x[:, 0].float().contiguous()


def _untiled(tiles: Tensor, leads: Tensor, length: int) -> Tensor:
    """Add parts (blocks, batch, chunks, N, tokens) and their leads (blocks, batch, N) to (batch, length, N)."""
    rest = tiles.sum(0).mT.flatten(1, 2)[:, : length - 1]
    return torch.cat([leads.sum(0)[:, None], rest], dim=1)


def _windows(cells: Tensor | None, u: Tensor, z: Tensor) -> tuple[Tensor, int, int]:
    """Return cells, the windows of an image and the tokens of its map; without cells, values that stand for them."""
    if cells is None:
        return u, 1, u.shape[1]
    if cells.device != u.device:
        raise ValueError(f"cells must be on the device of the tokens ({u.device}), got {cells.device}")
    return cells, cells.shape[0], z.shape[1]


@on_device
def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    save: bool, cells: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run `ops.fused_scan` forward, in float32 inside.

    Returns the output, with z's shape and u's dtype, and where `save` the state that enters every chunk but the first,
    (batch, chunks - 1, N, D).
    """
    (batch, length, width), states = u.shape, A.shape[1]
    tokens, chunks = scan_chunks(length)
    out = torch.empty(z.shape, dtype=u.dtype, device=u.device)
    starts = torch.empty(batch, chunks - 1, states, width, dtype=torch.float32, device=u.device)
    cell, windows, area = _windows(cells, u, z)
    (u, u_step), (delta, delta_step), (z, z_step) = map(evenly_spaced, (u, delta, z))
    (B, B_lead), (C, C_lead) = (_tiles(x, tokens, chunks) for x in (B, C))
    A, D, delta_bias = (x.float().contiguous() for x in (A, D, delta_bias))
    blocks = triton.cdiv(width, BLOCK)
    if batch and chunks > 1:
        sums = starts.new_empty(batch, chunks - 1, width)
        triton_scan.chunk_ends[(batch * (chunks - 1), blocks)](
            u, u, delta, z, B, C, B_lead, A, delta_bias, starts, sums, cell,
            length, width, chunks, windows, area, u_step, u_step, delta_step, z_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, REVERSE=False, num_warps=1,
        )  # fmt: skip
        _pass_on(starts, sums, A, reverse=False)
    if batch:
        triton_scan.scan_forward[(batch * chunks, blocks)](
            u, delta, z, B, C, B_lead, C_lead, A, D, delta_bias, starts, out, cell,
            length, width, chunks, windows, area, u_step, delta_step, z_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, CHUNKED=chunks > 1, num_warps=1,
        )  # fmt: skip
    return out, starts if save else starts.new_empty(batch, 0, states, width)


def _pass_on(ends: Tensor, sums: Tensor, A: Tensor, *, reverse: bool) -> None:
    """Replace what leaves each chunk by what enters the next, in place; see `triton_scan.pass_on`."""
    batch, between, states, width = ends.shape
    triton_scan.pass_on[(batch, triton.cdiv(width, BLOCK), states)](
        ends, sums, A, width, between, N=states, BLOCK=BLOCK, REVERSE=reverse, num_warps=1
    )


@on_device
def scan_backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    starts: Tensor, cells: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the derivatives by u, delta, A, B, C, D, z and delta_bias, each in its dtype."""
    (batch, length, width), states = u.shape, A.shape[1]
    tokens, chunks = scan_chunks(length)
    total, blocks = batch * chunks, triton.cdiv(width, BLOCK_BACK)
    group = triton.cdiv(total, GROUPS)
    groups = triton.cdiv(total, group)
    cell, windows, area = _windows(cells, u, z)
    grad_u, grad_delta, grad_z = (torch.empty(x.shape, dtype=x.dtype, device=u.device) for x in (u, delta, z))
    grad_BC = starts.new_empty(2, blocks, batch, chunks, states, tokens)
    grad_B_lead, grad_C_lead = starts.new_empty(blocks, batch, states), starts.new_zeros(blocks, batch, states)
    grad_A = starts.new_empty(groups, states, width)
    grad_D, grad_bias = (starts.new_empty(groups, width) for _ in range(2))
    dtypes = A.dtype, B.dtype, C.dtype, D.dtype, delta_bias.dtype
    (grad, grad_step), (u, u_step), (delta, delta_step), (z, z_step) = map(evenly_spaced, (grad, u, delta, z))
    (B, B_lead), (C, C_lead) = (_tiles(x, tokens, chunks) for x in (B, C))
    A, D, delta_bias = (x.float().contiguous() for x in (A, D, delta_bias))
    ends = torch.empty_like(starts)
    if chunks > 1:
        sums = starts.new_empty(batch, chunks - 1, width)
        triton_scan.chunk_ends[(batch * (chunks - 1), triton.cdiv(width, BLOCK))](
            grad, u, delta, z, B, C, B_lead, A, delta_bias, ends, sums, cell,
            length, width, chunks, windows, area, grad_step, u_step, delta_step, z_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, REVERSE=True, num_warps=1,
        )  # fmt: skip
        _pass_on(ends, sums, A, reverse=True)
    triton_scan.scan_backward[(groups, blocks)](
        grad, u, delta, z, B, C, B_lead, C_lead, A, D, delta_bias, starts, ends, cell,
        grad_u, grad_delta, grad_z, grad_BC, grad_B_lead, grad_C_lead, grad_A, grad_D, grad_bias,
        total, group, length, width, chunks, windows, area, grad_step, u_step, delta_step, z_step,
        N=states, T=tokens, BLOCK=BLOCK_BACK, ROUNDS=rounds(tokens),
        WINDOWED=cells is not None, CHUNKED=chunks > 1, num_warps=1,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).t().contiguous().to(dtypes[0]),
        _untiled(grad_BC[0], grad_B_lead, length).to(dtypes[1]),
        _untiled(grad_BC[1], grad_C_lead, length).to(dtypes[2]),
        grad_D.sum(0).to(dtypes[3]),
        grad_z,
        grad_bias.sum(0).to(dtypes[4]),
    )


def conv_chunks(length: int) -> tuple[int, int]:
    """Return the tokens of a tile of the convolution, which has no lead, and the number of chunks."""
    tokens = min(triton.next_power_of_2(length), CONV_CHUNK)
    return tokens, triton.cdiv(length, tokens)


@on_device
def conv(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None) -> Tensor:
    """Run `ops.fused_conv` forward, in float32 inside."""
    (x, x_step), taps = evenly_spaced(x), weight.shape[-1]
    width = x.shape[2]
    cell, windows, area, batch, length = _sequences(x, cells)
    tokens, chunks = conv_chunks(length)
    lead, text_step = (x, 0) if text is None else evenly_spaced(text)
    out = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    if batch:
        triton_conv.conv_forward[(batch * chunks, triton.cdiv(width, BLOCK))](
            x, lead, cell, weight.float().contiguous(), bias.float().contiguous(), out,
            length, width, chunks, windows, area, x_step, text_step,
            K=taps, PADDED=triton.next_power_of_2(taps), T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None,
            CHUNKED=chunks > 1, num_warps=1,
        )  # fmt: skip
    return out


def _sequences(x: Tensor, cells: Tensor | None) -> tuple[Tensor, int, int, int, int]:
    """Return cells, windows of an image and tokens of its map as `_windows` does, the sequences' number and length."""
    if cells is None:
        return x, 1, x.shape[1], x.shape[0], x.shape[1]
    if cells.device != x.device:
        raise ValueError(f"cells must be on the device of the tokens ({x.device}), got {cells.device}")
    return cells, cells.shape[0], x.shape[1], x.shape[0] * cells.shape[0], cells.shape[1] + 1


@on_device
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by x, weight, bias and text (of size 0 where there is none), each in its dtype."""
    (x, x_step), (grad, grad_step), taps = evenly_spaced(x), evenly_spaced(grad), weight.shape[-1]
    images, width = x.shape[0], x.shape[2]
    cell, windows, area, batch, length = _sequences(x, cells)
    tokens, chunks = conv_chunks(length)
    lead, text_step = (x, 0) if text is None else evenly_spaced(text)
    total = batch * chunks
    group = triton.cdiv(total, GROUPS)
    groups = triton.cdiv(total, group)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_weight = torch.empty(groups, taps, width, dtype=torch.float32, device=x.device)
    grad_bias = grad_weight.new_empty(groups, width)
    grad_text = grad_weight.new_empty(0 if text is None else batch, width)
    triton_conv.conv_backward[(groups, triton.cdiv(width, BLOCK_BACK))](
        grad, x, lead, cell, weight.float().contiguous(), bias.float().contiguous(),
        grad_x, grad_text, grad_weight, grad_bias,
        total, group, length, width, chunks, windows, area, grad_step, x_step, text_step,
        K=taps, PADDED=triton.next_power_of_2(taps), T=tokens, BLOCK=BLOCK_BACK,
        WINDOWED=cells is not None, CHUNKED=chunks > 1, num_warps=1,
    )  # fmt: skip
    by_text = x.new_empty(0)
    if text is not None:
        by_text = grad_text.view(images, windows, width).sum(1, keepdim=True).to(text.dtype)
    by_weight = grad_weight.sum(0).t().reshape(weight.shape).to(weight.dtype)
    return grad_x, by_weight, grad_bias.sum(0).to(bias.dtype), by_text
