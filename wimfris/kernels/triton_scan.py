"""The selective scan as Triton kernels, channels-last and float32 inside.

Windows have a power of two of tokens and one more in front. So tiles (see `triton_tiles`) begin at a sequence's second
token; the first one, the lead, is a row of its own. A longer sequence is cut into chunks of T tokens, each a tile with
the state that enters it: `chunk_ends` and `pass_on` compute those states, and in the backward the adjoints that enter a
chunk from behind. The backward recomputes the recurrence. Sums over tokens and channels that several programs share are
stored in parts and added outside, in a fixed order: there are no atomics.

B and C come in float32 by tiles, (batch * chunks, N, T), and their leads apart, (batch, N), so that a thread finds the
numbers of one state in a tile side by side.
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

PER_LOG2 = tl.constexpr(1.4426950408889634)  # log2(e)


@triton.jit
def scan_forward(
    u, delta, z, B, C, B_lead, C_lead, A, skip, bias, starts, out, cells,
    length, width, chunks, windows, area, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Write one chunk's output. Grid (batch * chunks, blocks)."""
    index = tl.program_id(0)
    sequence, chunk = index // chunks, index % chunks
    local = tl.arange(0, T)
    t = 1 + chunk * T + local
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = block_channels(BLOCK)
    wide = d < width
    leads = wide & (chunk == 0)
    lead = sequence.to(tl.int64) * length
    through = tl.load(skip + d, mask=wide, other=0.0)
    shift = tl.load(bias + d, mask=wide, other=0.0)
    token = load_tile(u, rows, u_step, d, inside, wide)
    step = _steps(delta, rows, delta_step, d, shift, inside, wide)
    drive, y = step * token, through[None, :] * token
    lead_token = load_row(u, lead, u_step, d, leads)
    lead_drive = _softplus(load_row(delta, lead, delta_step, d, leads) + shift) * lead_token
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
    map_rows, there = rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED)
    gate = load_tile(z, map_rows, z_step, d, there, wide)
    tl.store(
        out + map_rows[:, None] * width + d[None, :], y * gate * sigmoid(gate), mask=there[:, None] & wide[None, :]
    )
    if not WINDOWED:
        lead_gate = load_row(z, lead, z_step, d, leads)
        tl.store(out + lead * width + d, lead_y * lead_gate * sigmoid(lead_gate), mask=leads)


