"""The selective scan and the causal convolution before it for a CPU, compiled by numba, with their backward.

Nothing of size (batch, L, D, N) is stored. A task is some sequences and some blocks of `BLOCK` channels. For each
sequence and block it takes one chunk of tokens at a time, and in the chunk one state at a time, which walks over the
tokens. So what it touches fits the fastest cache, and the inner loops run over channels, with a fixed length, for the
vector units. The forward saves the states at the beginning of every chunk but the first. The backward starts from them,
recomputes each state and walks it back; its scratch is nine numbers for each token of a chunk and channel of a block.

Inputs (batch, L, width) come flat, with the distance `*_step` between two tokens, so that one half of a projection need
not be copied. Shapes alone decide which task does what, and every sum has a fixed order: the bits of the result do not
depend on the number of threads.

float32 and float64 are also the dtype of the sums and states. numba does not know bfloat16, so it comes and goes as its
bits in int16: they are widened where they are read (`widen`) and rounded where they are written (`narrow`), without a
copy of a tensor.

numba calls the C library once for each element. In float32, polynomials replace exp and log and so use vector registers
(relative error below 3e-7); float64 uses the C library.

All kernels are in this one file because numba's cache only notices changes of the file of the compiled function: with
shared functions in another file, an edit there would leave stale kernels.
"""

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import intrinsic, overload

BLOCK = 64  # channels
# Fused multiply-adds, but no reordering, which would undo the rounding in _exp32. A division by zero raises nothing,
# because a loop that can raise is not vectorised.
FAST: dict[str, Any] = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
NO_CACHE = (
    "numba finds no writable cache; the CPU kernels compile anew in each process (NUMBA_CACHE_DIR names a folder)"
)
LOWEST, HIGHEST = np.float32(-87.0), np.float32(88.0)  # exp is a normal float32 between them, constant beyond
PER_LOG2 = np.float32(math.log2(math.e))
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # log 2 in two parts (Cephes, expf)
ROUNDER = np.float32(1.5 * 2**23)  # adding and subtracting it rounds to the nearest integer
ONE, TWO, ZERO = np.float32(1), np.float32(2), np.float32(0)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel, with numba's cache on the disk where it finds a writable folder for it."""
    try:
        return njit(**FAST, nogil=True, cache=True)(function)
    except RuntimeError:  # an installation and a home that are read-only
        warnings.warn(NO_CACHE, RuntimeWarning, stacklevel=1)  # of one place, so that Python shows it once
        return njit(**FAST, nogil=True)(function)


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> tuple[Any, Callable[..., Any]]:
    """Return 2^k in float32 for an integer k in -126 .. 127, written into the exponent's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@njit(**FAST)
def _exp32(x: Any) -> Any:
    """e^x = 2^k exp(r) with an integer k and |r| <= log(2) / 2, exp(r) by Cephes' polynomial. NaN stays NaN."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    k = (x * PER_LOG2 + ROUNDER) - ROUNDER
    r = (x - k * LOG2_HIGH) - k * LOG2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + ONE) * _power_of_two(np.int32(k))  # type: ignore[call-arg]


@njit(**FAST)
def _log1p32(w: Any) -> Any:
    """log(1 + w) = 2 atanh(s) for w in [0, 1], s = w / (2 + w) <= 1/3, by its series."""
    s = w / (TWO + w)
    q = s * s
    p = np.float32(1 / 15)
    p = p * q + np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    return TWO * s * (p * q + ONE)


def exp(x: Any) -> Any:
    """e^x, in x's precision."""
    return np.exp(x)


def _log1p(w: Any) -> Any:
    return np.log1p(w)


@overload(exp, jit_options=FAST)  # type: ignore[arg-type]
def _exp_of(x: Any) -> Callable[[Any], Any]:
    def single(x: Any) -> Any:
        return _exp32(x)

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == types.float32 else double


@overload(_log1p, jit_options=FAST)  # type: ignore[arg-type]
def _log1p_of(w: Any) -> Callable[[Any], Any]:
    def single(w: Any) -> Any:
        return _log1p32(w)

    def double(w: Any) -> Any:
        return math.log1p(w)

    return single if w == types.float32 else double


@njit(**FAST)
def softplus(x: Any) -> Any:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    return max(x, ZERO) + _log1p(exp(-abs(x)))


@njit(**FAST)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


