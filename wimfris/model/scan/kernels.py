"""The selective scan and the causal convolution before it for a CPU, compiled by numba: forward, and a backward that
recomputes the states.

Nothing of size (batch, L, D, N) exists. A task is some sequences and some blocks of `BLOCK` channels; it walks over the
tokens with the state of one block, (N, BLOCK), in the fastest cache, and channels innermost, where the vector units
are. The forward leaves the state at the beginning of every chunk of tokens but the first; the backward starts from
there, recomputes the chunk's states and walks back over them. A chunk's scratch is 2 chunk N BLOCK numbers a thread.

Inputs that are (batch, L, width) come flat, with the distance `*_step` of two tokens: a half of a projection need not
be copied. Which task does what depends on shapes alone and every sum has a fixed order, so that the result does not
depend on the number of threads, bit for bit.

A dtype of float32 or float64 is that of the sums and states too. bfloat16, which numba does not know, comes and goes
as its bits in int16; a row at a time is widened to float32 (`read`) or rounded (`settle`), so that no copy of a tensor
is made.

numba calls the C library once an element; here float32 has polynomials instead of exp and log, which go into vector
registers (relative error below 3e-7). float64 takes the C library's. All is in one file, because numba's cache looks at
no other for changes.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import intrinsic, overload

BLOCK = 128  # channels
# fused multiply-adds, but no reordering, which would undo the rounding below; a division by zero raises nothing: a loop
# that can raise is not vectorised
FAST: dict[str, Any] = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
LOWEST, HIGHEST = np.float32(-87.0), np.float32(88.0)  # where exp is a normal float32; beyond, the value there is taken
PER_LOG2 = np.float32(math.log2(math.e))
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # log 2 in two parts (Cephes, expf)
ROUNDER = np.float32(1.5 * 2**23)  # adding and taking it away rounds to the nearest whole number
ONE, TWO, ZERO = np.float32(1), np.float32(2), np.float32(0)


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> tuple[Any, Callable[..., Any]]:
    """2^k in float32 of a whole k in -126 .. 127, written into the exponent's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@njit(**FAST)
def _exp32(x: Any) -> Any:
    """2^k exp(r) with k whole and |r| <= log(2) / 2, exp(r) by Cephes' polynomial. NaN stays NaN."""
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
    """log(1 + w) of w in [0, 1]: 2 atanh(s) with s = w / (2 + w) <= 1/3, by its series."""
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


class _Apart(CompilerBase):
    """Compiles with the promise that no two arrays of the arguments overlap, without which LLVM does not vectorise a
    loop over many arrays. Without the promise the result is the same.
    """

    def define_pipelines(self) -> list[Any]:
        with contextlib.suppress(AttributeError):
            self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


