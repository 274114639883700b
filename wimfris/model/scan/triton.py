"""The scan and the convolution on a GPU: Triton's kernels (see `triton_kernels`), launched.

Under TRITON_INTERPRET=1 they run on the CPU, slowly, which is how they are tested where there is no GPU.
"""

import os

import torch
import triton
from torch import Tensor

from wimfris.model.scan import triton_kernels as kernels
from wimfris.model.scan.ops import CHUNK, evenly_spaced

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK = 4 if INTERPRETED else 64  # channels of a tile; small under the interpreter, where every element costs
GROUPS = 128  # groups of sequences at most, each with a part of the sums over sequences


def _cut(length: int) -> tuple[int, int]:
    """Tokens of a tile and number of chunks."""
    tokens = min(triton.next_power_of_2(length), CHUNK)
    return tokens, triton.cdiv(length, tokens)


def _windows(cells: Tensor | None, u: Tensor, z: Tensor) -> tuple[Tensor, int, int]:
    """Cells, windows of an image and tokens of its map; without cells what stands for them."""
    return (u, 1, u.shape[1]) if cells is None else (cells, cells.shape[0], z.shape[1])


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    keep: bool,
    cells: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, shaped as z, in u's dtype; and the states that enter every chunk but the first. All of it in float32
    inside.
    """
    (batch, length, width), states = u.shape, A.shape[1]
    tokens, chunks = _cut(length)
    out = torch.empty(z.shape, dtype=u.dtype, device=u.device)
    starts = torch.empty(batch, chunks - 1, states, width, dtype=torch.float32, device=u.device)
    cell, windows, area = _windows(cells, u, z)
    (u, u_step), (delta, delta_step), (z, z_step), (B, B_step), (C, C_step) = map(evenly_spaced, (u, delta, z, B, C))
    A, D, delta_bias = (x.float().contiguous() for x in (A, D, delta_bias))
    blocks = triton.cdiv(width, BLOCK)
    if chunks > 1:
        ends, sums = torch.empty_like(starts), starts.new_empty(batch, chunks - 1, width)
        kernels.chunk_ends[(batch * (chunks - 1), blocks)](
            u, u, delta, z, B, C, A, delta_bias, ends, sums, cell,
            length, width, chunks, windows, area, u_step, u_step, delta_step, z_step, B_step, C_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, REVERSE=False,
        )  # fmt: skip
        _pass_on(ends, sums, A, starts, reverse=False)
    if batch:
        kernels.scan_forward[(batch * chunks, blocks)](
            u, delta, z, B, C, A, D, delta_bias, starts, out, cell,
            length, width, chunks, windows, area, u_step, delta_step, z_step, B_step, C_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, CHUNKED=chunks > 1,
        )  # fmt: skip
    return out, starts if keep else starts.new_empty(batch, 0, states, width)


def _pass_on(ends: Tensor, sums: Tensor, A: Tensor, entering: Tensor, *, reverse: bool) -> None:
    batch, between, states, width = ends.shape
    kernels.pass_on[(batch, triton.cdiv(width, BLOCK))](
        ends, sums, A, entering, width, between,
        N=states, PADDED=triton.next_power_of_2(states), BLOCK=BLOCK, REVERSE=reverse,
    )  # fmt: skip


def scan_backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    starts: Tensor,
    cells: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The derivatives by u, delta, A, B, C, D, z and delta_bias, each in its dtype, from that by the output."""
    (batch, length, width), states = u.shape, A.shape[1]
    tokens, chunks = _cut(length)
    total, blocks = batch * chunks, triton.cdiv(width, BLOCK)
    group = triton.cdiv(total, GROUPS)
    groups = triton.cdiv(total, group)
    cell, windows, area = _windows(cells, u, z)
    grad_u, grad_delta, grad_z = (torch.empty(x.shape, dtype=x.dtype, device=u.device) for x in (u, delta, z))
    grad_B, grad_C = (starts.new_empty(blocks, batch, length, states) for _ in range(2))
    grad_A = starts.new_empty(groups, states, width)
    grad_D, grad_bias = (starts.new_empty(groups, width) for _ in range(2))
    dtypes = A.dtype, B.dtype, C.dtype, D.dtype, delta_bias.dtype
    (grad, grad_step), (u, u_step), (delta, delta_step), (z, z_step), (B, B_step), (C, C_step) = map(
        evenly_spaced, (grad, u, delta, z, B, C)
    )
    A, D, delta_bias = (x.float().contiguous() for x in (A, D, delta_bias))
    ends = torch.empty_like(starts)
    if chunks > 1:
        alone, sums = torch.empty_like(starts), starts.new_empty(batch, chunks - 1, width)
        kernels.chunk_ends[(batch * (chunks - 1), blocks)](
            grad, u, delta, z, B, C, A, delta_bias, alone, sums, cell,
            length, width, chunks, windows, area, grad_step, u_step, delta_step, z_step, B_step, C_step,
            N=states, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None, REVERSE=True,
        )  # fmt: skip
        _pass_on(alone, sums, A, ends, reverse=True)
    kernels.scan_backward[(groups, blocks)](
        grad, u, delta, z, B, C, A, D, delta_bias, starts, ends, cell,
        grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_D, grad_bias,
        total, length, width, chunks, windows, area, grad_step, u_step, delta_step, z_step, B_step, C_step,
        N=states, PADDED=triton.next_power_of_2(states), T=tokens, BLOCK=BLOCK, GROUP=group,
        WINDOWED=cells is not None, CHUNKED=chunks > 1,
        num_warps=8,  # with Triton's four, each thread would spill 840 bytes (compiled for sm_90)
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).t().contiguous().to(dtypes[0]),
        grad_B.sum(0).to(dtypes[1]),
        grad_C.sum(0).to(dtypes[2]),
        grad_D.sum(0).to(dtypes[3]),
        grad_z,
        grad_bias.sum(0).to(dtypes[4]),
    )


