"""The fused scans as operations of torch: one forward and one backward, which torch.compile and the counter of
operations see as such, whatever runs inside.

`backend` names what runs: `cpu` (compiled by numba) or `triton`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

CHUNK = 32  # tokens from one kept state to the next on a CPU
GPU_CHUNK = 16  # by Triton, from a sequence's second token on


def _module(backend: str) -> Any:
    """Imported when first used: numba and Triton take a second or two."""
    if backend == "triton":
        from wimfris.kernels import triton

        return triton
    from wimfris.kernels import cpu

    return cpu


def kept_states(length: int, backend: str) -> int:
    """How many states of a sequence the forward keeps for the backward."""
    return max(length - 2, 0) // GPU_CHUNK if backend == "triton" else (length - 1) // CHUNK


def evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    """(batch, L, width) whose tokens all lie at one distance, channels side by side, and that distance; copied only
    where it must be.
    """
    step = x.stride(1)
    if x.is_contiguous():
        step = x.shape[2]  # the stride of a dimension of one token says nothing
    elif x.stride(2) != 1 or x.stride(0) != x.shape[1] * step or step < x.shape[2]:
        x, step = x.contiguous(), x.shape[2]
    return x, step


@torch.library.custom_op("wimfris::fused_scan", mutates_args=())
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    keep: bool,
    backend: str,
    cells: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and with `keep` the states before every chunk but the first: (batch, chunks - 1, N, D)."""
    found: tuple[Tensor, Tensor] = _module(backend).scan(u, delta, A, B, C, D, z, delta_bias, keep, cells)
    return found


@_forward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    keep: bool,
    backend: str,
    cells: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, length, width = u.shape
    starts = A.new_empty(batch, kept_states(length, backend) if keep else 0, A.shape[1], width)
    return u.new_empty(z.shape), starts


@torch.library.custom_op("wimfris::fused_scan_backward", mutates_args=())
def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    starts: Tensor,
    backend: str,
    cells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by the eight inputs, each in its input's dtype."""
    found: Any
    if not len(u):
        found = tuple(torch.zeros_like(x) for x in (u, delta, A, B, C, D, z, delta_bias))
        return found
    found = _module(backend).scan_backward(grad, u, delta, A, B, C, D, z, delta_bias, starts, cells)
    return found


