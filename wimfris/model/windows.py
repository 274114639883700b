"""Windows of a map: cut its tokens into sequences, and put them back.

A map's H * W tokens are in raster order, and so are its n_win windows. The M tokens of a window are in the order of the
scan. Border windows can have fewer tokens than M: the real ones come first and padding follows, so that a causal scan
reads no padding before a real token. `window` and `shift` are (height, width) in cells; the borders lie at `shift` plus
multiples of the window.
"""

import torch
from torch import Tensor

from wimfris.model.tables import table

ORDERS = ("raster", "backwards", "down", "up")  # of a window's tokens: by rows or by columns, forwards or in reverse


@table
def window_index(
    height: int, width: int, window: tuple[int, int], order: str = "raster", shift: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Tensor]:
    """Return the positions that cut a grid into windows, and those that put it back; cached on each device.

    cells (n_win, M): the raster position of each token of each window, -1 at padding. places (H * W,): the place of
    each token of the grid in the flattened windows.
    """
    rows = (torch.arange(height) - shift[0]) // window[0] - -shift[0] // window[0]
    columns = (torch.arange(width) - shift[1]) // window[1] - -shift[1] // window[1]
    down, across = (
        1 + (side - 1 - s) // w - -s // w for side, s, w in zip((height, width), shift, window, strict=True)
    )
    owner = (rows[:, None] * across + columns).flatten()
    walk = torch.arange(height * width).view(height, width)
    walk = (walk if order in ("raster", "backwards") else walk.T).flatten()
    if order in ("backwards", "up"):
        walk = walk.flip(0)
    walk = walk[torch.argsort(owner[walk], stable=True)]  # window by window, each in the order of the scan
    owner = owner[walk]
    starts = torch.searchsorted(owner, torch.arange(down * across))
    slots = owner * (window[0] * window[1]) + torch.arange(len(owner)) - starts[owner]
    cells = torch.full((len(starts) * window[0] * window[1],), -1)
    cells[slots] = walk
    places = torch.empty(height * width, dtype=torch.long)
    places[walk] = slots
    return cells.view(len(starts), -1), places


def window_partition(tokens: Tensor, cells: Tensor) -> Tensor:
    """Cut a map into windows: (B, H * W, C) -> (B * n_win, M, C). Padding repeats the map's first token."""
    return tokens[:, cells.clamp(min=0)].flatten(0, 1)


def window_unpartition(windows: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Put windows back into a map and drop padding: (B * n_win, M, C) -> (B, H * W, C)."""
    return windows.reshape(-1, cells.numel(), windows.shape[-1])[:, places]


def join_sentence(
    windows: Tensor, padding: Tensor, text: Tensor | None, text_token: str
) -> tuple[Tensor, Tensor, slice]:
    """Return each window's tokens with its text token, their padding, and the slice of the window's own.

    windows (n, M, C), padding (n, M), text (n, 1, C); text_token: `first`, `last`, `both` or `none`.
    """
    before = [text] if text is not None and text_token in ("first", "both") else []
    after = [text] if text is not None and text_token in ("last", "both") else []
    real = padding.new_zeros(len(padding), 1)
    sequences = torch.cat([*before, windows, *after], dim=1)
    padding = torch.cat([real] * len(before) + [padding] + [real] * len(after), dim=1)
    return sequences, padding, slice(len(before), len(before) + windows.shape[1])


def join_words(windows: Tensor, padding: Tensor, words: Tensor, absent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each window's tokens behind its words, their padding, and the places of the window's own, (n, M).

    windows (n, M, C), padding (n, M), words (n, P, C); absent (n, P), True at padded words. Those follow everything
    else, so that a causal scan reads none before a real token.
    """
    kind = torch.cat([2 * absent.int(), torch.ones_like(padding, dtype=torch.int32)], dim=1)
    order = torch.argsort(kind, dim=1, stable=True)
    sequences = take(torch.cat([words, windows], dim=1), order)
    padding = take(torch.cat([absent, padding], dim=1)[..., None], order)[..., 0]
    places = (~absent).sum(dim=1, keepdim=True) + torch.arange(windows.shape[1], device=windows.device)
    return sequences, padding, places


def take(sequences: Tensor, places: Tensor) -> Tensor:
    """Return the tokens at these places of each sequence: (n, L, C), places (n, M) -> (n, M, C).

    `torch.gather` would do, but its gradient has no deterministic CUDA kernel; that of an index has one.
    """
    starts = torch.arange(len(sequences), device=sequences.device)[:, None] * sequences.shape[1]
    return sequences.flatten(0, 1)[starts + places]