class _NoAlias(CompilerBase):
    """Compile with the promise that no two argument arrays overlap.

    LLVM needs it to vectorise a loop over many arrays. Without it the result is the same, only slower.
    """

    def define_pipelines(self) -> list[Any]:
        with contextlib.suppress(AttributeError):
            self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


@intrinsic
def _float_of(typing_context: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of(typing_context: Any, x: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@njit(**FAST)
def _bits(x: Any) -> Any:
    return _bits_of(x)  # type: ignore[call-arg]


def widen(stored: Any) -> Any:
    """Return an array's element as a number to compute with."""


def narrow(x: Any, array: Any) -> Any:
    """Return a number as an element of the array."""


@overload(widen, jit_options=FAST)  # type: ignore[arg-type]
def _widen_of(stored: Any) -> Callable[[Any], Any]:
    def same(stored: Any) -> Any:
        return stored

    def half(stored: Any) -> Any:
        return _float_of(np.int32(np.int32(stored) << 16))  # type: ignore[call-arg]

    return half if stored == types.int16 else same


@overload(narrow, jit_options=FAST)  # type: ignore[arg-type]
def _narrow_of(x: Any, array: Any) -> Callable[[Any, Any], Any]:
    def same(x: Any, array: Any) -> Any:
        return x

    def half(x: Any, array: Any) -> Any:  # to the nearest, ties to even
        whole = _bits(x)
        near = np.int16((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16)
        return near if x == x else np.int16(0x7FC0)

    return half if array.dtype == types.int16 else same


# --- the scan ---------------------------------------------------------------------------------------------------------
#
# Each function takes `tokens` tokens of a chunk and a block of channels. Tiles are (tokens, BLOCK); where a block has
# only `width` channels, the rest of a tile is 0. In a flat array, token t's numbers begin at `at + t * step`. They are
# taken as a row, because numba does not vectorise reads at indices that may be negative. B and C are (tokens, N);
# what has no token is (BLOCK,), or (width,) where it is an argument of the scan.


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _read(tokens: int, states: int, numbers: Any, at: int, step: int, tile: Any) -> None:
    for t in range(tokens):
        row = numbers[at + t * step :]
        for n in range(states):
            tile[t, n] = widen(row[n])


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _begin(
    tokens: int, width: int, u: Any, u_at: int, u_step: int, delta: Any, delta_at: int, delta_step: int,
    bias: Any, step: Any, drive: Any, y: Any,
) -> None:  # fmt: skip
    """Compute the steps delta and the drives delta u, and set y to 0."""
    for t in range(tokens):
        u_row, delta_row = u[u_at + t * u_step :], delta[delta_at + t * delta_step :]
        for d in range(width):
            step[t, d] = softplus(widen(delta_row[d]) + bias[d])
            drive[t, d] = step[t, d] * widen(u_row[d])
        for d in range(width, BLOCK):
            step[t, d] = 0
            drive[t, d] = 0
        for d in range(BLOCK):
            y[t, d] = 0


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _advance(tokens: int, n: int, state: Any, y: Any, step: Any, drive: Any, rates: Any, B: Any, C: Any) -> None:
    """Advance state n in place, h = exp(delta A) h + delta u B, and add C h to y."""
    for t in range(tokens):
        b, c = B[t, n], C[t, n]
        for d in range(BLOCK):
            h = exp(step[t, d] * rates[d]) * state[d] + drive[t, d] * b
            state[d] = h
            y[t, d] += c * h


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _finish(
    tokens: int, width: int, y: Any, u: Any, u_at: int, u_step: int, z: Any, z_at: int, z_step: int,
    skip: Any, out: Any, out_at: int, out_step: int,
) -> None:  # fmt: skip
    """Write out = (y + D u) SiLU(z)."""
    for t in range(tokens):
        u_row, z_row, out_row = u[u_at + t * u_step :], z[z_at + t * z_step :], out[out_at + t * out_step :]
        for d in range(width):
            gate = widen(z_row[d])
            out_row[d] = narrow((y[t, d] + skip[d] * widen(u_row[d])) * gate * sigmoid(gate), out)


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _finish_back(
    tokens: int, width: int, grad: Any, grad_at: int, grad_step: int, z: Any, z_at: int, z_step: int,
    grad_y: Any, by_step: Any, by_drive: Any,
) -> None:  # fmt: skip
    """Compute the derivative of `_finish` by y, and set by_step and by_drive to 0."""
    for t in range(tokens):
        grad_row, z_row = grad[grad_at + t * grad_step :], z[z_at + t * z_step :]
        for d in range(width):
            gate = widen(z_row[d])
            grad_y[t, d] = widen(grad_row[d]) * gate * sigmoid(gate)
        for d in range(width, BLOCK):
            grad_y[t, d] = 0
        for d in range(BLOCK):
            by_step[t, d] = 0
            by_drive[t, d] = 0


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _replay(tokens: int, n: int, h: Any, decay: Any, y: Any, step: Any, drive: Any, rates: Any, B: Any, C: Any) -> None:
    """Run `_advance` and store what the backward needs: h[t], the state before token t, from h[0] on, and decay[t]."""
    for t in range(tokens):
        b, c = B[t, n], C[t, n]
        for d in range(BLOCK):
            a = exp(step[t, d] * rates[d])
            decay[t, d] = a
            after = a * h[t, d] + drive[t, d] * b
            h[t + 1, d] = after
            y[t, d] += c * after


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _retreat(
    tokens: int, n: int, adjoint: Any, h: Any, decay: Any, rates: Any, step: Any, grad_y: Any, B: Any, C: Any,
    by_rates: Any, by_step: Any, by_drive: Any, own: Any,
) -> None:  # fmt: skip
    """Walk state n back: own[t] = dy[t] C[t] + adjoint is the derivative by h[t + 1], and adjoint becomes that by h[t].

    Adds to by_rates, by_step and by_drive.
    """
    for t in range(tokens - 1, -1, -1):
        b, c = B[t, n], C[t, n]
        for d in range(BLOCK):
            g = grad_y[t, d] * c + adjoint[d]
            own[t, d] = g
            by_drive[t, d] += b * g
            g *= decay[t, d]
            adjoint[d] = g
            g *= h[t, d]  # the derivative by delta A
            by_rates[d] += g * step[t, d]
            by_step[t, d] += g * rates[d]


@njit(fastmath={"contract", "nsz", "reassoc"}, error_model="numpy", nogil=True)
def _add_products(tokens: int, a: Any, b: Any, sums: Any) -> None:
    """Add a[t] b[t] over the channels to sums[t], in the order in which vector units add."""
    for t in range(tokens):
        total = sums[t]
        for d in range(BLOCK):
            total += a[t, d] * b[t, d]
        sums[t] = total


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _begin_back(
    tokens: int, width: int, grad: Any, grad_at: int, grad_step: int, u: Any, u_at: int, u_step: int,
    delta: Any, delta_at: int, delta_step: int, z: Any, z_at: int, z_step: int, skip: Any, bias: Any,
    y: Any, grad_y: Any, step: Any, by_step: Any, by_drive: Any,
    by_u: Any, by_delta: Any, by_z: Any, by_at: int, channels: int, by_skip: Any, by_bias: Any,
) -> None:  # fmt: skip
    """Write the derivatives by u, delta and z, and add to by_skip and by_bias."""
    for t in range(tokens - 1, -1, -1):
        grad_row, u_row = grad[grad_at + t * grad_step :], u[u_at + t * u_step :]
        delta_row, z_row = delta[delta_at + t * delta_step :], z[z_at + t * z_step :]
        row = by_at + t * channels
        u_out, delta_out, z_out = by_u[row:], by_delta[row:], by_z[row:]
        for d in range(width):
            token, gate = widen(u_row[d]), widen(z_row[d])
            opened = sigmoid(gate)
            given = widen(grad_row[d]) * (y[t, d] + skip[d] * token)
            z_out[d] = narrow(given * opened * (ONE + gate * (ONE - opened)), by_z)
            by_skip[d] += grad_y[t, d] * token
        for d in range(width):
            token = widen(u_row[d])
            g = (by_step[t, d] + by_drive[t, d] * token) * sigmoid(widen(delta_row[d]) + bias[d])
            u_out[d] = narrow(grad_y[t, d] * skip[d] + by_drive[t, d] * step[t, d], by_u)
            delta_out[d] = narrow(g, by_delta)
            by_bias[d] += g


@njit(**FAST, nogil=True)
def _blocks(first: int, last: int, rates: Any) -> Any:
    """Return channels first .. last - 1 of rates (N, D) as (blocks, N, BLOCK); the last block ends in zeros."""
    blocks = np.zeros(((last - first + BLOCK - 1) // BLOCK, len(rates), BLOCK), rates.dtype)
    for d in range(first, last):
        blocks[(d - first) // BLOCK, :, (d - first) % BLOCK] = rates[:, d]
    return blocks


@_compiled
def forward(
    first: int, last: int, tasks: Any, length: int, chunk: int, u: Any, u_step: int, delta: Any, delta_step: int,
    z: Any, z_step: int, B: Any, B_step: int, C: Any, C_step: int, rates: Any, skip: Any, bias: Any,
    out: Any, starts: Any,
) -> None:  # fmt: skip
    """Run tasks first .. last - 1, each a row (sequence, its end, channel, its end) of `tasks`.

    rates (N, D) is A transposed. Writes out (batch * L * D,) and the saved states, starts (batch, chunks - 1, N, D);
    starts of size 0 saves none.
    """
    states, channels, longest = len(rates), rates.shape[1], min(length, chunk)
    y = np.empty((longest, BLOCK), rates.dtype)
    step, drive = np.empty_like(y), np.empty_like(y)
    B_tile, C_tile = np.empty((longest, states), rates.dtype), np.empty((longest, states), rates.dtype)
    state = np.empty((states, BLOCK), rates.dtype)
    for task in range(first, last):
        begins, ends = tasks[task, 2], tasks[task, 3]
        blocks = _blocks(begins, ends, rates)
        for sequence in range(tasks[task, 0], tasks[task, 1]):
            for low in range(begins, ends, BLOCK):
                width, block = min(BLOCK, ends - low), blocks[(low - begins) // BLOCK]
                state[:] = 0
                for begin in range(0, length, chunk):
                    tokens, row = min(chunk, length - begin), sequence * length + begin
                    if starts.size and begin:
                        starts[sequence, begin // chunk - 1, :, low : low + width] = state[:, :width]
                    u_at, delta_at, z_at = row * u_step + low, row * delta_step + low, row * z_step + low
                    _read(tokens, states, B, row * B_step, B_step, B_tile)
                    _read(tokens, states, C, row * C_step, C_step, C_tile)
                    _begin(
                        tokens, width, u, u_at, u_step, delta, delta_at, delta_step, bias[low : low + width], step,
                        drive, y,
                    )  # fmt: skip
                    for n in range(states):
                        _advance(tokens, n, state[n], y, step, drive, block[n], B_tile, C_tile)
                    _finish(
                        tokens, width, y, u, u_at, u_step, z, z_at, z_step, skip[low : low + width], out,
                        row * channels + low, channels,
                    )  # fmt: skip


@_compiled
def backward(
    first: int, last: int, tasks: Any, length: int, chunk: int, u: Any, u_step: int, delta: Any, delta_step: int,
    z: Any, z_step: int, B: Any, B_step: int, C: Any, C_step: int, rates: Any, skip: Any, bias: Any,
    starts: Any, grad: Any, grad_step: int, grad_u: Any, grad_delta: Any, grad_z: Any, grad_B: Any, grad_C: Any,
    grad_rates: Any, grad_skip: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """Compute the derivatives from `grad`, the derivative by the output.

    Writes grad_u, grad_delta and grad_z (batch * L * D,). Adds to sums, which are in parts because several tasks share
    them: grad_B, grad_C (parts of channels, batch * L, N); grad_rates (parts of sequences, N, D), grad_skip, grad_bias
    (parts of sequences, D). Columns 4 and 5 of `tasks` are a task's part of sequences and of channels.
    """
    states, channels, longest = len(rates), rates.shape[1], min(length, chunk)
    h, y = np.zeros((longest + 1, BLOCK), rates.dtype), np.empty((longest, BLOCK), rates.dtype)
    step, drive, grad_y = np.empty_like(y), np.empty_like(y), np.empty_like(y)
    by_step, by_drive = np.empty_like(y), np.empty_like(y)
    decay, own = np.empty_like(y), np.empty_like(y)
    B_tile, C_tile = np.empty((longest, states), rates.dtype), np.empty((longest, states), rates.dtype)
    adjoint = np.empty((states, BLOCK), rates.dtype)
    for task in range(first, last):
        begins, ends, part, side = tasks[task, 2], tasks[task, 3], tasks[task, 4], tasks[task, 5]
        blocks = _blocks(begins, ends, rates)
        by_rates = np.zeros_like(blocks)
        for sequence in range(tasks[task, 0], tasks[task, 1]):
            for low in range(begins, ends, BLOCK):
                width, index = min(BLOCK, ends - low), (low - begins) // BLOCK
                high = low + width
                adjoint[:] = 0
                for begin in range((length - 1) // chunk * chunk, -1, -chunk):
                    tokens, row = min(chunk, length - begin), sequence * length + begin
                    u_at, delta_at, z_at = row * u_step + low, row * delta_step + low, row * z_step + low
                    grad_at = row * grad_step + low
                    _read(tokens, states, B, row * B_step, B_step, B_tile)
                    _read(tokens, states, C, row * C_step, C_step, C_tile)
                    _begin(
                        tokens, width, u, u_at, u_step, delta, delta_at, delta_step, bias[low:high], step, drive, y
                    )  # fmt: skip
                    _finish_back(
                        tokens, width, grad, grad_at, grad_step, z, z_at, z_step, grad_y, by_step, by_drive
                    )  # fmt: skip
                    for n in range(states):
                        h[0] = 0
                        if begin:
                            h[0, :width] = starts[sequence, begin // chunk - 1, n, low:high]
                        rate = blocks[index, n]
                        _replay(tokens, n, h, decay, y, step, drive, rate, B_tile, C_tile)
                        _retreat(
                            tokens, n, adjoint[n], h, decay, rate, step, grad_y, B_tile, C_tile, by_rates[index, n],
                            by_step, by_drive, own,
                        )  # fmt: skip
                        _add_products(tokens, own, drive, grad_B[side, row:, n])
                        _add_products(tokens, h[1:], grad_y, grad_C[side, row:, n])
                    _begin_back(
                        tokens, width, grad, grad_at, grad_step, u, u_at, u_step, delta, delta_at, delta_step,
                        z, z_at, z_step, skip[low:high], bias[low:high], y, grad_y, step, by_step, by_drive,
                        grad_u, grad_delta, grad_z, row * channels + low, channels, grad_skip[part, low:high],
                        grad_bias[part, low:high],
                    )  # fmt: skip
        for d in range(begins, ends):
            grad_rates[part, :, d] += by_rates[(d - begins) // BLOCK, :, (d - begins) % BLOCK]


# --- the convolution before the scan ----------------------------------------------------------------------------------
#
# Tiles are as above, but undefined beyond `width`. x has K - 1 more rows, of the tokens before the chunk; own has as
# many of the tokens after it.


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _read_led(tokens: int, width: int, begin: int, reach: int, x: Any, at: int, step: int, tile: Any) -> None:
    """Read tokens of x into a tile, after the `reach` tokens before them, or 0 where the sequence has none.

    begin: the position of the first of the tokens in its sequence.
    """
    for t in range(-reach, tokens):
        if begin + t < 0:
            for d in range(width):
                tile[reach + t, d] = 0
        else:
            row = x[at + t * step :]
            for d in range(width):
                tile[reach + t, d] = widen(row[d])


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _convolve(tokens: int, width: int, x: Any, taps: Any, bias: Any, total: Any) -> None:
    """Compute total[t] = bias + sum_k taps[k] x[t + k], where x begins K - 1 tokens before."""
    for t in range(tokens):
        for d in range(width):
            total[t, d] = bias[d]
        for k in range(len(taps)):
            for d in range(width):
                total[t, d] += taps[k, d] * x[t + k, d]


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _activate(tokens: int, width: int, total: Any, out: Any, at: int, step: int) -> None:
    """Write out = SiLU(total)."""
    for t in range(tokens):
        row = out[at + t * step :]
        for d in range(width):
            row[d] = narrow(total[t, d] * sigmoid(total[t, d]), out)


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _activate_back(tokens: int, width: int, grad: Any, at: int, step: int, total: Any, own: Any, by_bias: Any) -> None:
    """Compute the derivative of `_activate` in `own`, and add it to by_bias."""
    for t in range(tokens - 1, -1, -1):
        row = grad[at + t * step :]
        for d in range(width):
            gate = sigmoid(total[t, d])
            g = widen(row[d]) * gate * (ONE + total[t, d] * (ONE - gate))
            own[t, d] = g
            by_bias[d] += g


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _taps_back(tokens: int, width: int, x: Any, own: Any, by_taps: Any) -> None:
    """Add the derivative of `_convolve` by its taps to by_taps."""
    for t in range(tokens - 1, -1, -1):
        for k in range(len(by_taps)):
            for d in range(width):
                by_taps[k, d] += own[t, d] * x[t + k, d]


@njit(**FAST, nogil=True, pipeline_class=_NoAlias)
def _tokens_back(tokens: int, width: int, own: Any, taps: Any, total: Any, by_x: Any, at: int, step: int) -> None:
    """Write the derivative by the tokens, through their own convolution and the K - 1 after it.

    own ends K - 1 tokens after the chunk; `total` is scratch.
    """
    reach = len(taps) - 1
    for t in range(tokens):
        for d in range(width):
            total[t, d] = 0
        for ahead in range(reach + 1):
            for d in range(width):
                total[t, d] += taps[reach - ahead, d] * own[t + ahead, d]
        row = by_x[at + t * step :]
        for d in range(width):
            row[d] = narrow(total[t, d], by_x)


@_compiled
def conv_forward(
    first: int, last: int, tasks: Any, length: int, chunk: int, x: Any, x_step: int, taps: Any, bias: Any, out: Any
) -> None:
    """Write SiLU(convolution) to out (batch * L * D,), for tasks as in `forward`; taps (K, D)."""
    reach, channels, longest = len(taps) - 1, taps.shape[1], min(length, chunk)
    x_tile, total = np.empty((longest + reach, BLOCK), taps.dtype), np.empty((longest, BLOCK), taps.dtype)
    for task in range(first, last):
        begins, ends = tasks[task, 2], tasks[task, 3]
        blocks = _blocks(begins, ends, taps)
        for sequence in range(tasks[task, 0], tasks[task, 1]):
            for low in range(begins, ends, BLOCK):
                width, block = min(BLOCK, ends - low), blocks[(low - begins) // BLOCK]
                for begin in range(0, length, chunk):
                    tokens, row = min(chunk, length - begin), sequence * length + begin
                    _read_led(tokens, width, begin, reach, x, row * x_step + low, x_step, x_tile)
                    _convolve(tokens, width, x_tile, block, bias[low : low + width], total)
                    _activate(tokens, width, total, out, row * channels + low, channels)


@_compiled
def conv_backward(
    first: int, last: int, tasks: Any, length: int, chunk: int, x: Any, x_step: int, taps: Any, bias: Any,
    grad: Any, grad_step: int, grad_x: Any, grad_taps: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """Compute the derivatives from `grad`, the derivative by the output.

    Writes grad_x (batch * L * D,), and adds to grad_taps (parts of sequences, K, D) and grad_bias (parts of sequences,
    D).
    """
    reach, channels, longest = len(taps) - 1, taps.shape[1], min(length, chunk)
    x_tile, total = np.empty((longest + reach, BLOCK), taps.dtype), np.empty((longest, BLOCK), taps.dtype)
    own = np.empty_like(x_tile)
    for task in range(first, last):
        begins, ends, part = tasks[task, 2], tasks[task, 3], tasks[task, 4]
        blocks = _blocks(begins, ends, taps)
        by_taps = np.zeros_like(blocks)
        for sequence in range(tasks[task, 0], tasks[task, 1]):
            for low in range(begins, ends, BLOCK):
                width, index = min(BLOCK, ends - low), (low - begins) // BLOCK
                high = low + width
                for begin in range((length - 1) // chunk * chunk, -1, -chunk):
                    tokens, row = min(chunk, length - begin), sequence * length + begin
                    if tokens < length - begin:  # the chunk after this one was computed before it
                        own[tokens : tokens + reach] = own[:reach]
                    else:
                        own[tokens : tokens + reach] = 0
                    _read_led(tokens, width, begin, reach, x, row * x_step + low, x_step, x_tile)
                    _convolve(tokens, width, x_tile, blocks[index], bias[low:high], total)
                    grad_at = row * grad_step + low
                    _activate_back(tokens, width, grad, grad_at, grad_step, total, own, grad_bias[part, low:high])
                    _taps_back(tokens, width, x_tile, own, by_taps[index])
                    _tokens_back(
                        tokens, width, own, blocks[index], total, grad_x, row * channels + low, channels
                    )  # fmt: skip
        for d in range(begins, ends):
            grad_taps[part, :, d] += by_taps[(d - begins) // BLOCK, :, (d - begins) % BLOCK]
