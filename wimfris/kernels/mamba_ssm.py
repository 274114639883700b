"""The scans of mamba_ssm and the causal convolution of causal_conv1d: CUDA only, each with its own backward.

Both packages want channels first, which costs the transposes here. mamba_ssm's backward adds with atomics, so its
gradients differ in their last bits from run to run.
"""

from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

CHUNK = 256  # tokens of a chunk of Mamba-2's scan; mamba_ssm's default


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run `wimfris.model.scan.selective_scan` by mamba_ssm's fused kernel."""
    u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus=True)
    return y.transpose(1, 2)


def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Run `wimfris.model.scan.ssd.ssd` by the kernels of mamba_ssm's `Mamba2`, which are Triton's."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    size = min(CHUNK, max(16, 1 << (x.shape[1] - 1).bit_length()))  # a power of two, at least as Triton's products need
    y: Tensor = mamba_chunk_scan_combined(
        x, delta, A.float(), B, C, size, D=D.float(), dt_bias=delta_bias.float(), dt_softplus=True
    )
    return y


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run `wimfris.model.scan.causal_conv_silu` by causal_conv1d's fused kernel."""
    return causal_conv1d_fn(
        x.transpose(1, 2), weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu"
    ).transpose(1, 2)
