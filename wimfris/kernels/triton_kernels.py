"""The selective scan and the causal convolution before it as Triton kernels, channels-last, float32 inside.

A program holds a tile of `T` tokens and `BLOCK` channels, of which a thread has all tokens of a channel or two:
`_channels` hides from the compiler that blocks begin at multiples, or it would read several channels at once and give a
thread few tokens. A recurrence over tokens then runs in registers, and a row of a tile is a register. Were a compiler
to lay tiles out otherwise, the numbers would be the same, slower.

Windows have a power of two of tokens, and one more in front. So the scan's tiles begin at a sequence's second token;
the first one, the lead, is a row of its own. A longer sequence is cut into chunks of T tokens, each a tile of its own
with the state that enters it: `chunk_ends` and `pass_on` find those states, and in the backward the adjoints that enter
a chunk from behind. The backward recomputes the recurrence. Sums over tokens and channels that several programs share
are stored in parts and added outside, in a fixed order: there are no atomics.

B and C come in float32 by tiles, (batch * chunks, N, T), and their leads apart, (batch, N): a thread reads a tile's
numbers of a state side by side.

With `WINDOWED` the sequences are windows of a map, led by a text token that all windows of an image share: token t > 0
of a window is the map's row `cells[window, t - 1]`, or padding where that is negative. What only the map's tokens have
(the convolution's input, z and the output) then stays in the map's order.
"""

import triton
import triton.language as tl

PER_LOG2 = tl.constexpr(1.4426950408889634)  # log2(e)


@triton.jit
def _compose(decay0, value0, decay1, value1):
    """Step 0, then step 1, of h = decay h + value."""
    return decay0 * decay1, value0 * decay1 + value1


@triton.jit
def _channels(BLOCK: tl.constexpr):
    """The channels of this program's block, said to begin at any place."""
    return tl.multiple_of(tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), 1)


