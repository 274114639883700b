"""The rivals, trained in the same Segmenter by the same protocol: DETRIS, ETRIS, LoRA, plain adapters, finetuning."""

from wimfris.rivals.families import (
    build_neck,
    build_text_adapters,
    build_vision_adapters,
    tune_backbones,
    tuned_parameters,
)

__all__ = ["build_neck", "build_text_adapters", "build_vision_adapters", "tune_backbones", "tuned_parameters"]
