"""The fused scan and convolution as torch operations, each with its backward, whatever backend runs inside.

torch.compile and the counter of operations see each as one operation.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from wimfris.kernels.layout import saved_states

BACKENDS = {
    "cpu": "wimfris.kernels.cpu",
    "triton": "wimfris.kernels.triton",
    "mamba_ssm": "wimfris.kernels.mamba_ssm",
}


def load_backend(name: str) -> Any:
    """Import a backend's module on first use: numba and Triton take a second or two."""
    return importlib.import_module(BACKENDS[name])


@torch.library.custom_op("wimfris::fused_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    save: bool, backend: str, cells: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output, and with `save` the states before every chunk but the first: (batch, chunks - 1, N, D)."""
    result: tuple[Tensor, Tensor] = load_backend(backend).scan(u, delta, A, B, C, D, z, delta_bias, save, cells)
    return result


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _, _, _, z, _, save, backend, _ = others
    states = A.new_empty(u.shape[0], saved_states(u.shape[1], backend) if save else 0, A.shape[1], u.shape[2])
    return u.new_empty(z.shape), states


@torch.library.custom_op("wimfris::fused_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    states: Tensor, backend: str, cells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the derivatives by the first eight inputs, each in its input's dtype."""
    result: Any
    if not len(u):
        result = tuple(torch.zeros_like(x) for x in (u, delta, A, B, C, D, z, delta_bias))
        return result
    result = load_backend(backend).scan_backward(grad, u, delta, A, B, C, D, z, delta_bias, states, cells)
    return result


@_scan_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:8])


def _save_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.backend, cells = inputs
    ctx.save_for_backward(*tensors, output[1], cells)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(True)


def _derive_scan(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, cells = ctx.saved_tensors
    return *_scan_backward(grad, *tensors, ctx.backend, cells), None, None, None


_scan.register_autograd(_derive_scan, setup_context=_save_scan)


def fused_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    *, backend: str, cells: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run `wimfris.model.scan.selective_scan` by `cpu` or `triton`.

    The state has A's precision and at least float32; in Triton it is float32.

    cells (n_win, M), int32, Triton only: u, delta, B and C are the windows' sequences (images * n_win, M + 1, ...),
    each led by a text token, but z and the output are the map's (images, H * W, D). Token t > 0 of a window is the
    map's token cells[window, t - 1], or padding where that is negative.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if A.dtype not in (torch.float32, torch.float64) or backend == "triton":
        A = A.float()
    return _scan(u, delta, A, B, C, D, z, delta_bias, save, backend, cells)[0]


# --- the convolution before the scan ----------------------------------------------------------------------------------


@torch.library.custom_op("wimfris::causal_conv", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None) -> Tensor:
    result: Tensor = load_backend(backend).conv(x, weight, bias, text, cells)
    return result


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None) -> Tensor:
    if cells is None:
        return x.new_empty(x.shape)
    return x.new_empty(len(x) * cells.shape[0], cells.shape[1] + 1, x.shape[2])


@torch.library.custom_op("wimfris::causal_conv_backward", mutates_args=())
def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by x, weight, bias and text; the last has size 0 where there is no text."""
    result: Any
    if not len(x):
        inputs = (x, weight, bias, text)
        result = tuple(x.new_empty(0) if tensor is None else torch.zeros_like(tensor) for tensor in inputs)
        return result
    result = load_backend(backend).conv_backward(grad, x, weight, bias, text, cells)
    return result


@_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None, backend: str, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_text = x.new_empty(0) if text is None else text.new_empty(text.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), by_text


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend, cells = inputs
    ctx.save_for_backward(*tensors, cells)


def _derive_conv(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *tensors, text, cells = ctx.saved_tensors
    *others, by_text = _conv_backward(grad, *tensors, text, ctx.backend, cells)
    return *others, None if text is None else by_text, None, None


_conv.register_autograd(_derive_conv, setup_context=_save_conv)


def fused_conv(
    x: Tensor, weight: Tensor, bias: Tensor, text: Tensor | None = None, *, backend: str, cells: Tensor | None = None
) -> Tensor:
    """Run `wimfris.model.scan.causal_conv_silu` by `cpu` or `triton`.

    With `cells` (see `fused_scan`; Triton only), x is a map (images, H * W, D) and text (images, 1, D) the token in
    front of every window. The output is the windows' sequences, (images * n_win, M + 1, D).
    """
    return _conv(x, weight, bias, text, backend, cells)


# --- autocast ---------------------------------------------------------------------------------------------------------

_library = torch.library.Library("wimfris", "IMPL")


def _register_autocast(name: str, narrow: tuple[int, ...], device: str) -> None:
    """Under autocast on `device`, cast the arguments at the places `narrow` of an operation to autocast's dtype.

    Those are what tokens have. The parameters, and so the state and all sums, keep their dtype:
    `torch.library.register_autocast` would round A too.
    """
    operation: Callable[..., Any] = getattr(torch.ops.wimfris, name)

    def call(*arguments: Any) -> Any:
        cast = list(arguments)
        for place in narrow:
            x = cast[place]
            if x is not None and x.dtype != torch.float64:  # as in torch's own operations
                cast[place] = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return operation(*cast)

    _library.impl(name, call, f"Autocast{device.upper()}")


for _device in ("cpu", "cuda"):
    _register_autocast("fused_scan", (0, 1, 3, 4, 6), _device)  # u, delta, B, C, z
    _register_autocast("causal_conv", (0, 3), _device)  # x, text


# --- floating-point operations ----------------------------------------------------------------------------------------


def conv_flops(batch: int, length: int, inner: int, taps: int) -> int:
    """Return the operations of the causal depthwise convolution on (batch, length, inner).

    A multiply-add for each tap, token and channel, as torch counts a convolution.
    """
    return 2 * batch * length * inner * taps


def scan_flops(batch: int, length: int, inner: int, state: int) -> int:
    """Return the operations of the selective scan on (batch, length, inner) with `state` states a channel.

    B L D (9 N + 2): 9 N for each token and channel, as Mamba's authors count
    (https://github.com/state-spaces/mamba/issues/110), one for the skip and one for the gate.
    """
    return batch * length * inner * (9 * state + 2)


@register_flop_formula(torch.ops.wimfris.fused_scan)
def _scan_formula(u: tuple[int, ...], delta: tuple[int, ...], A: tuple[int, ...], *_: Any, **__: Any) -> int:
    return scan_flops(u[0], u[1], u[2], A[1])


@register_flop_formula(torch.ops.wimfris.fused_scan_backward)
def _scan_backward_formula(
    grad: tuple[int, ...], u: tuple[int, ...], delta: tuple[int, ...], A: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Count twice the forward, as for a matrix product, and the forward again, since the states are recomputed."""
    return 3 * scan_flops(u[0], u[1], u[2], A[1])


@register_flop_formula(torch.ops.wimfris.causal_conv)
def _conv_formula(
    x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, int, int], **__: Any
) -> int:
    return conv_flops(*out_shape, weight[-1])


@register_flop_formula(torch.ops.wimfris.causal_conv_backward)
def _conv_backward_formula(
    grad: tuple[int, int, int], x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Count as for the scan."""
    return 3 * conv_flops(*grad, weight[-1])