@intrinsic
def _float_of(typing_context: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """The float32 that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of(typing_context: Any, x: Any) -> tuple[Any, Callable[..., Any]]:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _widen(bits: Any, wide: Any) -> None:
    for d in range(len(bits)):
        wide[d] = _float_of(np.int32(np.int32(bits[d]) << 16))  # type: ignore[call-arg]


@njit(**FAST)
def _bits(x: Any) -> Any:
    return _bits_of(x)  # type: ignore[call-arg]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _round(wide: Any, bits: Any) -> None:
    """To the nearest, of two the even one."""
    for d in range(len(bits)):
        whole = _bits(wide[d])
        near = np.int16((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16)
        bits[d] = near if wide[d] == wide[d] else np.int16(0x7FC0)


def read(row: Any, wide: Any) -> Any:
    """The numbers of a row: the row itself, or widened into the front of `wide`."""


def target(row: Any, wide: Any) -> Any:
    """Where to write the numbers of a row: the row itself, or the front of `wide`, to be settled."""


def settle(numbers: Any, row: Any) -> None:
    """What was written to a row's `target` becomes the row."""


@overload(read, jit_options=FAST)  # type: ignore[arg-type]
def _read_of(row: Any, wide: Any) -> Callable[[Any, Any], Any]:
    def whole(row: Any, wide: Any) -> Any:
        return row

    def half(row: Any, wide: Any) -> Any:
        _widen(row, wide)
        return wide[: len(row)]

    return half if row.dtype == types.int16 else whole


@overload(target, jit_options=FAST)  # type: ignore[arg-type]
def _target_of(row: Any, wide: Any) -> Callable[[Any, Any], Any]:
    def whole(row: Any, wide: Any) -> Any:
        return row

    def half(row: Any, wide: Any) -> Any:
        return wide[: len(row)]

    return half if row.dtype == types.int16 else whole


@overload(settle, jit_options=FAST)  # type: ignore[arg-type]
def _settle_of(numbers: Any, row: Any) -> Callable[[Any, Any], Any]:
    def whole(numbers: Any, row: Any) -> None:
        return

    def half(numbers: Any, row: Any) -> None:
        _round(numbers, row)

    return half if row.dtype == types.int16 else whole


# --- the scan ---------------------------------------------------------------------------------------------------------


@njit(fastmath={"contract", "nsz", "reassoc"}, error_model="numpy", nogil=True)
def _dot(a: Any, b: Any, start: Any) -> Any:
    """start + a b, in the order that vector units add."""
    total = start
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _begin(u: Any, delta: Any, bias: Any, step: Any, drive: Any) -> None:
    """A token's step delta and drive delta u: all (channels,)."""
    for d in range(len(step)):
        step[d] = softplus(delta[d] + bias[d])
        drive[d] = step[d] * u[d]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _advance(state: Any, y: Any, step: Any, drive: Any, rates: Any, B: Any, C: Any) -> None:
    """One token: h = exp(delta A) h + delta u B in place, y = C h. state, rates (N, channels); y, step, drive
    (channels,); B, C (N,).
    """
    for d in range(len(y)):
        y[d] = 0
    for n in range(len(state)):
        b, c = B[n], C[n]
        for d in range(len(y)):
            h = exp(step[d] * rates[n, d]) * state[n, d] + drive[d] * b
            state[n, d] = h
            y[d] += c * h


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _advance_kept(
    before: Any, after: Any, decay: Any, y: Any, step: Any, drive: Any, rates: Any, B: Any, C: Any
) -> None:
    """`_advance` from one state into another, with the decay kept."""
    for d in range(len(y)):
        y[d] = 0
    for n in range(len(before)):
        b, c = B[n], C[n]
        for d in range(len(y)):
            a = exp(step[d] * rates[n, d])
            decay[n, d] = a
            h = a * before[n, d] + drive[d] * b
            after[n, d] = h
            y[d] += c * h


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _finish(y: Any, u: Any, z: Any, skip: Any, out: Any) -> None:
    """out = (y + D u) SiLU(z), all (channels,)."""
    for d in range(len(out)):
        out[d] = (y[d] + skip[d] * u[d]) * z[d] * sigmoid(z[d])


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _finish_back(
    grad: Any, y: Any, u: Any, z: Any, skip: Any, grad_y: Any, grad_z: Any, grad_u: Any, grad_skip: Any
) -> None:
    """The derivative of `_finish`: grad_y, grad_z and grad_u written, grad_skip added to."""
    for d in range(len(grad)):
        gate = sigmoid(z[d])
        grad_z[d] = grad[d] * (y[d] + skip[d] * u[d]) * gate * (ONE + z[d] * (ONE - gate))
        through = grad[d] * z[d] * gate
        grad_y[d] = through
        grad_u[d] = through * skip[d]
        grad_skip[d] += through * u[d]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _retreat(
    adjoint: Any,
    before: Any,
    decay: Any,
    rates: Any,
    step: Any,
    grad_y: Any,
    C: Any,
    B: Any,
    grad_rates: Any,
    grad_step: Any,
    grad_drive: Any,
    own: Any,
) -> None:
    """One token backwards: own = dy C + adjoint is the derivative by its state, adjoint becomes that by the state
    before, times its decay. (N, channels), (channels,) and (N,) as in `_advance`.
    """
    for d in range(len(step)):
        grad_step[d] = 0
        grad_drive[d] = 0
    for n in range(len(adjoint)):
        b, c = B[n], C[n]
        for d in range(len(step)):
            g = grad_y[d] * c + adjoint[n, d]
            own[n, d] = g
            grad_drive[d] += b * g
            g *= decay[n, d]
            adjoint[n, d] = g
            g *= before[n, d]  # the derivative by delta A
            grad_rates[n, d] += g * step[d]
            grad_step[d] += g * rates[n, d]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _begin_back(
    u: Any,
    delta: Any,
    bias: Any,
    step: Any,
    grad_step: Any,
    grad_drive: Any,
    grad_u: Any,
    grad_delta: Any,
    grad_bias: Any,
) -> None:
    """The derivative of `_begin`: grad_delta written, grad_u and grad_bias added to."""
    for d in range(len(step)):
        grad_u[d] += grad_drive[d] * step[d]
        g = (grad_step[d] + grad_drive[d] * u[d]) * sigmoid(delta[d] + bias[d])
        grad_delta[d] = g
        grad_bias[d] += g


@njit(**FAST, nogil=True, cache=True)
def forward(
    first: int,
    last: int,
    tasks: Any,
    length: int,
    chunk: int,
    u: Any,
    u_step: int,
    delta: Any,
    delta_step: int,
    z: Any,
    z_step: int,
    B: Any,
    B_step: int,
    C: Any,
    C_step: int,
    rates: Any,
    skip: Any,
    bias: Any,
    out: Any,
    starts: Any,
) -> None:
    """Tasks first .. last - 1, each a row (sequence, its end, channel, its end) of `tasks`.

    rates (N, D) is A transposed, out (batch * L, D); starts (batch, chunks - 1, N, D), or of size 0 to keep none.
    """
    states = len(rates)
    y, step, drive = np.empty(BLOCK, rates.dtype), np.empty(BLOCK, rates.dtype), np.empty(BLOCK, rates.dtype)
    wide = np.empty((6, max(BLOCK, states)), rates.dtype)
    for task in range(first, last):
        for low in range(tasks[task, 2], tasks[task, 3], BLOCK):
            high = min(low + BLOCK, tasks[task, 3])
            width = high - low
            block = rates[:, low:high].copy()
            state = np.empty((states, width), rates.dtype)
            for sequence in range(tasks[task, 0], tasks[task, 1]):
                state[:] = 0
                for t in range(length):
                    row = sequence * length + t
                    if starts.size and t and t % chunk == 0:
                        starts[sequence, t // chunk - 1, :, low:high] = state
                    u_row = read(u[row * u_step + low : row * u_step + high], wide[0])
                    delta_row = read(delta[row * delta_step + low : row * delta_step + high], wide[1])
                    z_row = read(z[row * z_step + low : row * z_step + high], wide[2])
                    B_row = read(B[row * B_step : row * B_step + states], wide[3])
                    C_row = read(C[row * C_step : row * C_step + states], wide[4])
                    _begin(u_row, delta_row, bias[low:high], step[:width], drive[:width])
                    _advance(state, y[:width], step[:width], drive[:width], block, B_row, C_row)
                    out_row = out[row, low:high]
                    final = target(out_row, wide[5])
                    _finish(y[:width], u_row, z_row, skip[low:high], final)
                    settle(final, out_row)


@njit(**FAST, nogil=True, cache=True)
def backward(
    first: int,
    last: int,
    tasks: Any,
    length: int,
    chunk: int,
    u: Any,
    u_step: int,
    delta: Any,
    delta_step: int,
    z: Any,
    z_step: int,
    B: Any,
    B_step: int,
    C: Any,
    C_step: int,
    rates: Any,
    skip: Any,
    bias: Any,
    starts: Any,
    grad: Any,
    grad_step: int,
    grad_u: Any,
    grad_delta: Any,
    grad_z: Any,
    grad_B: Any,
    grad_C: Any,
    grad_rates: Any,
    grad_skip: Any,
    grad_bias: Any,
) -> None:
    """The derivatives, from that of the output, `grad`.

    grad_u, grad_delta, grad_z (batch * L, D) are written. The sums are added to, a part for every sum's terms that
    different tasks hold: grad_B, grad_C (parts of channels, batch * L, N); grad_rates (parts of sequences, N, D),
    grad_skip, grad_bias (parts of sequences, D). Columns 4 and 5 of `tasks` say which of these parts are a task's.
    """
    states, longest = len(rates), min(length, chunk)
    wide = np.empty((9, max(BLOCK, states)), rates.dtype)
    for task in range(first, last):
        part, side = tasks[task, 4], tasks[task, 5]
        for low in range(tasks[task, 2], tasks[task, 3], BLOCK):
            high = min(low + BLOCK, tasks[task, 3])
            width = high - low
            block = rates[:, low:high].copy()
            kept = np.empty((longest + 1, states, width), rates.dtype)
            decay = np.empty((longest, states, width), rates.dtype)
            adjoint, own, block_grad = np.empty_like(block), np.empty_like(block), np.empty_like(block)
            y = np.empty((longest, width), rates.dtype)
            step, drive = np.empty_like(y), np.empty_like(y)
            grad_y = np.empty(width, rates.dtype)
            by_step, by_drive = np.empty_like(grad_y), np.empty_like(grad_y)
            block_grad[:] = 0
            for sequence in range(tasks[task, 0], tasks[task, 1]):
                adjoint[:] = 0
                for number in range((length - 1) // chunk, -1, -1):
                    begin, end = number * chunk, min(number * chunk + chunk, length)
                    if number:
                        kept[0] = starts[sequence, number - 1, :, low:high]
                    else:
                        kept[0] = 0
                    for t in range(end - begin):
                        row = sequence * length + begin + t
                        u_row = read(u[row * u_step + low : row * u_step + high], wide[0])
                        delta_row = read(delta[row * delta_step + low : row * delta_step + high], wide[1])
                        B_row = read(B[row * B_step : row * B_step + states], wide[3])
                        C_row = read(C[row * C_step : row * C_step + states], wide[4])
                        _begin(u_row, delta_row, bias[low:high], step[t], drive[t])
                        _advance_kept(kept[t], kept[t + 1], decay[t], y[t], step[t], drive[t], block, B_row, C_row)
                    for t in range(end - begin - 1, -1, -1):
                        row = sequence * length + begin + t
                        u_row = read(u[row * u_step + low : row * u_step + high], wide[0])
                        delta_row = read(delta[row * delta_step + low : row * delta_step + high], wide[1])
                        z_row = read(z[row * z_step + low : row * z_step + high], wide[2])
                        B_row = read(B[row * B_step : row * B_step + states], wide[3])
                        C_row = read(C[row * C_step : row * C_step + states], wide[4])
                        grad_row = read(grad[row * grad_step + low : row * grad_step + high], wide[5])
                        by_u, by_delta = grad_u[row, low:high], grad_delta[row, low:high]
                        by_z = grad_z[row, low:high]
                        to_u, to_delta, to_z = target(by_u, wide[6]), target(by_delta, wide[7]), target(by_z, wide[8])
                        _finish_back(
                            grad_row, y[t], u_row, z_row, skip[low:high], grad_y, to_z, to_u,
                            grad_skip[part, low:high],
                        )  # fmt: skip
                        _retreat(
                            adjoint, kept[t], decay[t], block, step[t], grad_y, C_row, B_row, block_grad, by_step,
                            by_drive, own,
                        )  # fmt: skip
                        for n in range(states):
                            grad_B[side, row, n] = _dot(own[n], drive[t], grad_B[side, row, n])
                            grad_C[side, row, n] = _dot(kept[t + 1, n], grad_y, grad_C[side, row, n])
                        _begin_back(
                            u_row, delta_row, bias[low:high], step[t], by_step, by_drive, to_u, to_delta,
                            grad_bias[part, low:high],
                        )  # fmt: skip
                        settle(to_u, by_u)
                        settle(to_delta, by_delta)
                        settle(to_z, by_z)
            grad_rates[part, :, low:high] += block_grad


# --- the convolution before the scan ----------------------------------------------------------------------------------


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _convolve(x: Any, start: int, step: int, unseen: int, taps: Any, bias: Any, total: Any, wide: Any) -> None:
    """A token's convolution: total = bias + sum_k taps_k x_(t - K + 1 + k). The first `unseen` taps reach behind the
    sequence; the first token that is seen stands at x's place `start`, the next one `step` further. taps (K, channels);
    bias, total, wide (channels,).
    """
    for d in range(len(total)):
        total[d] = bias[d]
    for k in range(unseen, len(taps)):
        at = start + (k - unseen) * step
        tap, seen = taps[k], read(x[at : at + len(total)], wide)
        for d in range(len(total)):
            total[d] += tap[d] * seen[d]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _activate(total: Any, out: Any) -> None:
    """out = SiLU(total), both (channels,)."""
    for d in range(len(out)):
        out[d] = total[d] * sigmoid(total[d])


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _activate_back(grad: Any, total: Any, own: Any, grad_bias: Any) -> None:
    """The derivative of `_activate` into `own`, added to grad_bias; all (channels,)."""
    for d in range(len(own)):
        gate = sigmoid(total[d])
        g = grad[d] * gate * (ONE + total[d] * (ONE - gate))
        own[d] = g
        grad_bias[d] += g


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _taps_back(x: Any, start: int, step: int, unseen: int, own: Any, grad_taps: Any, wide: Any) -> None:
    """The derivative of `_convolve` by its taps, added to grad_taps."""
    for k in range(unseen, len(grad_taps)):
        at = start + (k - unseen) * step
        by_tap, seen = grad_taps[k], read(x[at : at + len(own)], wide)
        for d in range(len(own)):
            by_tap[d] += own[d] * seen[d]


@njit(**FAST, nogil=True, pipeline_class=_Apart)
def _token_back(own: Any, t: int, after: int, taps: Any, grad_x: Any) -> None:
    """The derivative by token t, (channels,): of its own convolution and those of the `after` tokens behind it. own (K,
    channels), a token t's in row t mod K.
    """
    for d in range(len(grad_x)):
        grad_x[d] = 0
    for ahead in range(after + 1):
        tap, given = taps[len(taps) - 1 - ahead], own[(t + ahead) % len(own)]
        for d in range(len(grad_x)):
            grad_x[d] += tap[d] * given[d]


@njit(**FAST, nogil=True, cache=True)
def conv_forward(
    first: int, last: int, tasks: Any, length: int, x: Any, x_step: int, taps: Any, bias: Any, out: Any
) -> None:
    """SiLU of the convolution, for tasks as in `forward`. taps (K, D), out (batch * L, D)."""
    reach = len(taps) - 1
    total, wide = np.empty(BLOCK, taps.dtype), np.empty((2, BLOCK), taps.dtype)
    for task in range(first, last):
        for low in range(tasks[task, 2], tasks[task, 3], BLOCK):
            high = min(low + BLOCK, tasks[task, 3])
            width = high - low
            block = taps[:, low:high].copy()
            for sequence in range(tasks[task, 0], tasks[task, 1]):
                for t in range(length):
                    row, unseen = sequence * length + t, max(reach - t, 0)
                    start = (row - reach + unseen) * x_step + low
                    _convolve(x, start, x_step, unseen, block, bias[low:high], total[:width], wide[0])
                    out_row = out[row, low:high]
                    final = target(out_row, wide[1])
                    _activate(total[:width], final)
                    settle(final, out_row)


@njit(**FAST, nogil=True, cache=True)
def conv_backward(
    first: int,
    last: int,
    tasks: Any,
    length: int,
    x: Any,
    x_step: int,
    taps: Any,
    bias: Any,
    grad: Any,
    grad_step: int,
    grad_x: Any,
    grad_taps: Any,
    grad_bias: Any,
) -> None:
    """The derivatives, from that of the output, `grad`: grad_x (batch * L, D) is written, the sums grad_taps (parts of
    sequences, K, D) and grad_bias (parts of sequences, D) are added to.
    """
    reach = len(taps) - 1
    total, wide = np.empty(BLOCK, taps.dtype), np.empty((3, BLOCK), taps.dtype)
    for task in range(first, last):
        part = tasks[task, 4]
        for low in range(tasks[task, 2], tasks[task, 3], BLOCK):
            high = min(low + BLOCK, tasks[task, 3])
            width = high - low
            block = taps[:, low:high].copy()
            own, block_grad = np.empty_like(block), np.zeros_like(block)
            for sequence in range(tasks[task, 0], tasks[task, 1]):
                for t in range(length - 1, -1, -1):
                    row, unseen = sequence * length + t, max(reach - t, 0)
                    start = (row - reach + unseen) * x_step + low
                    grad_row = read(grad[row * grad_step + low : row * grad_step + high], wide[0])
                    _convolve(x, start, x_step, unseen, block, bias[low:high], total[:width], wide[1])
                    _activate_back(grad_row, total[:width], own[t % len(own)], grad_bias[part, low:high])
                    _taps_back(x, start, x_step, unseen, own[t % len(own)], block_grad, wide[1])
                    by_x = grad_x[row, low:high]
                    to_x = target(by_x, wide[2])
                    _token_back(own, t, min(reach, length - 1 - t), block, to_x)
                    settle(to_x, by_x)
            grad_taps[part, :, low:high] += block_grad
