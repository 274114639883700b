"""The scan and the causal convolution of mamba_ssm and causal_conv1d: CUDA only, imported when first used.

Both packages want channels first; the transposes here are the price. mamba_ssm's backward adds with atomics, so that
its gradients are not the same bit for bit from run to run.
"""

from torch import Tensor


def mamba_ssm_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """`wimfris.model.scan.selective_scan` by mamba_ssm's fused kernel."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus=True)
    return y.transpose(1, 2)


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU(causal depthwise convolution): x (batch, L, D), weight (D, 1, K), bias (D,) -> (batch, L, D)."""
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(
        x.transpose(1, 2), weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu"
    ).transpose(1, 2)