@_backward.register_fake
def _(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    starts: Tensor,
    backend: str,
    cells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    found: Any = tuple(x.new_empty(x.shape) for x in (u, delta, A, B, C, D, z, delta_bias))
    return found


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.backend, cells = inputs
    ctx.save_for_backward(*tensors, output[1], cells)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(True)


def _derive(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, cells = ctx.saved_tensors
    return *_backward(grad, *tensors, ctx.backend, cells), None, None, None


_forward.register_autograd(_derive, setup_context=_setup)


def fused_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    *,
    backend: str,
    cells: Tensor | None = None,
) -> Tensor:
    """`wimfris.model.scan.selective_scan` by a fused backend. The state has A's precision, at least float32; in Triton
    it is float32.

    With `cells` (n_win, M), int32, Triton alone: u, delta, B, C hold the windows' sequences (images * n_win, M + 1, ..)
    with a text token in front, but z and the output are the map's (images, H * W, D). Token t > 0 of a window is the
    map's row cells[window, t - 1], padding where that is negative.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if A.dtype not in (torch.float32, torch.float64) or backend == "triton":
        A = A.float()
    return _forward(u, delta, A, B, C, D, z, delta_bias, keep, backend, cells)[0]


# --- the convolution before the scan ----------------------------------------------------------------------------------


@torch.library.custom_op("wimfris::causal_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None) -> Tensor:
    found: Tensor = _module(backend).conv(x, weight, bias, text, cells)
    return found


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None) -> Tensor:
    if cells is None:
        return x.new_empty(x.shape)
    return x.new_empty(len(x) * cells.shape[0], cells.shape[1] + 1, x.shape[2])


@torch.library.custom_op("wimfris::causal_conv_backward", mutates_args=())
def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by x, weight, bias and text; the last is of size 0 where there is none."""
    found: Any
    if not len(x):
        found = tuple(x.new_empty(0) if of is None else torch.zeros_like(of) for of in (x, weight, bias, text))
        return found
    found = _module(backend).conv_backward(grad, x, weight, bias, text, cells)
    return found


@_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_text = x.new_empty(0) if text is None else text.new_empty(text.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), by_text


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend, cells = inputs
    ctx.save_for_backward(*tensors, cells)


def _conv_derive(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *tensors, text, cells = ctx.saved_tensors
    *others, by_text = _conv_backward(grad, *tensors, text, ctx.backend, cells)
    return *others, None if text is None else by_text, None, None


_conv.register_autograd(_conv_derive, setup_context=_conv_setup)


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    text: Tensor | None = None,
    *,
    backend: str,
    cells: Tensor | None = None,
) -> Tensor:
    """`wimfris.model.scan.causal_conv_silu` by a fused backend.

    With `cells` (see `fused_scan`), Triton alone, x is a map (images, H * W, D) and text (images, 1, D) the token
    before every window: -> (images * n_win, M + 1, D), the windows cut and led by their text.
    """
    return _conv(x, weight, bias, text, backend, cells)


# --- autocast ---------------------------------------------------------------------------------------------------------

_library = torch.library.Library("wimfris", "IMPL")


def _cast(name: str, narrow: tuple[int, ...], device: str) -> None:
    """Under autocast on a device an operation takes its `narrow` arguments, what tokens have, in autocast's dtype. The
    parameters, and so the state and all sums, keep theirs: `torch.library.register_autocast` would round A too.
    """
    operation: Callable[..., Any] = getattr(torch.ops.wimfris, name)

    def call(*arguments: Any) -> Any:
        cast = list(arguments)
        for place in narrow:
            x = cast[place]
            if x is not None and x.dtype != torch.float64:  # as torch's own operations do
                cast[place] = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return operation(*cast)

    _library.impl(name, call, f"Autocast{device.upper()}")


for _device in ("cpu", "cuda"):
    _cast("fused_scan", (0, 1, 3, 4, 6), _device)  # u, delta, B, C, z
    _cast("causal_conv", (0, 3), _device)  # x, text


# --- operations -------------------------------------------------------------------------------------------------------


def conv_flops(batch: int, length: int, inner: int, taps: int) -> int:
    """Operations of the causal depthwise convolution on (batch, length, inner): a multiply-add a tap, token and
    channel, as torch counts a convolution.
    """
    return 2 * batch * length * inner * taps


def scan_flops(batch: int, length: int, inner: int, state: int) -> int:
    """Operations of the selective scan on (batch, length, inner) with `state` states a channel: B L D (9 N + 2), 9 N a
    token and channel as Mamba's authors count it (https://github.com/state-spaces/mamba/issues/110), one for the skip
    and one for the gate.
    """
    return batch * length * inner * (9 * state + 2)


@register_flop_formula(torch.ops.wimfris.fused_scan)
def _forward_flops(u: tuple[int, ...], delta: tuple[int, ...], A: tuple[int, ...], *_: Any, **__: Any) -> int:
    return scan_flops(u[0], u[1], u[2], A[1])


@register_flop_formula(torch.ops.wimfris.fused_scan_backward)
def _backward_flops(
    grad: tuple[int, ...], u: tuple[int, ...], delta: tuple[int, ...], A: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Twice the forward's, by the rule for products, and the forward again: the states are recomputed."""
    return 3 * scan_flops(u[0], u[1], u[2], A[1])


@register_flop_formula(torch.ops.wimfris.causal_conv)
def _conv_flops(
    x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, int, int], **__: Any
) -> int:
    return conv_flops(*out_shape, weight[-1])


@register_flop_formula(torch.ops.wimfris.causal_conv_backward)
def _conv_backward_flops(
    grad: tuple[int, int, int], x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """As of the scan: twice the forward's, and the forward again."""
    return 3 * conv_flops(*grad, weight[-1])
