"""The scan on any device, in plain torch: a loop over tokens forward, and its hand-written backward.

The loop runs over tokens only; everything else is one operation over all tokens, so that the cost of a short window's
scan is that of a few elementwise passes over (L, batch, D, N).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Scan(torch.autograd.Function):
    """y_t = sum_n C_tn h_tn, where h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t and h_0 = 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, delta, B, C = (
            x.transpose(0, 1).contiguous() for x in (u, delta, B, C)
        )  # tokens first: each step is one block of memory
        decay = torch.exp(delta[..., None] * A)
        states = (delta * u)[..., None] * B[:, :, None]
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(u, delta, A, B, C, decay, states)
        return (states * C[:, :, None]).sum(-1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, decay, states = ctx.saved_tensors
        grad_y = grad_outputs[0].transpose(0, 1)
        grad_C = (grad_y[..., None] * states).sum(2)
        # adjoint of the state: g_t = dy_t C_t + exp(delta_{t+1} A) g_{t+1}
        adjoint = grad_y[..., None] * C[:, :, None]
        for t in range(len(adjoint) - 2, -1, -1):
            adjoint[t].addcmul_(decay[t + 1], adjoint[t + 1])
        drive = delta * u
        grad_B = (adjoint * drive[..., None]).sum(2)
        grad_drive = (adjoint * B[:, :, None]).sum(-1)
        # of delta_t A: through the decay of the state before
        exponent = torch.zeros_like(adjoint)
        torch.mul(adjoint[1:], states[:-1], out=exponent[1:])
        exponent.mul_(decay)
        grad_delta = (exponent * A).sum(-1) + grad_drive * u
        grad_A = (exponent * delta[..., None]).sum((0, 1))
        grads = (grad_drive * delta, grad_delta, grad_B, grad_C)
        grad_u, grad_delta, grad_B, grad_C = (grad.transpose(0, 1) for grad in grads)
        return grad_u, grad_delta, grad_A, grad_B, grad_C


def scan_states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan without skip and gate: u, delta (batch, L, D), A (D, N), B, C (batch, L, N) -> (batch, L, D)."""
    return _Scan.apply(u, delta, A, B, C)
