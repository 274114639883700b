"""LoRA (Hu et al., 2022) on the queries and values of every attention of an encoder, with peft."""

from typing import Any

from torch import nn

TARGETS = ["q_proj", "v_proj", "query", "value"]  # names of the linear layers; BERT has the last two


def inject_lora(backbone: nn.Module, rank: int, alpha: float) -> None:
    """Replace every weight W of `TARGETS` by W + (alpha / rank) B A, in place; A and B are trained, the rest is frozen.

    B starts at zero, so that an untrained injection leaves the features untouched. The names of frozen weights change:
    `q_proj.weight` becomes `q_proj.base_layer.weight`, beside `q_proj.lora_A.default.weight`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    scale: Any = alpha  # peft declares an int, and divides it by the rank
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=TARGETS, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, backbone)


def tune(model: Any, backbone: nn.Module) -> None:
    """Inject LoRA into a backbone; see `families`."""
    inject_lora(backbone, model.rivals.lora.rank, model.rivals.lora.alpha)
