"""Tiles of tokens and channels, which the Triton kernels of the scan and the convolution load and shift.

A program holds a tile of `T` tokens and `BLOCK` channels, and a thread holds all tokens of one or two channels. So a
recurrence over tokens runs in registers, and a row of a tile is a register. With another layout of tiles the numbers
would be the same, but slower.

With `WINDOWED` the sequences are windows of a map, led by a text token that all windows of an image share. Token t > 0
of a window is the map's row `cells[window, t - 1]`, or padding where that is negative. What only the map's tokens have
(the convolution's input, z and the output) stays in the map's order.
"""

import triton
import triton.language as tl


@triton.jit
def block_channels(BLOCK: tl.constexpr):
    """Return the channels of this program's block.

    The hint hides that blocks begin at multiples: otherwise the compiler reads several channels at once and gives a
    thread only a few tokens.
    """
    return tl.multiple_of(tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), 1)


@triton.jit
def load_tile(pointer, rows, step, d, inside, wide):
    """Load a tile (T, BLOCK) in float32, 0 outside."""
    return tl.load(
        pointer + rows[:, None] * step + d[None, :], mask=inside[:, None] & wide[None, :], other=0.0
    ).to(tl.float32)  # fmt: skip


@triton.jit
def load_row(pointer, row, step, d, mask):
    """Load a row (BLOCK,) in float32, 0 outside."""
    return tl.load(pointer + row * step + d, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def rows_in_map(cells, sequence, t, inside, length, windows, area, WINDOWED: tl.constexpr):
    """Return the rows of tokens t in z and in the output, and a mask of the tokens that have one."""
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
def select_row(tile, at):
    """Return the row of a tile where `at` (T, 1) is true. Adding -0.0 changes no number; 0.0 would change -0.0."""
    return tl.sum(tl.where(at, tile, -0.0), 0)


@triton.jit
def shift_rows(tile, edge, by: tl.constexpr):
    """Return the tile (T, BLOCK) whose row t is row t + by.

    Beyond its end come the rows of `edge` (E, BLOCK), which follow the tile's last row, or precede its first where
    by < 0.
    """
    T: tl.constexpr = tile.shape[0]
    E: tl.constexpr = edge.shape[0]
    local, places = tl.arange(0, T)[:, None], tl.arange(0, E)[:, None]
    shifted = tl.zeros_like(tile)
    for t in tl.static_range(T):
        if t + by < 0:
            row = select_row(edge, places == t + by + E)
        elif t + by < T:
            row = select_row(tile, local == t + by)
        else:
            row = select_row(edge, places == t + by - T)
        shifted = tl.where(local == t, row[None, :], shifted)
    return shifted


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