@triton.jit
def scan_backward(
    grad, u, delta, z, B, C, B_lead, C_lead, A, skip, bias, starts, ends, cells,
    grad_u, grad_delta, grad_z, grad_BC, grad_B_lead, grad_C_lead, grad_A, grad_skip, grad_bias,
    total, members, length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    WINDOWED: tl.constexpr, CHUNKED: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of `members` chunks. Grid (groups, blocks).

    ends (batch, chunks - 1, N, width): the adjoint that enters a chunk from behind. Parts of sums: grad_BC (2, blocks,
    batch * chunks, N, T), the leads (blocks, batch, N), grad_A (groups, N, width), grad_skip and grad_bias (groups,
    width). ROUNDS: see `_sums`.
    """
    d = block_channels(BLOCK)
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
        map_rows, there = rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED)
        is_lead = there_is & (chunk == 0)
        leads = wide & is_lead
        lead = sequence.to(tl.int64) * length
        token = load_tile(u, rows, u_step, d, inside, wide)
        step = _steps(delta, rows, delta_step, d, shift, inside, wide)
        drive, y = step * token, through[None, :] * token
        gate = load_tile(z, map_rows, z_step, d, there, wide)
        grad_y = load_tile(grad, map_rows, grad_step_, d, there, wide) * gate * sigmoid(gate)
        by_step = tl.zeros((T, BLOCK), tl.float32)
        by_drive = tl.zeros((T, BLOCK), tl.float32)
        lead_token = load_row(u, lead, u_step, d, leads)
        lead_raw = load_row(delta, lead, delta_step, d, leads) + shift
        lead_step = _softplus(lead_raw)
        lead_drive, lead_y = lead_step * lead_token, through * lead_token
        lead_by_drive = tl.zeros((BLOCK,), tl.float32)
        if not WINDOWED:
            lead_gate, lead_given = load_row(z, lead, z_step, d, leads), load_row(grad, lead, grad_step_, d, leads)
            lead_grad_y = lead_given * lead_gate * sigmoid(lead_gate)
        for n in range(N):
            rate = tl.load(A + d * N + n, mask=wide, other=0.0)
            # these sums stay in memory: there are too few registers for them
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
            exponent = adjoint * decay * shift_rows(h, enters[None, :], -1)  # the derivative by step * rate
            by_step += exponent * rate[None, :]
            tl.store(place_A + n * width, sum_A + tl.sum(exponent * step, 0), mask=wide)
        mask = inside[:, None] & wide[None, :]
        # read again: there are too few registers to hold them
        token, gate = load_tile(u, rows, u_step, d, inside, wide), load_tile(z, map_rows, z_step, d, there, wide)
        given, opened = load_tile(grad, map_rows, grad_step_, d, there, wide), sigmoid(gate)
        raw = load_tile(delta, rows, delta_step, d, inside, wide) + shift[None, :]
        by_delta = tl.where(mask, (by_step + by_drive * token) * sigmoid(raw), 0.0)
        places = rows[:, None] * width + d[None, :]
        tl.store(grad_u + places, grad_y * through[None, :] + by_drive * step, mask=mask)
        tl.store(grad_delta + places, by_delta, mask=mask)
        by_gate = given * y * opened * (1.0 + gate * (1.0 - opened))
        tl.store(grad_z + map_rows[:, None] * width + d[None, :], by_gate, mask=there[:, None] & wide[None, :])
        sum_skip += tl.sum(grad_y * token, 0)
        lead_by_u, lead_by_delta = lead_by_drive * lead_step, lead_by_drive * lead_token * sigmoid(lead_raw)
        if not WINDOWED:
            lead_by_u += lead_grad_y * through
            opened_lead = sigmoid(lead_gate)
            by_lead_gate = lead_given * lead_y * opened_lead * (1.0 + lead_gate * (1.0 - opened_lead))
            tl.store(grad_z + lead * width + d, by_lead_gate, mask=leads)
            sum_skip += lead_grad_y * lead_token
        tl.store(grad_u + lead * width + d, lead_by_u, mask=leads)
        tl.store(grad_delta + lead * width + d, lead_by_delta, mask=leads)
        sum_bias += tl.sum(by_delta, 0) + lead_by_delta
        tl.debug_barrier()  # the next member reads what this one wrote
    group = tl.program_id(0)
    tl.store(grad_skip + group * width + d, sum_skip, mask=wide)
    tl.store(grad_bias + group * width + d, sum_bias, mask=wide)


@triton.jit
def chunk_ends(
    grad, u, delta, z, B, C, B_lead, A, bias, ends, sums, cells,
    length, width, chunks, windows, area, grad_step_, u_step, delta_step, z_step,
    N: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write what leaves a chunk into which no state enters but the lead's, and the sum of its steps.

    That is its last state, or with `REVERSE` the adjoint that it passes to the state before it. Grid (batch * (chunks -
    1), blocks): all chunks but the last, with `REVERSE` all but the first.
    """
    sequence, place = tl.program_id(0) // (chunks - 1), tl.program_id(0) % (chunks - 1)
    chunk = place + 1 if REVERSE else place
    index = (sequence * chunks + chunk).to(tl.int64)
    local = tl.arange(0, T)
    t = 1 + chunk * T + local
    inside = t < length
    rows = sequence.to(tl.int64) * length + t
    d = block_channels(BLOCK)
    wide = d < width
    shift = tl.load(bias + d, mask=wide, other=0.0)
    step = _steps(delta, rows, delta_step, d, shift, inside, wide)
    if REVERSE:
        map_rows, there = rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED)
        gate = load_tile(z, map_rows, z_step, d, there, wide)
        value = load_tile(grad, map_rows, grad_step_, d, there, wide) * gate * sigmoid(gate)
    else:
        value = step * load_tile(u, rows, u_step, d, inside, wide)
        leads = wide & (chunk == 0)
        lead = sequence.to(tl.int64) * length
        lead_step = _softplus(load_row(delta, lead, delta_step, d, leads) + shift)
        lead_drive = lead_step * load_row(u, lead, u_step, d, leads)
    for n in range(N):
        rate = tl.load(A + d * N + n, mask=wide, other=0.0) * PER_LOG2
        decay = tl.exp2(step * rate[None, :])
        if REVERSE:
            c = tl.load(C + (index * N + n) * T + local)
            _, left = _scan_back(decay, value * c[:, None], tl.zeros((BLOCK,), tl.float32), local)
        else:
            b = tl.load(B + (index * N + n) * T + local)
            enters = lead_drive * tl.load(B_lead + sequence * N + n)
            left = select_row(_scan(decay, value * b[:, None], enters, local), (local == T - 1)[:, None])
        tl.store(ends + (tl.program_id(0).to(tl.int64) * N + n) * width + d, left, mask=wide)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + d, tl.sum(step, 0), mask=wide)


