"""The causal convolution before the scan, with its SiLU, as Triton kernels, channels-last and float32 inside.

A sequence is cut into chunks of T tokens from its first token on, each a tile (see `triton_tiles`).
"""

import triton
import triton.language as tl

from wimfris.kernels.triton_tiles import (
    block_channels,
    load_row,
    load_tile,
    rows_in_map,
    select_row,
    shift_rows,
    sigmoid,
)


@triton.jit
def conv_forward(
    x, text, cells, weight, bias, out, length, width, chunks, windows, area, x_step, text_step,
    K: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr,
    CHUNKED: tl.constexpr,
):  # fmt: skip
    """Write SiLU(convolution). Grid (batch * chunks, blocks)."""
    sequence, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    t = chunk * T + tl.arange(0, T)
    inside = t < length
    d = block_channels(BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    own = _conv_tokens(
        x, text, cells, sequence, t, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED
    )  # fmt: skip
    before = tl.zeros((PADDED, BLOCK), tl.float32)
    if CHUNKED:
        last = chunk * T - PADDED + tl.arange(0, PADDED)
        before = _conv_tokens(
            x, text, cells, sequence, last, last < length, d, wide, length, windows, area, x_step, text_step, WINDOWED
        )  # fmt: skip
    total = _convolved(own, before, _taps(weight, d, wide, K, PADDED), shift, K)
    rows = sequence.to(tl.int64) * length + t
    tl.store(
        out + rows[:, None] * width + d[None, :], total * sigmoid(total), mask=inside[:, None] & wide[None, :]
    )  # fmt: skip


@triton.jit
def conv_backward(
    grad, x, text, cells, weight, bias, grad_x, grad_text, grad_weight, grad_bias,
    total, members, length, width, chunks, windows, area, grad_step_, x_step, text_step,
    K: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of `members` chunks. Grid (groups, blocks).

    Parts of sums: grad_text (batch, width), grad_weight (groups, K, width), grad_bias (groups, width).
    """
    d = block_channels(BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    group, local, taps = tl.program_id(0), tl.arange(0, T), tl.arange(0, PADDED)
    weights = _taps(weight, d, wide, K, PADDED)
    sum_weight = tl.zeros((PADDED, BLOCK), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    for member in range(members):
        index = group * members + member
        there_is = index < total
        sequence, chunk = index // chunks, index % chunks
        t = chunk * T + local
        inside = t < tl.where(there_is, length, 0)
        own = _conv_tokens(
            x, text, cells, sequence, t, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED
        )  # fmt: skip
        first = sequence.to(tl.int64) * length
        given = load_tile(grad, first + t, grad_step_, d, inside, wide)
        before = tl.zeros((PADDED, BLOCK), tl.float32)
        behind = tl.zeros((PADDED, BLOCK), tl.float32)
        if CHUNKED:
            always, after = (taps >= 0) & there_is, (chunk + 1) * T + taps
            before = _conv_tokens(
                x, text, cells, sequence, chunk * T - PADDED + taps, always, d, wide, length, windows, area, x_step,
                text_step, WINDOWED,
            )  # fmt: skip
            last = _conv_tokens(
                x, text, cells, sequence, after - PADDED, always, d, wide, length, windows, area, x_step, text_step,
                WINDOWED,
            )  # fmt: skip
            later = _conv_tokens(
                x, text, cells, sequence, after, always, d, wide, length, windows, area, x_step, text_step, WINDOWED
            )  # fmt: skip
            given_later = load_tile(grad, first + after, grad_step_, d, always & (after < length), wide)
            behind = _conv_inner(later, last, given_later, weights, shift, K)
        inner = _conv_inner(own, before, given, weights, shift, K)
        by_x = tl.zeros((T, BLOCK), tl.float32)
        for k in tl.static_range(K):  # a token sees the token K - 1 - k before it through tap k
            by_x += select_row(weights, (taps == k)[:, None])[None, :] * shift_rows(inner, behind, K - 1 - k)
            by_tap = tl.sum(inner * shift_rows(own, before, k + 1 - K), 0)
            sum_weight += tl.where((taps == k)[:, None], by_tap[None, :], 0.0)
        sum_bias += tl.sum(inner, 0)
        rows, there = rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED)
        tl.store(grad_x + rows[:, None] * width + d[None, :], by_x, mask=there[:, None] & wide[None, :])
        if WINDOWED:
            led = wide & (chunk == 0) & there_is
            tl.store(grad_text + sequence.to(tl.int64) * width + d, select_row(by_x, (local == 0)[:, None]), mask=led)
    place = (group * K + taps[:, None]) * width + d[None, :]
    tl.store(grad_weight + place, sum_weight, mask=(taps[:, None] < K) & wide[None, :])
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)


@triton.jit
def _conv_tokens(x, text, cells, sequence, t, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED):
    """Load tokens t (T,) of a sequence, 0 outside it."""
    inside = inside & (t >= 0) & (t < length)
    rows, there = rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED)
    tokens = load_tile(x, rows, x_step, d, there, wide)
    if WINDOWED:
        first = inside & (t == 0)
        some = wide & (tl.sum(first.to(tl.int32), 0) > 0)
        lead = load_row(text, (sequence // windows).to(tl.int64), text_step, d, some)
        tokens += tl.where(first[:, None], lead[None, :], 0.0)
    return tokens


@triton.jit
def _taps(weight, d, wide, K: tl.constexpr, PADDED: tl.constexpr):
    """Load a block of the weights (width, K) as (PADDED, BLOCK)."""
    taps = tl.arange(0, PADDED)[:, None]
    return tl.load(weight + d[None, :] * K + taps, mask=(taps < K) & wide[None, :], other=0.0)


@triton.jit
def _convolved(x, before, weights, shift, K: tl.constexpr):
    """Return bias + sum_k weight_k x_(t - K + 1 + k): x (T, BLOCK), and `before` (E, BLOCK) the tokens before x."""
    taps = tl.arange(0, weights.shape[0])[:, None]
    total = tl.zeros_like(x) + shift[None, :]
    for k in tl.static_range(K):
        total += select_row(weights, taps == k)[None, :] * shift_rows(x, before, k + 1 - K)
    return total


@triton.jit
def _conv_inner(x, before, given, weights, shift, K: tl.constexpr):
    """Return the derivative by the input of the SiLU, from `given`, the derivative by its output.

    x and before: see `_convolved`.
    """
    total = _convolved(x, before, weights, shift, K)
    opened = sigmoid(total)
    return given * opened * (1.0 + total * (1.0 - opened))