@triton.jit
def _row(tile, at):
    """The row of a tile where `at` (T, 1) is true; adding -0, unlike 0, is nothing at all."""
    return tl.sum(tl.where(at, tile, -0.0), 0)


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
def _vector(pointer, row, step, d, mask):
    """A row (BLOCK,) in float32, 0 outside."""
    return tl.load(pointer + row * step + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _steps(delta, rows, step, d, bias, inside, wide):
    """softplus(delta + bias), 0 outside, where time stands still."""
    raw = _tile(delta, rows, step, d, inside, wide) + bias[None, :]
    return tl.where(inside[:, None] & wide[None, :], _softplus(raw), 0.0)


@triton.jit
def _enters(state, starts, sequence, chunk, chunks, n, width, d, there, N: tl.constexpr, CHUNKED: tl.constexpr):
    """State n as it enters a chunk: the lead's, which is 0 but in a first chunk, or in others that which is kept.
    starts (batch, chunks - 1, N, width); `there` (BLOCK,) the channels that there are.
    """
    if CHUNKED:
        place = ((sequence.to(tl.int64) * (chunks - 1) + chunk - 1) * N + n) * width
        state += tl.load(starts + place + d, mask=there & (chunk > 0), other=0.0)
    return state


@triton.jit
def _scan(decay, driven, enters, local):
    """The states after every token, from that which enters."""
    driven += tl.where((local == 0)[:, None], decay * enters[None, :], 0.0)
    return tl.associative_scan((decay, driven), 0, _compose)[1]


@triton.jit
def _scan_back(decay, value, behind, local):
    """The derivatives by the states after every token, of which `value` is what comes by the token's own output and
    `behind` (BLOCK,) what comes from behind; and what the tile hands to the state before it.
    """
    T: tl.constexpr = value.shape[0]
    adjoint = tl.zeros_like(value)
    for k in tl.static_range(T):
        at = (local == T - 1 - k)[:, None]
        own = _row(value, at) + behind
        behind = own * _row(decay, at)
        adjoint = tl.where(at, own[None, :], adjoint)
    return adjoint, behind


@triton.jit
def _shifted(tile, edge, by: tl.constexpr):
    """The tile (T, BLOCK) whose row t is row t + by; beyond either end are the rows of `edge` (E, BLOCK), which follow
    the tile's last one, or where by < 0 precede its first.
    """
    T: tl.constexpr = tile.shape[0]
    E: tl.constexpr = edge.shape[0]
    local, places = tl.arange(0, T)[:, None], tl.arange(0, E)[:, None]
    shifted = tl.zeros_like(tile)
    for t in tl.static_range(T):
        if t + by < 0:
            row = _row(edge, places == t + by + E)
        elif t + by < T:
            row = _row(tile, local == t + by)
        else:
            row = _row(edge, places == t + by - T)
        shifted = tl.where(local == t, row[None, :], shifted)
    return shifted


@triton.jit
def _sums(one, other, ROUNDS: tl.constexpr):
    """The sums over channels of two tiles (T, BLOCK), (T >> ROUNDS, 2 << ROUNDS); of which tile each is, 0 or 1; and of
    which row.

    The sum of numbers that lie in 32 threads takes five exchanges between them, after each of which twice as many
    threads hold the same. So of two sums that have seen one exchange each, half of the threads keep the one and half
    the other, and all further exchanges serve both; and so on, ROUNDS times more with the rows.
    """
    T: tl.constexpr = one.shape[0]
    HALF: tl.constexpr = one.shape[1] // 2
    pair = tl.arange(0, 2)
    one, other = tl.sum(tl.reshape(one, (T, 2, HALF)), 1), tl.sum(tl.reshape(other, (T, 2, HALF)), 1)
    x = tl.where((pair == 0)[None, :, None], one[:, None, :], other[:, None, :])  # (rows, sums, channels)
    upper = (pair == 0)[:, None, None, None]
    for done in tl.static_range(ROUNDS):
        x = tl.sum(tl.reshape(x, (2, T >> (done + 1), 2 << done, 2, HALF >> (done + 1))), 3)
        one, other = tl.sum(tl.where(upper, x, -0.0), 0), tl.sum(tl.where(upper, -0.0, x), 0)
        x = tl.where((pair == 0)[None, None, :, None], one[:, :, None, :], other[:, :, None, :])
        x = tl.reshape(x, (T >> (done + 1), 4 << done, HALF >> (done + 1)))
    column, line = tl.arange(0, 2 << ROUNDS)[None, :], tl.arange(0, T >> ROUNDS)[:, None]
    return tl.sum(x, 2), column >> ROUNDS, (column % (1 << ROUNDS)) * (T >> ROUNDS) + line


@triton.jit
def scan_forward(
    u, delta, z, B, C, B_lead, C_lead, A, skip, bias, starts, out, cells,
    length, width, chunks, windows, area, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """One chunk's output. Grid (batch * chunks, blocks)."""
    index = tl.program_id(0)
    sequence, chunk = index // chunks, index % chunks
    local = tl.arange(0, T)
    t = 1 + chunk * T + local
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = _channels(BLOCK)
    wide = d < width
    leads = wide & (chunk == 0)
    lead = sequence.to(tl.int64) * length
    through = tl.load(skip + d, mask=wide, other=0.0)
    shift = tl.load(bias + d, mask=wide, other=0.0)
    token = _tile(u, rows, u_step, d, inside, wide)
    step = _steps(delta, rows, delta_step, d, shift, inside, wide)
    drive, y = step * token, through[None, :] * token
    lead_token = _vector(u, lead, u_step, d, leads)
    lead_drive = _softplus(_vector(delta, lead, delta_step, d, leads) + shift) * lead_token
    lead_y = through * lead_token
    for n in range(N):
        rate = tl.load(A + d * N + n, mask=wide, other=0.0) * PER_LOG2
        b = tl.load(B + (index.to(tl.int64) * N + n) * T + local)
        c = tl.load(C + (index.to(tl.int64) * N + n) * T + local)
        lead_h = lead_drive * tl.load(B_lead + sequence * N + n)
        if not WINDOWED:
            lead_y += lead_h * tl.load(C_lead + sequence * N + n)
        enters = _enters(lead_h, starts, sequence, chunk, chunks, n, width, d, wide, N, CHUNKED)
        y += c[:, None] * _scan(tl.exp2(step * rate[None, :]), drive * b[:, None], enters, local)
    map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
    gate = _tile(z, map_rows, z_step, d, there, wide)
    tl.store(
        out + map_rows[:, None] * width + d[None, :], y * gate * _sigmoid(gate), mask=there[:, None] & wide[None, :]
    )
    if not WINDOWED:
        lead_gate = _vector(z, lead, z_step, d, leads)
        tl.store(out + lead * width + d, lead_y * lead_gate * _sigmoid(lead_gate), mask=leads)


@triton.jit
def scan_backward(
    grad, u, delta, z, B, C, B_lead, C_lead, A, skip, bias, starts, ends, cells,
    grad_u, grad_delta, grad_z, grad_BC, grad_B_lead, grad_C_lead, grad_A, grad_skip, grad_bias,
    total, members, length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """The derivatives of `members` chunks. Grid (groups, blocks); ends (batch, chunks - 1, N, width) the adjoint that
    enters a chunk from behind. Parts of sums: grad_BC (2, blocks, batch * chunks, N, T), the leads (blocks, batch, N),
    grad_A (groups, N, width), grad_skip, grad_bias (groups, width). ROUNDS: of `_sums`.
    """
    d = _channels(BLOCK)
    wide = d < width
    local = tl.arange(0, T)
    through = tl.load(skip + d, mask=wide, other=0.0)
    shift = tl.load(bias + d, mask=wide, other=0.0)
    place_A = grad_A + tl.program_id(0) * N * width + d
    sum_skip = tl.zeros((BLOCK,), tl.float32)
    sum_bias = tl.zeros((BLOCK,), tl.float32)
    before = tl.program_id(0) * members
    for member in range(members):
        index = before + member
        there_is = index < total
        sequence, chunk = index // chunks, index % chunks
        t = 1 + chunk * T + local
        inside = t < tl.where(there_is, length, 0)
        rows = sequence.to(tl.int64) * length + t
        map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
        is_lead = there_is & (chunk == 0)
        leads = wide & is_lead
        lead = sequence.to(tl.int64) * length
        token = _tile(u, rows, u_step, d, inside, wide)
        step = _steps(delta, rows, delta_step, d, shift, inside, wide)
        drive, y = step * token, through[None, :] * token
        gate = _tile(z, map_rows, z_step, d, there, wide)
        grad_y = _tile(grad, map_rows, grad_step_, d, there, wide) * gate * _sigmoid(gate)
        by_step = tl.zeros((T, BLOCK), tl.float32)
        by_drive = tl.zeros((T, BLOCK), tl.float32)
        lead_token = _vector(u, lead, u_step, d, leads)
        lead_raw = _vector(delta, lead, delta_step, d, leads) + shift
        lead_step = _softplus(lead_raw)
        lead_drive, lead_y = lead_step * lead_token, through * lead_token
        lead_by_drive = tl.zeros((BLOCK,), tl.float32)
        if not WINDOWED:
            lead_gate, lead_given = _vector(z, lead, z_step, d, leads), _vector(grad, lead, grad_step_, d, leads)
            lead_grad_y = lead_given * lead_gate * _sigmoid(lead_gate)
        for n in range(N):
            rate = tl.load(A + d * N + n, mask=wide, other=0.0)
            # so many sums are kept in memory, for registers are short
            sum_A = tl.load(place_A + n * width, mask=wide & (index > before), other=0.0)
            of_tile = (index.to(tl.int64) * N + n) * T + local
            b = tl.load(B + of_tile, mask=local < tl.where(there_is, T, 0), other=0.0)
            c = tl.load(C + of_tile, mask=local < tl.where(there_is, T, 0), other=0.0)
            lead_b = tl.load(B_lead + sequence * N + n, mask=there_is, other=0.0)
            lead_h = lead_drive * lead_b
            enters = _enters(lead_h, starts, sequence, chunk, chunks, n, width, d, wide & there_is, N, CHUNKED)
            decay = tl.exp2(step * (rate * PER_LOG2)[None, :])
            h = _scan(decay, drive * b[:, None], enters, local)
            behind = tl.zeros((BLOCK,), tl.float32)
            if CHUNKED:
                following = ends + ((sequence.to(tl.int64) * (chunks - 1) + chunk) * N + n) * width + d
                behind = tl.load(
                    following, mask=wide & there_is & (chunk < chunks - 1), other=0.0
                )  # fmt: skip
            adjoint, behind = _scan_back(decay, grad_y * c[:, None], behind, local)
            sums, which, place = _sums(adjoint * drive, grad_y * h, ROUNDS)
            block = which * tl.num_programs(1) + tl.program_id(1)
            part = ((block.to(tl.int64) * total + index) * N + n) * T + place
            tl.store(grad_BC + part, sums, mask=place < tl.where(there_is, T, 0))
            lead_part = (tl.program_id(1) * (total // chunks) + sequence) * N + n
            if not WINDOWED:
                lead_c = tl.load(C_lead + sequence * N + n, mask=there_is, other=0.0)
                behind += lead_grad_y * lead_c
                lead_y += lead_c * lead_h
                tl.store(grad_C_lead + lead_part, tl.sum(lead_grad_y * lead_h, 0), mask=is_lead)
            tl.store(grad_B_lead + lead_part, tl.sum(behind * lead_drive, 0), mask=is_lead)
            lead_by_drive += lead_b * behind
            y += c[:, None] * h
            by_drive += b[:, None] * adjoint
            exponent = adjoint * decay * _shifted(h, enters[None, :], -1)  # the derivative by step * rate
            by_step += exponent * rate[None, :]
            tl.store(place_A + n * width, sum_A + tl.sum(exponent * step, 0), mask=wide)
        mask = inside[:, None] & wide[None, :]
        # read again, for there are not registers enough to keep them
        token, gate = _tile(u, rows, u_step, d, inside, wide), _tile(z, map_rows, z_step, d, there, wide)
        given, opened = _tile(grad, map_rows, grad_step_, d, there, wide), _sigmoid(gate)
        raw = _tile(delta, rows, delta_step, d, inside, wide) + shift[None, :]
        by_delta = tl.where(mask, (by_step + by_drive * token) * _sigmoid(raw), 0.0)
        places = rows[:, None] * width + d[None, :]
        tl.store(grad_u + places, grad_y * through[None, :] + by_drive * step, mask=mask)
        tl.store(grad_delta + places, by_delta, mask=mask)
        by_gate = given * y * opened * (1.0 + gate * (1.0 - opened))
        tl.store(grad_z + map_rows[:, None] * width + d[None, :], by_gate, mask=there[:, None] & wide[None, :])
        sum_skip += tl.sum(grad_y * token, 0)
        lead_by_u, lead_by_delta = lead_by_drive * lead_step, lead_by_drive * lead_token * _sigmoid(lead_raw)
        if not WINDOWED:
            lead_by_u += lead_grad_y * through
            opened_lead = _sigmoid(lead_gate)
            by_lead_gate = lead_given * lead_y * opened_lead * (1.0 + lead_gate * (1.0 - opened_lead))
            tl.store(grad_z + lead * width + d, by_lead_gate, mask=leads)
            sum_skip += lead_grad_y * lead_token
        tl.store(grad_u + lead * width + d, lead_by_u, mask=leads)
        tl.store(grad_delta + lead * width + d, lead_by_delta, mask=leads)
        sum_bias += tl.sum(by_delta, 0) + lead_by_delta
        tl.debug_barrier()  # the next one reads what this one has written
    group = tl.program_id(0)
    tl.store(grad_skip + group * width + d, sum_skip, mask=wide)
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)


@triton.jit
def chunk_ends(
    grad, u, delta, z, B, C, B_lead, A, bias, ends, sums, cells,
    length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What leaves a chunk that nothing but a lead enters: its last state, or with `REVERSE` what it hands to the state
    before it; and the sum of its steps. Grid (batch * (chunks - 1), blocks): all chunks but the last, or but the first.
    """
    sequence, place = tl.program_id(0) // (chunks - 1), tl.program_id(0) % (chunks - 1)
    chunk = place + 1 if REVERSE else place
    index = (sequence * chunks + chunk).to(tl.int64)
    local = tl.arange(0, T)
    t = 1 + chunk * T + local
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = _channels(BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    step = _steps(delta, rows, delta_step, d, shift, inside, wide)
    if REVERSE:
        map_rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
        gate = _tile(z, map_rows, z_step, d, there, wide)
        value = _tile(grad, map_rows, grad_step_, d, there, wide) * gate * _sigmoid(gate)
    else:
        value = step * _tile(u, rows, u_step, d, inside, wide)
        leads = wide & (chunk == 0)
        lead = sequence.to(tl.int64) * length
        lead_step = _softplus(_vector(delta, lead, delta_step, d, leads) + shift)
        lead_drive = lead_step * _vector(u, lead, u_step, d, leads)
    for n in range(N):
        rate = tl.load(A + d * N + n, mask=wide, other=0.0) * PER_LOG2
        decay = tl.exp2(step * rate[None, :])
        if REVERSE:
            c = tl.load(C + (index * N + n) * T + local)
            _, left = _scan_back(decay, value * c[:, None], tl.zeros((BLOCK,), tl.float32), local)
        else:
            b = tl.load(B + (index * N + n) * T + local)
            enters = lead_drive * tl.load(B_lead + sequence * N + n)
            left = _row(_scan(decay, value * b[:, None], enters, local), (local == T - 1)[:, None])
        tl.store(ends + (tl.program_id(0).to(tl.int64) * N + n) * width + d, left, mask=wide)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + d, tl.sum(step, 0), mask=wide)


@triton.jit
def pass_on(
    ends, sums, A, width, between, N: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr
):  # fmt: skip
    """From what leaves each chunk alone, in its place what enters the next: ends (batch, between, N, width), sums
    (batch, between, width), with between = chunks - 1. Grid (batch, blocks, N).
    """
    d, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2)
    wide = d < width
    rate = tl.load(A + d * N + n, mask=wide, other=0.0)
    state = tl.zeros((BLOCK,), tl.float32)
    for number in range(between):
        place = between - 1 - number if REVERSE else number
        row = tl.program_id(0).to(tl.int64) * between + place
        passed = tl.load(sums + row * width + d, mask=wide, other=0.0)
        at = ends + (row * N + n) * width + d
        state = tl.exp(rate * passed) * state + tl.load(at, mask=wide, other=0.0)
        tl.store(at, state, mask=wide)


@triton.jit
def _conv_tokens(x, text, cells, sequence, t, inside, d, wide, length, windows, area, x_step, text_step, WINDOWED):
    """Tokens t (T,) of a sequence, 0 outside it."""
    inside = inside & (t >= 0) & (t < length)
    rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
    tokens = _tile(x, rows, x_step, d, there, wide)
    if WINDOWED:
        first = inside & (t == 0)
        some = wide & (tl.sum(first.to(tl.int32), 0) > 0)
        lead = _vector(text, (sequence // windows).to(tl.int64), text_step, d, some)
        tokens += tl.where(first[:, None], lead[None, :], 0.0)
    return tokens


@triton.jit
def _taps(weight, d, wide, K: tl.constexpr, PADDED: tl.constexpr):
    """The weights (width, K) of a block, (PADDED, BLOCK)."""
    taps = tl.arange(0, PADDED)[:, None]
    return tl.load(weight + d[None, :] * K + taps, mask=(taps < K) & wide[None, :], other=0.0)


@triton.jit
def _convolved(x, before, weights, shift, K: tl.constexpr):
    """bias + sum_k weight_k x_(t - K + 1 + k): x (T, BLOCK), before (E, BLOCK) the tokens before x."""
    taps = tl.arange(0, weights.shape[0])[:, None]
    total = tl.zeros_like(x) + shift[None, :]
    for k in tl.static_range(K):
        total += _row(weights, taps == k)[None, :] * _shifted(x, before, k + 1 - K)
    return total


@triton.jit
def conv_forward(
    x, text, cells, weight, bias, out, length, width, chunks, windows, area, x_step, text_step,
    K: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr,
    CHUNKED: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolution. Grid (batch * chunks, blocks)."""
    sequence, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    t = chunk * T + tl.arange(0, T)
    inside = t < length
    d = _channels(BLOCK)
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
        out + rows[:, None] * width + d[None, :], total * _sigmoid(total), mask=inside[:, None] & wide[None, :]
    )  # fmt: skip


@triton.jit
def _conv_inner(x, before, given, weights, shift, K: tl.constexpr):
    """The derivative by the sums that enter the SiLU, from `given`, that by what leaves it; x and before as in
    `_convolved`.
    """
    total = _convolved(x, before, weights, shift, K)
    opened = _sigmoid(total)
    return given * opened * (1.0 + total * (1.0 - opened))


@triton.jit
def conv_backward(
    grad, x, text, cells, weight, bias, grad_x, grad_text, grad_weight, grad_bias,
    total, members, length, width, chunks, windows, area, grad_step_, x_step, text_step,
    K: tl.constexpr, PADDED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """The derivatives of `members` chunks. Grid (groups, blocks); grad_text (batch, width), grad_weight (groups, K,
    width), grad_bias (groups, width): parts of sums.
    """
    d = _channels(BLOCK)
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
        given = _tile(grad, first + t, grad_step_, d, inside, wide)
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
            given_later = _tile(grad, first + after, grad_step_, d, always & (after < length), wide)
            behind = _conv_inner(later, last, given_later, weights, shift, K)
        inner = _conv_inner(own, before, given, weights, shift, K)
        by_x = tl.zeros((T, BLOCK), tl.float32)
        for k in tl.static_range(K):  # the token K - 1 - k ahead of another sees it through tap k
            by_x += _row(weights, (taps == k)[:, None])[None, :] * _shifted(inner, behind, K - 1 - k)
            by_tap = tl.sum(inner * _shifted(own, before, k + 1 - K), 0)
            sum_weight += tl.where((taps == k)[:, None], by_tap[None, :], 0.0)
        sum_bias += tl.sum(inner, 0)
        rows, there = _map_rows(cells, sequence, t, inside, length, windows, area, WINDOWED)
        tl.store(grad_x + rows[:, None] * width + d[None, :], by_x, mask=there[:, None] & wide[None, :])
        if WINDOWED:
            led = wide & (chunk == 0) & there_is
            tl.store(grad_text + sequence.to(tl.int64) * width + d, _row(by_x, (local == 0)[:, None]), mask=led)
    place = (group * K + taps[:, None]) * width + d[None, :]
    tl.store(grad_weight + place, sum_weight, mask=(taps[:, None] < K) & wide[None, :])
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)
