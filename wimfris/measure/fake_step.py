"""One training step on fake tensors, which have shapes and no numbers: nothing is computed, and no memory is needed."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.timing import training_step
from wimfris.model.tables import forget_tables
from wimfris.settings.schema import Settings

ALIGNED = 8  # torch pads a mask to a multiple of it for its memory-efficient attention


def watch_step(settings: Settings, batch: int, watcher: TorchDispatchMode, *, as_on_cuda: bool = False) -> None:
    """Run a training step, forward to update, on fake CPU tensors. The watcher sees every operator.

    as_on_cuda: call the operators that autocast and attention choose on CUDA, and let Triton's kernels pass.
    """
    forget_tables()
    try:
        segmenter = blank_segmenter(settings)  # on `meta`: drawing initial weights needs numbers
        with _as_on_cuda() if as_on_cuda else nullcontext(), FakeTensorMode(allow_non_fake_inputs=True):
            step = training_step(segmenter.to_empty(device="cpu"), settings, torch.device("cpu"), batch)
            with watcher:
                step()
    finally:
        forget_tables()


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Call the fused attention that torch chooses on CUDA, and cast to float32 where CUDA's autocast does."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"TRITON_INTERPRET": "1"}))  # fake tensors run no kernel
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attend))
        for name in ("layer_norm", "softmax", "softplus"):  # on a CPU, autocast leaves these in half precision
            stack.enter_context(patch.object(F, name, partial(_in_float32, getattr(F, name))))
        yield


def _in_float32(function: Callable[..., Tensor], x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return function(x.float() if torch.is_autocast_enabled("cpu") else x, *arguments, **options)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    assert not enable_gqa
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output: Tensor
    if attn_mask is None and dtype != torch.float32:  # flash
        output, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
        return output
    bias = None
    if attn_mask is not None:
        padded = -(-key.shape[2] // ALIGNED) * ALIGNED
        shape = (*query.shape[:3], key.shape[2])
        bias = F.pad(attn_mask.to(dtype), (0, padded - key.shape[2]))[..., : key.shape[2]].expand(shape)
    save = query.requires_grad or key.requires_grad or value.requires_grad
    output, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, save, dropout_p, is_causal, scale=scale
    )
    return output
