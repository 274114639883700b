"""The selective scan of Mamba, by whichever backend runs.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t h_t + D u_t        out_t = y_t * SiLU(z_t)

with delta = softplus(delta + delta_bias) (Gu & Dao, 2023, equations 2 to 4). Everything is channels-last.
"""

from wimfris.kernels.ops import conv_flops, fused_conv, fused_scan, scan_flops
from wimfris.model.scan.backends import BACKENDS, Choice, choose_backend
from wimfris.model.scan.dispatch import causal_conv_silu, scan_windows, selective_scan

__all__ = [
    "BACKENDS",
    "Choice",
    "causal_conv_silu",
    "choose_backend",
    "conv_flops",
    "fused_conv",
    "fused_scan",
    "scan_flops",
    "scan_windows",
    "selective_scan",
]
