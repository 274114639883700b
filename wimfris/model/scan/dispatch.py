"""The scan, the convolution before it and the scan of windows, each by the backend that `choose_backend` returns."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from wimfris.kernels.ops import fused_conv, fused_scan, load_backend
from wimfris.model.scan import reference
from wimfris.model.scan.backends import check_conv, choose_backend
from wimfris.model.windows import (
    window_cells,
    window_partition,
    window_reversal,
    window_sequences,
    window_unpartition,
)

READS_WINDOWS = ("triton",)  # backends whose kernels read the windows from the map, led by the text token


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Scan sequences: u, delta, z (batch, L, D); A (D, N); B, C (batch, L, N); D, delta_bias (D,) -> (batch, L, D).

    The output has u's dtype. Under autocast, `cpu` and `triton` cast u, delta, B, C and z to its dtype, and the output
    has it. The state has A's precision or better; in `triton` and `mamba_ssm` it is float32.
    """
    batch, length, width = u.shape
    backend = choose_backend(backend, u.device.type, (batch, length, width, A.shape[1]), A.dtype).backend
    if backend == "reference":
        return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias)
    if backend == "mamba_ssm":
        return load_backend(backend).selective_scan(u, delta, A, B, C, D, z, delta_bias)
    return fused_scan(u, delta, A, B, C, D, z, delta_bias, backend=backend)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """Return SiLU(causal depthwise convolution): x (batch, L, D), weight (D, 1, K), bias (D,) -> (batch, L, D).

    Position t sees the K positions up to t.
    """
    backend = choose_backend(backend, x.device.type, dtype=weight.dtype).backend
    if backend == "reference":
        return reference.causal_conv_silu(x, weight, bias)
    check_conv(backend, weight.shape[-1], weight.shape[0])
    if backend == "mamba_ssm":
        return load_backend(backend).causal_conv_silu(x, weight, bias)
    return fused_conv(x, weight, bias, backend=backend)


class Block(Protocol):
    """What `scan_windows` needs of a Mamba block."""

    backend: str

    def __call__(self, x: Tensor) -> Tensor:
        """Run over sequences: (batch, L, C) -> (batch, L, C)."""

    def forward_windows(self, tokens: Tensor, text: Tensor, cells: Tensor) -> Tensor:
        """Run over the windows of a map, by kernels that read them from it; see `Mamba.forward_windows`."""


def scan_windows(
    tokens: Tensor,
    text: Tensor | None,
    grid: tuple[int, int],
    window: tuple[int, int],
    *,
    block: Block,
    backwards: Block | None = None,
    norm: Callable[[Tensor], Tensor],
    text_token: str = "first",
) -> Tensor:
    """Run a Mamba block over every window of a map, each a sequence of its own: tokens (B, H * W, C) -> the same.

    text (B, C) is each image's text token; it joins every window where `text_token` says (see `window_sequences`).
    backwards: a second block, over the windows in reverse, whose output is added. norm: acts on single tokens, before
    either block.
    """
    backend = choose_backend(block.backend, tokens.device.type).backend
    if backend in READS_WINDOWS and text is not None and text_token == "first":
        return _scan_in_place(tokens, text, grid, window, block, backwards, norm)
    windows = window_partition(tokens, *grid, window)
    if text is not None:
        text = text.repeat_interleave(len(windows) // len(tokens), dim=0)[:, None]

    def run(block: Block, windows: Tensor) -> Tensor:
        sequences, own = window_sequences(windows, text, text_token)
        return block(norm(sequences))[:, own]

    mixed = run(block, windows)
    if backwards is not None:
        order = window_reversal(*grid, window, device=tokens.device)
        mixed = mixed + _reorder(run(backwards, _reorder(windows, order)), order)
    return window_unpartition(mixed, *grid, window)


def _reorder(windows: Tensor, order: Tensor) -> Tensor:
    """Reorder the tokens within each window: windows (B * n_win, M, C), order (n_win, M) -> (B * n_win, M, C).

    `torch.gather` would do, but its gradient has no deterministic CUDA kernel; that of an index has one.
    """
    starts = torch.arange(len(order), device=order.device)[:, None] * order.shape[1]
    return windows.reshape(-1, order.numel(), windows.shape[-1])[:, starts + order].flatten(0, 1)


def _scan_in_place(
    tokens: Tensor,
    text: Tensor,
    grid: tuple[int, int],
    window: tuple[int, int],
    block: Block,
    backwards: Block | None,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """`scan_windows` without cutting the map: the kernels read and write it through an index."""
    tokens, text = norm(tokens), norm(text)[:, None]
    cells = window_cells(*grid, window, device=tokens.device)
    mixed = block.forward_windows(tokens, text, cells)
    if backwards is not None:
        cells = cells.gather(1, window_reversal(*grid, window, device=tokens.device))
        mixed = mixed + backwards.forward_windows(tokens, text, cells)
    return mixed
