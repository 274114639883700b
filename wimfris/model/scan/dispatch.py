"""The scan, the convolution before it and the scan of windows, each by the backend that `choose_backend` returns."""

from typing import Protocol

from torch import Tensor

from wimfris.kernels.ops import fused_conv, fused_scan, load_backend
from wimfris.model.scan import reference
from wimfris.model.scan.backends import check_conv, choose_backend
from wimfris.model.windows import join_sentence, join_words, take, window_index, window_partition, window_unpartition

READS_WINDOWS = ("triton",)  # backends whose kernels read the windows from the map, led by the text token


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    *, backend: str = "auto",
) -> Tensor:  # fmt: skip
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
    """What `scan_windows` needs of a mixing's block.

    A block that has `forward_windows` and a `backend` can also read the windows from the map; see `Mamba`.
    """

    def __call__(self, x: Tensor, padding: Tensor) -> Tensor:
        """Run over sequences (batch, L, C), padding (batch, L) True at no token, -> (batch, L, C)."""


def scan_windows(
    tokens: Tensor,
    text: Tensor | None,
    grid: tuple[int, int],
    window: tuple[int, int],
    *,
    block: Block,
    text_token: str = "first",
    absent: Tensor | None = None,
    order: str = "raster",
    shift: tuple[int, int] = (0, 0),
) -> Tensor:
    """Run a block over every window of a map, each a sequence of its own: tokens (B, H * W, C) -> the same.

    text (B, P, C) joins every window of its image: its sentence where `text_token` says (see `join_sentence`), or its
    words, with absent (B, P) True at padding, in front (`words`). order and shift: see `wimfris.model.windows`.
    """
    cells, places = window_index(*grid, window, order, shift, device=tokens.device)
    in_place = getattr(block, "forward_windows", None)
    if in_place is not None and text is not None and text_token == "first":
        backend: str = block.backend  # type: ignore[attr-defined]
        if choose_backend(backend, tokens.device.type).backend in READS_WINDOWS:
            return in_place(tokens, text, cells.int())
    windows, padding = window_partition(tokens, cells), (cells < 0).repeat(len(tokens), 1)
    if text is not None:
        text = text.repeat_interleave(len(cells), dim=0)
    if text is not None and absent is not None and text_token == "words":
        sequences, padding, own = join_words(windows, padding, text, absent.repeat_interleave(len(cells), dim=0))
        mixed = take(block(sequences, padding), own)
    else:
        sequences, padding, span = join_sentence(windows, padding, text, text_token)
        mixed = block(sequences, padding)[:, span]
    return window_unpartition(mixed, cells, places)
