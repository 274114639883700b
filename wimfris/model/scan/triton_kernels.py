"""The selective scan and the causal convolution before it as Triton kernels, channels-last, float32 inside.

A program holds a tile of `T` tokens and `BLOCK` channels. A short sequence is one tile. A longer one is cut into chunks
of T tokens, each a tile of its own with the state that enters it: `chunk_ends` and `pass_on` find those states, and in
the backward the adjoints that enter a chunk from behind. The recurrence within a tile is an associative scan in
registers, a state at a time; the backward recomputes it. Sums over tokens and channels that several programs share are
stored in parts and added outside, in a fixed order: there are no atomics.

With `WINDOWED` the sequences are windows of a map, led by a text token that all windows of an image share: token t > 0
of a window is the map's row `cells[window, t - 1]`, or padding where that is negative. What only the map's tokens have
(the convolution's input, z and the output) then stays in the map's order.
"""

import triton
import triton.language as tl


@triton.jit
def _compose(decay0, value0, decay1, value1):
    """Step 0, then step 1, of h = decay h + value."""
    return decay0 * decay1, value0 * decay1 + value1


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + w), w = e^-|x|; a small w, which 1 + w would round, by log(1 + w) w / ((1 + w) - 1)."""
    w = tl.exp(-tl.abs(x))
    above = 1.0 + w
    log = tl.where(above == 1.0, w, tl.log(above) * (w / tl.where(above == 1.0, 1.0, above - 1.0)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED: tl.constexpr):
    """The rows of tokens t in z and the output, and where there are any."""
    if WINDOWED:
        there = inside & (t > 0)
        cell = tl.load(cells + (sequence % windows) * (length - 1) + t - 1, mask=there, other=-1)
        there = there & (cell >= 0)
        rows = (sequence // windows).to(tl.int64) * area + cell
    else:
        there = inside
        rows = sequence.to(tl.int64) * length + t
    return rows, there


@triton.jit
def _tile(pointer, rows, step, d, inside, wide):
    """A tile (T, BLOCK) in float32, 0 outside."""
    return tl.load(
        pointer + rows[:, None] * step + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0
    ).to(tl.float32)  # fmt: skip


@triton.jit
def _steps(delta, rows, step, d, bias, inside, wide):
    """softplus(delta + bias), 0 outside, where time stands still."""
    raw = _tile(delta, rows, step, d, inside, wide) + bias[None, :]
    return tl.where(inside[:, None] & wide[None, :], _softplus(raw), 0.0), raw


@triton.jit
def scan_forward(
    u, delta, z, B, C, A, skip, bias, starts, out, cells,
    length, width, chunks, windows, area, u_step, delta_step, z_step, B_step, C_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """One chunk's output. Grid (batch * chunks, blocks); starts (batch, chunks - 1, N, width)."""
    sequence, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    t = chunk * T + tl.arange(0, T)
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = d < width
    token = _tile(u, rows, u_step, d, inside, wide)
    shift = tl.load(bias + d, mask=wide, other=0.0)
    step, _ = _steps(delta, rows, delta_step, d, shift, inside, wide)
    drive = step * token
    y = tl.load(skip + d, mask=wide, other=0.0)[None, :] * token
    for n in range(N):
        rate = tl.load(A + d * N + n, mask=wide, other=0.0)
        b = tl.load(B + rows * B_step + n, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(C + rows * C_step + n, mask=inside, other=0.0).to(tl.float32)
        decay, h = tl.associative_scan((tl.exp(step * rate[None, :]), drive * b[:, None]), 0, _compose)
        if CHUNKED:
            place = ((sequence.to(tl.int64) * (chunks - 1) + chunk - 1) * N + n) * width
            h += decay * tl.load(starts + place + d, mask=d < tl.where(chunk > 0, width, 0), other=0.0)[None, :]
        y += c[:, None] * h
    map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
    gate = _tile(z, map_rows, z_step, d, there, wide)
    tl.store(
        out + map_rows[:, None] * width + d[None, :], y * gate * _sigmoid(gate), mask=there[:, None] & wide[None, :]
    )


@triton.jit
def scan_backward(
    grad, u, delta, z, B, C, A, skip, bias, starts, ends, cells,
    grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_skip, grad_bias,
    total, length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step, B_step, C_step,
    N: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """The derivatives of `GROUP` chunks. Grid (groups, blocks); ends (batch, chunks - 1, N, width) the adjoint that
    enters a chunk from behind; grad_B, grad_C (blocks, batch * length, N), grad_A (groups, N, width), grad_skip,
    grad_bias (groups, width): parts of sums.
    """
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = d < width
    states = tl.arange(0, PADDED)
    through = tl.load(skip + d, mask=wide, other=0.0)
    shift = tl.load(bias + d, mask=wide, other=0.0)
    sum_A = tl.zeros((PADDED, BLOCK), tl.float32)
    sum_skip = tl.zeros((BLOCK,), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    for member in range(GROUP):
        index = tl.program_id(0) * GROUP + member
        sequence, chunk = index // chunks, index % chunks
        local = tl.arange(0, T)
        t = chunk * T + local
        inside = t < tl.where(index < total, length, 0)
        rows = sequence.to(tl.int64) * length + t
        map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
        token = _tile(u, rows, u_step, d, inside, wide)
        step, raw = _steps(delta, rows, delta_step, d, shift, inside, wide)
        # the step after each token: by it the adjoint decays; the last one's is in what enters the chunk
        step_after, _ = _steps(delta, rows + 1, delta_step, d, shift, inside & (t + 1 < length) & (local < T - 1), wide)
        drive = step * token
        gate = _tile(z, map_rows, z_step, d, there, wide)
        opened = _sigmoid(gate)
        given = _tile(grad, map_rows, grad_step_, d, there, wide)
        grad_y = given * gate * opened
        y = through[None, :] * token
        by_step = tl.zeros((T, BLOCK), tl.float32)
        by_drive = tl.zeros((T, BLOCK), tl.float32)
        for n in range(N):
            rate = tl.load(A + d * N + n, mask=wide, other=0.0)
            b = tl.load(B + rows * B_step + n, mask=inside, other=0.0).to(tl.float32)
            c = tl.load(C + rows * C_step + n, mask=inside, other=0.0).to(tl.float32)
            driven = drive * b[:, None]
            decay, h = tl.associative_scan((tl.exp(step * rate[None, :]), driven), 0, _compose)
            fade, adjoint = tl.associative_scan(
                (tl.exp(step_after * rate[None, :]), grad_y * c[:, None]), 0, _compose, reverse=True
            )
            if CHUNKED:
                place = sequence.to(tl.int64) * (chunks - 1) * N * width + n * width
                before = starts + place + (chunk - 1) * N * width + d
                led = tl.where((chunk > 0) & (index < total), width, 0)
                h += decay * tl.load(before, mask=d < led, other=0.0)[None, :]
                behind = ends + place + chunk * N * width + d
                followed = tl.where((chunk < chunks - 1) & (index < total), width, 0)
                adjoint += fade * tl.load(behind, mask=d < followed, other=0.0)[None, :]
            y += c[:, None] * h
            part = (tl.program_id(1).to(tl.int64) * (total // chunks) * length + rows) * N + n
            tl.store(grad_B + part, tl.sum(adjoint * drive, 1), mask=inside)
            tl.store(grad_C + part, tl.sum(grad_y * h, 1), mask=inside)
            by_drive += b[:, None] * adjoint
            exponent = adjoint * (h - driven)  # the derivative by step * rate: through the decay of the state before
            by_step += exponent * rate[None, :]
            sum_A += tl.where(states[:, None] == n, tl.sum(exponent * step, 0)[None, :], 0.0)
        mask = inside[:, None] & wide[None, :]
        by_delta = tl.where(mask, (by_step + by_drive * token) * _sigmoid(raw), 0.0)
        tl.store(grad_u + rows[:, None] * width + d[None, :], grad_y * through[None, :] + by_drive * step, mask=mask)
        tl.store(grad_delta + rows[:, None] * width + d[None, :], by_delta, mask=mask)
        by_gate = given * y * opened * (1.0 + gate * (1.0 - opened))
        tl.store(grad_z + map_rows[:, None] * width + d[None, :], by_gate, mask=there[:, None] & wide[None, :])
        sum_skip += tl.sum(grad_y * token, 0)
        sum_bias += tl.sum(by_delta, 0)
    group = tl.program_id(0)
    tl.store(
        grad_A + (group * N + states[:, None]) * width + d[None, :], sum_A, mask=(states[:, None] < N) & wide[None, :]
    )
    tl.store(grad_skip + group * width + d, sum_skip, mask=wide)
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)


@triton.jit
def chunk_ends(
    grad, u, delta, z, B, C, A, bias, ends, sums, cells,
    length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step, B_step, C_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What leaves a chunk that nothing enters: its last state, or with `REVERSE` the adjoint before its first token;
    and the sum of its steps. Grid (batch * (chunks - 1), blocks): all chunks but the last, or but the first.
    """
    sequence, place = tl.program_id(0) // (chunks - 1), tl.program_id(0) % (chunks - 1)
    chunk = place + 1 if REVERSE else place
    t = chunk * T + tl.arange(0, T)
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    step, _ = _steps(delta, rows, delta_step, d, shift, inside, wide)
    if REVERSE:
        map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
        gate = _tile(z, map_rows, z_step, d, there, wide)
        value = _tile(grad, map_rows, grad_step_, d, there, wide) * gate * _sigmoid(gate)
        passed = tl.cumsum(step, 0)
    else:
        value = step * _tile(u, rows, u_step, d, inside, wide)
        later = inside & (t + 1 < tl.minimum((chunk + 1) * T, length))
        after, _ = _steps(delta, rows + 1, delta_step, d, shift, later, wide)
        passed = tl.cumsum(after, 0, reverse=True)  # sums of small steps, which a large one would have rounded
    for n in range(N):
        rate = tl.load(A + d * N + n, mask=wide, other=0.0)
        if REVERSE:
            weight = tl.load(C + rows * C_step + n, mask=inside, other=0.0).to(tl.float32)
        else:
            weight = tl.load(B + rows * B_step + n, mask=inside, other=0.0).to(tl.float32)
        left = tl.sum(tl.exp(passed * rate[None, :]) * value * weight[:, None], 0)
        tl.store(ends + (tl.program_id(0).to(tl.int64) * N + n) * width + d, left, mask=wide)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + d, tl.sum(step, 0), mask=wide)


@triton.jit
def pass_on(
    ends, sums, A, entering, width, between,
    N: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """From what leaves each chunk alone, what enters the next: ends, entering (batch, between, N, width), sums (batch,
    between, width), with between = chunks - 1. Grid (batch, blocks).
    """
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, PADDED)
    mask = (n[:, None] < N) & (d[None, :] < width)
    rates = tl.load(A + d[None, :] * N + n[:, None], mask=mask, other=0.0)
    state = tl.zeros((PADDED, BLOCK), tl.float32)
    for number in range(between):
        place = between - 1 - number if REVERSE else number
        row = tl.program_id(0).to(tl.int64) * between + place
        at = (row * N + n[:, None]) * width + d[None, :]
        passed = tl.load(sums + row * width + d, mask=d < width, other=0.0)
        state = tl.exp(rates * passed[None, :]) * state + tl.load(ends + at, mask=mask, other=0.0)
        tl.store(entering + at, state, mask=mask)


@triton.jit
def _conv_tokens(x, text, cells, sequence, t, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED):
    """Tokens t (T,) of a sequence, 0 outside it."""
    inside = inside & (t >= 0) & (t < length)
    rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
    tokens = _tile(x, rows, x_step, d, there, wide)
    if WINDOWED:
        lead = tl.load(text + (sequence // windows).to(tl.int64) * text_step + d, mask=wide, other=0.0).to(tl.float32)
        tokens += tl.where((inside & (t == 0))[:, None], lead[None, :], 0.0)
    return tokens


@triton.jit
def conv_forward(
    x, text, cells, weight, bias, out, length, width, chunks, windows, area, x_step, text_step,
    K: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """SiLU(bias + sum_k weight_k x_(t - K + 1 + k)). Grid (batch * chunks, blocks); weight (width, K)."""
    sequence, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    t = chunk * T + tl.arange(0, T)
    inside = t < length
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = d < width
    total = tl.zeros((T, BLOCK), tl.float32) + tl.load(bias + d, mask=wide, other=0.0)[None, :]
    for k in tl.static_range(K):
        tap = tl.load(weight + d * K + k, mask=wide, other=0.0)
        total += tap[None, :] * _conv_tokens(
            x, text, cells, sequence, t - K + 1 + k, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED
        )
    rows = sequence.to(tl.int64) * length + t
    tl.store(
        out + rows[:, None] * width + d[None, :], total * _sigmoid(total), mask=inside[:, None] & wide[None, :]
    )  # fmt: skip


@triton.jit
def conv_backward(
    grad, x, text, cells, weight, bias, grad_x, grad_text, grad_weight, grad_bias,
    total, length, width, chunks, windows, area, grad_step_, x_step, text_step,
    K: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """The derivatives of `GROUP` chunks; the convolution is computed anew for every token that a token reaches. Grid
    (groups, blocks); grad_text (batch, width), grad_weight (groups, K, width), grad_bias (groups, width): parts of
    sums.
    """
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    group = tl.program_id(0)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    taps = tl.arange(0, PADDED)
    sum_weight = tl.zeros((PADDED, BLOCK), tl.float32)
    for member in range(GROUP):
        there_is = group * GROUP + member < total
        index = tl.minimum(group * GROUP + member, total - 1)  # of the last group some members may be none
        sequence, chunk = index // chunks, index % chunks
        t = chunk * T + tl.arange(0, T)
        active = t < tl.where(there_is, length, 0)
        by_x = tl.zeros((T, BLOCK), tl.float32)
        for ahead in tl.static_range(K):  # the token `ahead` of t sees it through tap K - 1 - ahead
            later = t + ahead
            inside = active & (later < length)
            value = tl.zeros((T, BLOCK), tl.float32) + shift[None, :]
            for k in tl.static_range(K):
                tap = tl.load(weight + d * K + k, mask=wide, other=0.0)
                value += tap[None, :] * _conv_tokens(
                    x, text, cells, sequence, later - K + 1 + k, inside, d, wide, length, windows, area, x_step,
                    text_step, WINDOWED,
                )  # fmt: skip
            opened = _sigmoid(value)
            given = _tile(grad, sequence.to(tl.int64) * length + later, grad_step_, d, inside, wide)
            inner = given * opened * (1.0 + value * (1.0 - opened))
            tap = tl.load(weight + d * K + K - 1 - ahead, mask=wide, other=0.0)
            by_x += tap[None, :] * inner
            if ahead == 0:
                sum_bias += tl.sum(inner, 0)
            seen = _conv_tokens(
                x, text, cells, sequence, t, active, d, wide, length, windows, area, x_step, text_step, WINDOWED
            )
            sum_weight += tl.where(taps[:, None] == K - 1 - ahead, tl.sum(inner * seen, 0)[None, :], 0.0)
        rows, there = _map_rows(cells, sequence, t, active, length, windows, area, WINDOWED)
        tl.store(grad_x + rows[:, None] * width + d[None, :], by_x, mask=there[:, None] & wide[None, :])
        if WINDOWED:
            lead = tl.sum(tl.where((active & (t == 0))[:, None], by_x, 0.0), 0)
            first = d < tl.where((chunk == 0) & there_is, width, 0)
            tl.store(grad_text + sequence.to(tl.int64) * width + d, lead, mask=first)
    place = (group * K + taps[:, None]) * width + d[None, :]
    tl.store(grad_weight + place, sum_weight, mask=(taps[:, None] < K) & wide[None, :])
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)
