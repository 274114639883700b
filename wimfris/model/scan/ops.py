"""The fused scans as operations of torch: one forward and one backward, which torch.compile and the counter of
operations see as such, whatever runs inside.

`backend` names what runs: `cpu` (compiled by numba) or `triton`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

CHUNK = 32  # tokens from one kept state to the next


def _module(backend: str) -> Any:
    """Imported when first used: numba and Triton take a second or two."""
    from wimfris.model.scan import cpu

    return cpu


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
) -> tuple[Tensor, Tensor]:
    """The output, and with `keep` the states before every chunk but the first: (batch, chunks - 1, N, D)."""
    found: tuple[Tensor, Tensor] = _module(backend).scan(u, delta, A, B, C, D, z, delta_bias, keep)
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
) -> tuple[Tensor, Tensor]:
    batch, length, width = u.shape
    starts = A.new_empty(batch, (length - 1) // CHUNK if keep else 0, A.shape[1], width)
    return u.new_empty(batch, length, width), starts


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by the eight inputs, each in its input's dtype."""
    found: Any = _module(backend).scan_backward(grad, u, delta, A, B, C, D, z, delta_bias, starts)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    found: Any = tuple(x.new_empty(x.shape) for x in (u, delta, A, B, C, D, z, delta_bias))
    return found


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(True)


def _derive(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *_backward(grad, *ctx.saved_tensors, ctx.backend), None, None


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
) -> Tensor:
    """`wimfris.model.scan.selective_scan` by a fused backend. The state has A's precision, at least float32."""
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if A.dtype not in (torch.float32, torch.float64):
        A = A.float()
    return _forward(u, delta, A, B, C, D, z, delta_bias, keep, backend)[0]


# --- operations -------------------------------------------------------------------------------------------------------


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