def conv(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None) -> Tensor:
    """See `wimfris.model.scan.ops.fused_conv`."""
    (x, x_step), taps = evenly_spaced(x), weight.shape[-1]
    width = x.shape[2]
    cell, windows, area, batch, length = _sequences(x, cells)
    tokens, chunks = _cut(length)
    lead, text_step = (x, 0) if text is None else evenly_spaced(text)
    out = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    if batch:
        kernels.conv_forward[(batch * chunks, triton.cdiv(width, BLOCK))](
            x, lead, cell, weight.float().contiguous(), bias.float().contiguous(), out,
            length, width, chunks, windows, area, x_step, text_step,
            K=taps, T=tokens, BLOCK=BLOCK, WINDOWED=cells is not None,
        )  # fmt: skip
    return out


def _sequences(x: Tensor, cells: Tensor | None) -> tuple[Tensor, int, int, int, int]:
    """Cells, windows of an image and tokens of its map as in `_windows`, and how many sequences of which length."""
    if cells is None:
        return x, 1, x.shape[1], x.shape[0], x.shape[1]
    return cells, cells.shape[0], x.shape[1], x.shape[0] * cells.shape[0], cells.shape[1] + 1


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by x, weight, bias and text (of size 0 where there is none), each in its dtype."""
    (x, x_step), (grad, grad_step), taps = evenly_spaced(x), evenly_spaced(grad), weight.shape[-1]
    images, width = x.shape[0], x.shape[2]
    cell, windows, area, batch, length = _sequences(x, cells)
    tokens, chunks = _cut(length)
    lead, text_step = (x, 0) if text is None else evenly_spaced(text)
    total = batch * chunks
    group = triton.cdiv(total, GROUPS)
    groups = triton.cdiv(total, group)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_weight = torch.empty(groups, taps, width, dtype=torch.float32, device=x.device)
    grad_bias = grad_weight.new_empty(groups, width)
    grad_text = grad_weight.new_empty(0 if text is None else batch, width)
    kernels.conv_backward[(groups, triton.cdiv(width, BLOCK))](
        grad, x, lead, cell, weight.float().contiguous(), bias.float().contiguous(),
        grad_x, grad_text, grad_weight, grad_bias,
        total, length, width, chunks, windows, area, grad_step, x_step, text_step,
        K=taps, PADDED=triton.next_power_of_2(taps), T=tokens, BLOCK=BLOCK, GROUP=group, WINDOWED=cells is not None,
    )  # fmt: skip
    by_text = x.new_empty(0)
    if text is not None:
        by_text = grad_text.view(images, windows, width).sum(1, keepdim=True).to(text.dtype)
    by_weight = grad_weight.sum(0).t().reshape(weight.shape).to(weight.dtype)
    return grad_x, by_weight, grad_bias.sum(0).to(bias.dtype), by_text
