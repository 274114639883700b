"""HMF, the neck: one multi-semantic map from three stages, fused with the sentence window by window (WMF)."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from wimfris.model.mamba import Mamba
from wimfris.model.scan import choose_backend


def conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution of the same size, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # an index first made in an evaluation must serve training too
def window_index(height: int, width: int, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the tokens of a grid go when it is cut into windows.

    Returns (n_win, M) the raster position in the grid of each token of each window, and (H * W,) its inverse into the
    flattened windows. Where the window does not divide the grid, border windows hold fewer tokens: those come first, in
    raster order, and the rest is padding that repeats position 0, so that a causal scan never sees padding before a
    real token.
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


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_padding(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """(n_win, M), True at the slots of a window that hold no token of the grid."""
    gather, scatter = window_index(height, width, window)
    padding = torch.ones(gather.numel(), dtype=torch.bool)
    padding[scatter] = False
    return padding.view_as(gather)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_reversal(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """(n_win, M): the slots of each window with its real tokens backwards and its padding still last; its own
    inverse.
    """
    slots = torch.arange(window[0] * window[1])
    real = (~window_padding(height, width, window)).sum(1, keepdim=True)
    return torch.where(slots < real, real - 1 - slots, slots)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_cells(height: int, width: int, window: tuple[int, int]) -> Tensor:
    """(n_win, M), int32: the raster position in the grid of each token of each window, -1 at its padding."""
    return window_index(height, width, window)[0].masked_fill(window_padding(height, width, window), -1).int()


def window_partition(grid_tokens: Tensor, height: int, width: int, window: tuple[int, int]) -> Tensor:
    """(B, H * W, C) -> (B * n_win, M, C), windows in raster order, M = window area; see `window_index` for uneven
    grids.
    """
    gather = window_index(height, width, window)[0].to(grid_tokens.device)
    return grid_tokens[:, gather].flatten(0, 1)


def window_unpartition(windows: Tensor, height: int, width: int, window: tuple[int, int]) -> Tensor:
    """The inverse of `window_partition`: (B * n_win, M, C) -> (B, H * W, C), padding dropped."""
    gather, scatter = window_index(height, width, window)
    tokens = windows.reshape(-1, gather.numel(), windows.shape[-1])
    return tokens[:, scatter.to(windows.device)]


class CoordConv(nn.Module):
    """Two 3x3 convolutions, the first of which also sees a cell's x and y in [-1, 1]: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.located = conv_norm_relu(width + 2, width, 3)
        self.conv = conv_norm_relu(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        xs = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(batch, 1, height, width)
        ys = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(batch, 1, height, width)
        return self.conv(self.located(torch.cat([x, xs, ys], dim=1)))


class Gate(nn.Module):
    """What the scan's output is multiplied by: attention to the words, attention to the sentence alone, or nothing.

    Attention over the one key of `text` has weight 1 whatever the query: it is a gate per channel made from the
    sentence, as DETRIS has it.
    """

    def __init__(self, kind: Literal["attention", "text", "none"], width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.attention = nn.MultiheadAttention(width, heads, kdim=text_width, vdim=text_width, batch_first=True)

    def forward(self, z: Tensor, words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """z (B, H * W, C) -> z * gate(z)."""
        if self.kind == "none":
            return z
        if self.kind == "text":
            key, mask = sentence[:, None], None
        else:
            key, mask = words, padding
        return z * self.attention(z, key, key, key_padding_mask=mask, need_weights=False)[0]


class WindowMambaFusion(nn.Module):
    """WMF: every window of the map, with one text token, is a sequence of its own for one shared Mamba block.

    x_j = [t, F_window_j], t = project(sentence);  z = the scan's output at the visual tokens;  G = F + z * gate(z);
    out = G + CoordConv(G).

    window: its side in cells; None is the whole grid, one sequence of H * W + 1 tokens ("no window").
    text_token: where t stands in the sequence; behind the visual tokens a causal scan never shows it to them.
    direction: `bidirectional` adds a second block's scan over the visual tokens backwards, t where it stands.
    mixing: the Mamba block (`ssm`), multi-head attention among the tokens of a window, or nothing (z = norm(F)).
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        *,
        window: int | None,
        gate: Literal["attention", "text", "none"],
        norm: bool,
        heads: int,
        state: int,
        conv: int,
        expand: int,
        text_token: Literal["first", "last", "both", "none"] = "first",
        direction: Literal["raster", "bidirectional"] = "raster",
        mixing: Literal["ssm", "attention", "none"] = "ssm",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.window, self.text_token, self.mixing = window, text_token, mixing
        self.text = nn.Linear(text_width, width) if text_token != "none" and mixing != "none" else None
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.mamba = self.backwards = self.attention = None
        if mixing == "ssm":
            self.mamba = Mamba(width, state=state, conv=conv, expand=expand, backend=backend)
        elif mixing == "attention":
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate = Gate(gate, width, text_width, heads)
        self.coordinates = CoordConv(width)
        if mixing == "ssm" and direction == "bidirectional":  # last, so that the others start as without it
            self.backwards = Mamba(width, state=state, conv=conv, expand=expand, backend=backend)

    def scan(self, tokens: Tensor, sentence: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, H * W, C) and sentence (B, T) -> z (B, H * W, C). Nothing crosses a window's border."""
        window = (self.window, self.window) if self.window else grid
        if window[0] > grid[0] or window[1] > grid[1]:
            raise ValueError(f"window {window[0]} is larger than the grid {grid[0]} x {grid[1]}")
        if self._is_fused(tokens.device.type):
            return self._fuse(tokens, sentence, grid, window)
        windows = window_partition(tokens, *grid, window)
        text = None
        if self.text is not None:
            text = self.text(sentence).repeat_interleave(len(windows) // len(tokens), dim=0)[:, None]
        if self.mamba is not None:
            mixed = self._mix(self.mamba, text, windows)
        elif self.attention is not None:
            mixed = self._attend(self.attention, text, windows, window_padding(*grid, window))
        else:
            mixed = self.norm(windows)
        if self.backwards is not None:
            order = (
                window_reversal(*grid, window).to(tokens.device).repeat(len(tokens), 1)[..., None].expand_as(windows)
            )
            mixed = mixed + self._mix(self.backwards, text, windows.gather(1, order)).gather(1, order)
        return window_unpartition(mixed, *grid, window)

    def _is_fused(self, device: str) -> bool:
        """Whether the Mamba block's backend cuts the windows itself; it knows no text token but the first."""
        if self.mamba is None or self.text_token != "first":
            return False
        return choose_backend(self.mamba.backend, device).backend == "triton"

    def _fuse(self, tokens: Tensor, sentence: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
        """`scan` without cutting the map: the norm looks at each token alone, so that it comes before the cut too."""
        assert self.mamba is not None and self.text is not None
        tokens, text = self.norm(tokens), self.norm(self.text(sentence))[:, None]
        cells = window_cells(*grid, window)
        mixed = self.mamba.fuse_windows(tokens, text, cells.to(tokens.device))
        if self.backwards is not None:
            turned = cells.gather(1, window_reversal(*grid, window))
            mixed = mixed + self.backwards.fuse_windows(tokens, text, turned.to(tokens.device))
        return mixed

    def _sequence(self, text: Tensor | None, windows: Tensor) -> tuple[Tensor, slice]:
        """The tokens of every window with its text token, and where the visual ones stand."""
        before = [text] if text is not None and self.text_token in ("first", "both") else []
        after = [text] if text is not None and self.text_token in ("last", "both") else []
        return torch.cat([*before, windows, *after], dim=1), slice(len(before), len(before) + windows.shape[1])

    def _mix(self, mamba: Mamba, text: Tensor | None, windows: Tensor) -> Tensor:
        sequence, visual = self._sequence(text, windows)
        return mamba(self.norm(sequence))[:, visual]

    def _attend(
        self, attention: nn.MultiheadAttention, text: Tensor | None, windows: Tensor, padding: Tensor
    ) -> Tensor:
        sequence, visual = self._sequence(text, windows)
        masked = torch.zeros(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
        masked[:, visual] = padding.to(sequence.device).repeat(len(windows) // len(padding), 1)
        sequence = self.norm(sequence)
        return attention(sequence, sequence, sequence, key_padding_mask=masked, need_weights=False)[0][:, visual]

    def forward(self, fused: Tensor, words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """Map (B, C, H, W), words (B, L, T), sentence (B, T), padding (B, L) -> (B, C, H, W)."""
        grid = (fused.shape[2], fused.shape[3])
        z = self.scan(fused.flatten(2).transpose(1, 2), sentence, grid)
        gated = fused + self.gate(z, words, sentence, padding).transpose(1, 2).unflatten(2, grid)
        return gated + self.coordinates(gated)


class Neck(nn.Module):
    """HMF: the three stages, concatenated and brought to C channels by a 1x1 convolution, then WMF; `fusion` None is
    "no neck".
    """

    def __init__(self, vision_width: int, width: int, fusion: WindowMambaFusion | None) -> None:
        super().__init__()
        self.aggregate = conv_norm_relu(3 * vision_width, width, 1)
        self.fusion = fusion

    def forward(self, stages: list[Tensor], words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """Three stages (B, D, H, W), words (B, L, T), sentence (B, T), padding (B, L) -> (B, C, H, W)."""
        fused = self.aggregate(torch.cat(stages, dim=1))
        return fused if self.fusion is None else self.fusion(fused, words, sentence, padding)
