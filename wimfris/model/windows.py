"""Windows of a map: cut its tokens into sequences, and put them back.

A map's H * W tokens are in raster order, and so are its n_win windows and the M tokens of each. Where the window does
not divide the grid, border windows have fewer tokens: the real ones come first and padding follows, so that a causal
scan reads no padding before a real token. `window` is (height, width) in cells; the indices are cached on each device.
"""

import torch
from torch import Tensor

from wimfris.model.tables import table


@table
def window_index(height: int, width: int, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the positions that cut a grid into windows, and those that put it back.

    The first, (n_win, M), holds the raster position of each token of each window, 0 at padding. The second, (H * W,),
    holds the place of each token of the grid in the flattened windows.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, across = -(-height // window[0]), -(-width // window[1])
    owner = (rows // window[0] * across + columns // window[1]).flatten()
    order = torch.argsort(owner, stable=True)  # raster order inside a window
    owner = owner[order]
    starts = torch.searchsorted(owner, torch.arange(down * across))
    slots = owner * (window[0] * window[1]) + torch.arange(len(owner)) - starts[owner]
    gather = torch.zeros(len(starts) * window[0] * window[1], dtype=torch.long)
    gather[slots] = order
    scatter = torch.empty(height * width, dtype=torch.long)
    scatter[order] = slots
    return gather.view(len(starts), -1), scatter


@table
def window_padding(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """Return (n_win, M), True at padding."""
    gather, scatter = window_index(height, width, window)
    padding = torch.ones(gather.numel(), dtype=torch.bool)
    padding[scatter] = False
    return padding.view_as(gather)


@table
def window_reversal(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """Return (n_win, M), an order of each window's tokens: the real ones reversed, padding still last.

    The order is its own inverse.
    """
    slots = torch.arange(window[0] * window[1])
    real = (~window_padding(height, width, window)).sum(1, keepdim=True)
    return torch.where(slots < real, real - 1 - slots, slots)


@table
def window_cells(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """Return (n_win, M), int32: the raster position of each token of each window, -1 at padding."""
    return window_index(height, width, window)[0].masked_fill(window_padding(height, width, window), -1).int()


def window_partition(tokens: Tensor, height: int, width: int, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows: (B, H * W, C) -> (B * n_win, M, C)."""
    gather, _ = window_index(height, width, window, device=tokens.device)
    return tokens[:, gather].flatten(0, 1)


def window_unpartition(windows: Tensor, height: int, width: int, window: tuple[int, int]) -> Tensor:
    """Put windows back into a map and drop padding: (B * n_win, M, C) -> (B, H * W, C)."""
    gather, scatter = window_index(height, width, window, device=windows.device)
    tokens = windows.reshape(-1, gather.numel(), windows.shape[-1])
    return tokens[:, scatter]


def window_sequences(windows: Tensor, text: Tensor | None, text_token: str) -> tuple[Tensor, slice]:
    """Return each window's tokens with its text token, and the slice of the window's own.

    windows (n, M, C), text (n, 1, C); text_token: `first`, `last`, `both` or `none`.
    """
    before = [text] if text is not None and text_token in ("first", "both") else []
    after = [text] if text is not None and text_token in ("last", "both") else []
    return torch.cat([*before, windows, *after], dim=1), slice(len(before), len(before) + windows.shape[1])
