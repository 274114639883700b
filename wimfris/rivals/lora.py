"""LoRA (Hu et al., 2022) on the queries and values of every attention of an encoder, with peft."""

from typing import Any

from torch import nn

TARGETS = ["q_proj", "v_proj"]  # the linear layers' names in transformers' CLIP and in its DINOv2 alike


def inject_lora(backbone: nn.Module, rank: int, alpha: float) -> None:
    """Put W + (alpha / rank) B A in the place of every W of `TARGETS`, A and B trained, all else frozen.

    B starts at zero, so that an untrained injection leaves the features untouched. Names of the frozen weights change:
    `q_proj.weight` becomes `q_proj.base_layer.weight`, beside `q_proj.lora_A.default.weight`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    scale: Any = alpha  # peft declares an int, and divides it by the rank
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=TARGETS, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, backbone)


def lora_parameters(width: int, layers: int, rank: int) -> int:
    """Trained parameters of LoRA in an encoder of `layers` attentions of one width: A and B for each of `TARGETS`."""
    return layers * len(TARGETS) * 2 * width * rank
