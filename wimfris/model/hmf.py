"""HMF, the neck: one map from three stages, fused with the sentence window by window (WMF).

A mixing is a module with `mixing(width, *, heads, state, conv, expand, backend) -> nn.Module`. It returns a block from
sequences (batch, L, width) and their padding (batch, L) to (batch, L, width). To add one, write its module and add a
line to `MIXINGS`. A module is imported only for a run that uses it.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wimfris.model.layers import CoordConv, conv_norm_relu
from wimfris.model.scan import scan_windows
from wimfris.model.windows import ORDERS

MIXINGS = {
    "ssm": "wimfris.model.mamba",
    "ssd": "wimfris.model.mamba2",
    "attention": "wimfris.model.window_attention",
}


def load_mixing(name: str) -> Any:
    """Import the module of a mixing."""
    return importlib.import_module(MIXINGS[name])


class Gate(nn.Module):
    """The factor of the scan's output: attention to the words, attention to the sentence alone, or none.

    Attention over the one key of `text` has weight 1 whatever the query: it is a gate per channel made from the
    sentence, as in DETRIS.
    """

    def __init__(self, kind: Literal["attention", "text", "none"], width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.attention = nn.MultiheadAttention(width, heads, kdim=text_width, vdim=text_width, batch_first=True)

    def forward(self, z: Tensor, words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """Return z * gate(z) for z (B, H * W, C)."""
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

    window: its side in cells; None is the whole grid, one sequence of H * W + 1 tokens ("no window"). Several windows
    share the channels evenly, and each has blocks of its own for its group of channels.
    text_token: the place of t in the sequence. Behind the visual tokens, a causal scan never shows t to them. `words`:
    all projected words stand in front instead of t; those that are padding change nothing.
    direction: `bidirectional` adds a second block's scan over the visual tokens in reverse; t stays in its place.
    `cross` adds two more: by columns, and by columns in reverse.
    passes: a second pass runs the same blocks over F + z, in windows whose borders are moved by half a window, and its
    output is added to z. It needs no parameters. A window as large as the grid does not move.
    mixing: the block, one of `MIXINGS`, or `none` (z = norm(F)).
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        *,
        window: int | Sequence[int | None] | None,
        gate: Literal["attention", "text", "none"],
        norm: bool,
        heads: int,
        state: int,
        conv: int,
        expand: int,
        text_token: Literal["first", "last", "both", "none", "words"] = "first",
        direction: Literal["raster", "bidirectional", "cross"] = "raster",
        passes: int = 1,
        mixing: str = "ssm",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.windows = (window,) if window is None or isinstance(window, int) else tuple(window)
        self.text_token, self.passes = text_token, passes
        self.text = nn.Linear(text_width, width) if text_token != "none" and mixing != "none" else None
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

        def block() -> Any:
            """Return a block, or one for each window."""
            sizes: dict[str, Any] = {"heads": heads, "state": state, "conv": conv, "expand": expand}
            groups = len(self.windows)
            parts = [load_mixing(mixing).mixing(width // groups, **sizes, backend=backend) for _ in self.windows]
            return parts[0] if groups == 1 else nn.ModuleList(parts)

        # `mamba` is the first block of every mixing: the shipped weights have its name
        self.mamba = None if mixing == "none" else block()
        self.gate = Gate(gate, width, text_width, heads)
        self.coordinates = CoordConv(width)
        # last, so that the others start as they do without it
        both, four = mixing != "none" and direction != "raster", mixing != "none" and direction == "cross"
        self.backwards = block() if both else None
        self.down = block() if four else None
        self.up = block() if four else None

    def scan(self, tokens: Tensor, text: Tensor, grid: tuple[int, int], padding: Tensor | None = None) -> Tensor:
        """Mix the tokens of each window: tokens (B, H * W, C) -> z (B, H * W, C).

        text: the sentence (B, T); for `words`, the words (B, L, T), with padding (B, L), True at padding.
        Nothing crosses a window's border within a pass. Raises ValueError where a window is larger than the grid.
        """
        for window in self.windows:
            if window is not None and window > min(grid):
                raise ValueError(f"window {window} is larger than the grid {grid[0]} x {grid[1]}")
        if self.mamba is None:
            return self.norm(tokens)
        prefix = None if self.text is None else self.norm(self.text(text if text.dim() == 3 else text[:, None]))
        z = self._pass(self.norm(tokens), prefix, padding, grid, moved=False)
        if self.passes == 2:
            z = z + self._pass(self.norm(tokens + z), prefix, padding, grid, moved=True)
        return z

    def _pass(
        self, tokens: Tensor, text: Tensor | None, padding: Tensor | None, grid: tuple[int, int], *, moved: bool
    ) -> Tensor:
        """Scan each group of channels in its windows: tokens (B, H * W, C), text (B, P, C), normed -> (B, H * W, C).

        moved: whether the borders of windows are moved by half a window.
        """
        groups = len(self.windows)
        parts = tokens.chunk(groups, dim=-1)
        texts = [None] * groups if text is None else text.chunk(groups, dim=-1)
        mixed = [self._scan_group(k, parts[k], texts[k], padding, grid, moved) for k in range(groups)]
        return mixed[0] if groups == 1 else torch.cat(mixed, dim=-1)

    def _scan_group(
        self,
        group: int,
        tokens: Tensor,
        text: Tensor | None,
        padding: Tensor | None,
        grid: tuple[int, int],
        moved: bool,
    ) -> Tensor:
        """Add the outputs of a group's blocks."""
        side = self.windows[group]
        window = grid if side is None else (side, side)
        rows, columns = (w // 2 if moved and w < cells else 0 for w, cells in zip(window, grid, strict=True))
        mixed: Tensor | None = None
        for order, blocks in zip(ORDERS, (self.mamba, self.backwards, self.down, self.up), strict=True):
            if blocks is not None:
                z = scan_windows(
                    tokens,
                    text,
                    grid,
                    window,
                    block=blocks if len(self.windows) == 1 else blocks[group],
                    text_token=self.text_token,
                    absent=padding,
                    order=order,
                    shift=(rows, columns),
                )
                mixed = z if mixed is None else mixed + z
        assert mixed is not None
        return mixed

    def forward(self, fused: Tensor, words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """Map (B, C, H, W), words (B, L, T), sentence (B, T), padding (B, L) -> (B, C, H, W)."""
        grid = (fused.shape[2], fused.shape[3])
        text = words if self.text_token == "words" else sentence
        z = self.scan(fused.flatten(2).transpose(1, 2), text, grid, padding)
        gated = fused + self.gate(z, words, sentence, padding).transpose(1, 2).unflatten(2, grid)
        return gated + self.coordinates(gated)


class Neck(nn.Module):
    """HMF: the three stages, concatenated and projected to C channels by a 1x1 convolution, then WMF.

    `fusion` None is "no neck".
    """

    def __init__(self, vision_width: int, width: int, fusion: WindowMambaFusion | None) -> None:
        super().__init__()
        self.aggregate = conv_norm_relu(3 * vision_width, width, 1)
        self.fusion = fusion

    def forward(self, stages: list[Tensor], words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """Three stages (B, D, H, W), words (B, L, T), sentence (B, T), padding (B, L) -> (B, C, H, W)."""
        fused = self.aggregate(torch.cat(stages, dim=1))
        return fused if self.fusion is None else self.fusion(fused, words, sentence, padding)


def neck(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the neck `hmf`, or `none`; see `wimfris.rivals.families`."""
    hmf, fusion = model.hmf, None
    if model.neck == "hmf":
        fusion = WindowMambaFusion(
            hmf.width,
            text_width,
            window=[None if window == "grid" else window for window in hmf.windows],
            text_token=hmf.text_token,
            direction=hmf.direction,
            passes=hmf.passes,
            mixing=hmf.mixing,
            gate=hmf.gate,
            norm=hmf.norm,
            heads=hmf.heads,
            state=hmf.state,
            conv=hmf.conv,
            expand=hmf.expand,
            backend=model.scan,
        )
    return Neck(vision_width, hmf.width, fusion)
