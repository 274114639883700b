"""The scan and the convolution on any device, in plain torch, with a hand-written backward of the scan.

Only the recurrence loops over tokens; everything else is one operation over all tokens, so that a short window's scan
costs a few elementwise passes over (L, batch, N, D). Channels are innermost: a row of N states is too short for the
vector units.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Scan(torch.autograd.Function):
    """y_t = sum_n C_tn h_tn, where h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t and h_0 = 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, delta, B, C = (
            x.transpose(0, 1).contiguous() for x in (u, delta, B, C)
        )  # tokens first: each step is one block of memory
        rates = A.t().contiguous()
        decay = (delta[:, :, None] * rates).exp_()
        states = B[..., None] * (delta * u)[:, :, None]
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(u, delta, rates, B, C, decay, states)
        return (C[:, :, None] @ states).squeeze(2).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        u, delta, rates, B, C, decay, states = ctx.saved_tensors
        grad_y = grad_outputs[0].transpose(0, 1).contiguous()
        grad_C = (states @ grad_y[..., None]).squeeze(-1)
        # adjoint of the state: g_t = dy_t C_t + exp(delta_{t+1} A) g_{t+1}
        adjoint = C[..., None] * grad_y[:, :, None]
        for t in range(len(adjoint) - 2, -1, -1):
            adjoint[t].addcmul_(decay[t + 1], adjoint[t + 1])
        grad_B = (adjoint @ (delta * u)[..., None]).squeeze(-1)
        grad_drive = (B[:, :, None] @ adjoint).squeeze(2)
        # the derivative by delta_t A, through the decay of the state before
        exponent = adjoint[1:].mul_(states[:-1]).mul_(decay[1:])
        grad_delta = grad_drive * u
        grad_delta[1:] += (exponent * rates).sum(2)
        grad_A = exponent.mul_(delta[1:, :, None]).sum((0, 1)).t()
        grad_u, grad_delta, grad_B, grad_C = (
            grad.transpose(0, 1) for grad in (grad_drive * delta, grad_delta, grad_B, grad_C)
        )
        return grad_u, grad_delta, grad_A, grad_B, grad_C


def scan_states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan without skip and gate: u, delta (batch, L, D), A (D, N), B, C (batch, L, N) -> (batch, L, D)."""
    return _Scan.apply(u, delta, A, B, C)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan sequences; see `wimfris.model.scan.selective_scan`."""
    state = A.dtype  # the state keeps the parameters' precision, whatever autocast makes of the inputs
    with torch.autocast(u.device.type, enabled=False):
        drive = u.to(state)
        y = scan_states(drive, F.softplus(delta.to(state) + delta_bias), A, B.to(state), C.to(state))
        return ((y + D * drive) * F.silu(z.to(state))).to(u.dtype)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve sequences; see `wimfris.model.scan.causal_conv_silu`."""
    # the kernel is short: a sum of shifted copies stays channels-last, which conv1d does not
    kernel, length = weight.squeeze(1), x.shape[1]
    padded = F.pad(x, (0, 0, kernel.shape[1] - 1, 0))
    return F.silu(bias + sum(kernel[:, k] * padded[:, k : k + length] for k in range(kernel.shape[1])))
