"""Finetuning: both backbones are trained, without adapters."""

from typing import Any

from torch import nn

UNUSED = "mask_token"  # DINOv2's, for masked patches in its pretraining; no output here depends on it


def tune(model: Any, backbone: nn.Module) -> None:
    """Make every parameter of the backbone trainable that its output depends on."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(not name.endswith(UNUSED))
