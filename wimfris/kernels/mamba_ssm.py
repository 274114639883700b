"""The scan of mamba_ssm and the causal convolution of causal_conv1d: CUDA only, each with its own backward.

Both packages want channels first, which costs the transposes here. mamba_ssm's backward adds with atomics, so its
gradients differ in their last bits from run to run.
"""

from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run `wimfris.model.scan.selective_scan` by mamba_ssm's fused kernel."""
    u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus=True)
    return y.transpose(1, 2)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run `wimfris.model.scan.causal_conv_silu` by causal_conv1d's fused kernel."""
    return causal_conv1d_fn(
        x.transpose(1, 2), weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu"
    ).transpose(1, 2)
