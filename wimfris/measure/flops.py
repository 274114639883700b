"""Floating-point operations of a model, counted by part on a model without weights.

torch's `FlopCounterMode` counts matrix products, convolutions and attention, two operations a multiply-add. Elementwise
operations are left out. The selective scan counts as Mamba's authors count it
(https://github.com/state-spaces/mamba/issues/110; `wimfris.model.scan.scan_flops`):

    B L D (9 N + 2)

for B sequences of L tokens, D channels and N states: 9 N for discretisation, recurrence and readout, one for the skip
D u, one for the gate. The causal convolution before the scan counts as any other convolution. Mamba-2's scan is made of
matrix products and counts as they do; its share is in the neck's, not in the scans'.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.model import mamba, mamba2
from wimfris.model.scan import conv_flops, fused_conv, fused_scan, scan_flops
from wimfris.settings.schema import Settings
from wimfris.training.build import build_loss

PARTS = ("text", "vision", "neck", "decoder", "projector")


def count_flops(settings: Settings) -> dict[str, int]:
    """Return the operations of one image and sentence: part -> number.

    `text` and `vision` include their adapters; `adapters` is the share of both encoders' adapters, `scan` that of all
    selective scans.
    """
    segmenter = blank_segmenter(settings).eval()
    inputs = example(segmenter, settings, 1, "meta")
    with counting() as counter:
        segmenter(*inputs)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(segmenter).__name__
    flops = {part: by_module.get(f"{root}.{part}", 0) for part in PARTS}
    flops["adapters"] = sum(
        by_module.get(f"{root}.{name}.adapters.{layer}", 0)
        for name, encoder in (("text", segmenter.text), ("vision", segmenter.vision))
        for layer in encoder.adapters
    )
    scan: Any = torch.ops.wimfris.fused_scan
    return {**flops, "scan": counter.get_flop_counts()["Global"].get(scan, 0), "total": counter.get_total_flops()}


def count_step_flops(settings: Settings, batch: int) -> int:
    """Return the operations of one training step, forward and backward.

    Frozen weights have no gradients, and backward stops at the first adapter. Operations that gradient checkpointing
    repeats are not counted. The backward of a scan, or of the convolution before it, counts twice its forward.
    """
    train = settings.train.model_copy(update={"gradient_checkpointing": False})
    segmenter = blank_segmenter(settings.model_copy(update={"train": train})).train()
    inputs = example(segmenter, settings, batch, "meta")
    size = settings.data.image_size
    forward: list[int] = []

    # Stand-ins with the right shape and a gradient for every input, made of operations that are not counted.
    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, **_: Any
    ) -> Tensor:
        batch, length, inner = u.shape
        forward.append(scan_flops(batch, length, inner, A.shape[1]))
        return u * delta * z + (B + C).sum(-1, keepdim=True) + D + bias + A.sum(-1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, **_: Any) -> Tensor:
        batch, length, inner = x.shape
        forward.append(conv_flops(batch, length, inner, weight.shape[-1]))
        return x * weight.sum((1, 2)) + bias

    with sdpa_kernel(SDPBackend.MATH), _mamba_with(scan, conv), FlopCounterMode(display=False) as counter:
        output = segmenter(*inputs)
        build_loss(settings)(output, torch.zeros(batch, 1, size, size, device="meta")).total.backward()
    return counter.get_total_flops() + 3 * sum(forward)


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the operations within the `with` block, without gradients, on the CPU or `meta`.

    Attention runs as its matrix products, because the counter does not know the CPU's fused kernels.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            _mamba_with(_countable_scan, _countable_conv),
            FlopCounterMode(display=False) as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _countable_scan(*arguments: Tensor, backend: str = "auto") -> Tensor:
    """Run the scan as one operation with a known count, whatever the block's backend."""
    return fused_scan(*arguments, backend="cpu")


def _countable_conv(*arguments: Tensor, backend: str = "auto") -> Tensor:
    """Run the convolution before the scan as one operation with a known count."""
    return fused_conv(*arguments, backend="cpu")


@contextlib.contextmanager
def _mamba_with(scan: Callable[..., Tensor], conv: Callable[..., Tensor]) -> Iterator[None]:
    """Replace `selective_scan` and `causal_conv_silu` of Mamba blocks within the `with` block."""
    original = mamba.selective_scan, mamba.causal_conv_silu, mamba2.causal_conv_silu
    mamba.selective_scan, mamba.causal_conv_silu, mamba2.causal_conv_silu = scan, conv, conv
    try:
        yield
    finally:
        mamba.selective_scan, mamba.causal_conv_silu, mamba2.causal_conv_silu = original