@triton.jit
def pass_on(
    ends, sums, A, width, between, N: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr
):  # fmt: skip
    """Replace what leaves each chunk alone (see `chunk_ends`) by what enters the next. Grid (batch, blocks, N).

    ends (batch, between, N, width), sums (batch, between, width), between = chunks - 1.
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
def _steps(delta, rows, step, d, bias, inside, wide):
    """Return softplus(delta + bias); outside it is 0, a step that changes no state."""
    raw = load_tile(delta, rows, step, d, inside, wide) + bias[None, :]
    return tl.where(inside[:, None] & wide[None, :], _softplus(raw), 0.0)


@triton.jit
def _enters(state, starts, sequence, chunk, chunks, n, width, d, there, N: tl.constexpr, CHUNKED: tl.constexpr):
    """Return state n as it enters a chunk: the lead's in a first chunk, the saved one in others.

    The lead's `state` is 0 in all but first chunks. starts (batch, chunks - 1, N, width); `there` (BLOCK,) masks the
    channels.
    """
    if CHUNKED:
        place = ((sequence.to(tl.int64) * (chunks - 1) + chunk - 1) * N + n) * width
        state += tl.load(starts + place + d, mask=there & (chunk > 0), other=0.0)
    return state


@triton.jit
def _scan(decay, driven, enters, local):
    """Return the state after every token, from the one that enters."""
    driven += tl.where((local == 0)[:, None], decay * enters[None, :], 0.0)
    return tl.associative_scan((decay, driven), 0, _compose)[1]


@triton.jit
def _compose(decay0, value0, decay1, value1):
    """Compose step 0 and then step 1 of h = decay h + value."""
    return decay0 * decay1, value0 * decay1 + value1


@triton.jit
def _scan_back(decay, value, behind, local):
    """Return the derivatives by the state after every token, and the one that the tile passes to the state before it.

    value: their part through the token's own output; behind (BLOCK,): the part that comes from the tokens after the
    tile.
    """
    T: tl.constexpr = value.shape[0]
    adjoint = tl.zeros_like(value)
    for k in tl.static_range(T):
        at = (local == T - 1 - k)[:, None]
        own = select_row(value, at) + behind
        behind = own * select_row(decay, at)
        adjoint = tl.where(at, own[None, :], adjoint)
    return adjoint, behind


@triton.jit
def _sums(one, other, ROUNDS: tl.constexpr):
    """Return the sums over channels of two tiles (T, BLOCK), each sum's tile (0 or 1) and its row.

    The sums are (T >> ROUNDS, 2 << ROUNDS). To add numbers in 32 threads takes five exchanges between them, and after
    each one twice as many threads hold the same number. So once two sums have had one exchange each, half of the
    threads continue with one and half with the other, and the remaining exchanges serve both. The same is done ROUNDS
    times more with the rows.
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
def _softplus(x):
    """max(x, 0) + log(1 + w) with w = e^-|x|; the factor w / ((1 + w) - 1) corrects the rounding of 1 + w."""
    w = tl.exp(-tl.abs(x))
    above = 1.0 + w
    log = tl.where(above == 1.0, w, tl.log(above) * (w / tl.where(above == 1.0, 1.0, above - 1.0)))
    return tl.maximum(x, 0.0) + log
