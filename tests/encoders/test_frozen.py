"""Layers below the first adapter run without autograd, and every attention is fused."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.load import _load_snapshot
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.model.segmenter import Segmenter
from wimfris.settings.backbones import TEXT
from wimfris.settings.sections import TextBackbone


def recorded(layers: Any) -> list[bool]:
    """Return a list that each layer extends, when it runs, with whether its output requires a gradient."""
    flags: list[bool] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: flags.append(output.requires_grad))
    return flags


@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_layers_below_the_first_adapter_run_without_autograd(
    build: Any, token_ids: Tensor, checkpointing: bool
) -> None:
    backbone = build["text_backbone"]()
    flags = recorded([backbone.text_model.embeddings, *backbone.text_model.encoder.layers])
    words, _ = TextEncoder(backbone, {1: build["mta"]()}, checkpointing=checkpointing).train()(token_ids)
    assert flags == [False, False, True, True] and words.requires_grad


@pytest.mark.parametrize("checkpointing", [False, True])
def test_vision_blocks_below_the_first_adapter_run_without_autograd(
    build: Any, image: Tensor, checkpointing: bool
) -> None:
    """This also holds where the words require a gradient."""
    backbone = build["vision_backbone"]()
    flags = recorded([backbone.embeddings, *backbone.encoder.layer])
    encoder = VisionEncoder(backbone, {2: build["msa"]()}, (1, 2), checkpointing=checkpointing).train()
    words, padding = torch.randn(3, 5, 16, requires_grad=True), torch.zeros(3, 5, dtype=torch.bool)
    stages = encoder(image, words, padding)
    assert flags == [False, False, False, True, True]
    assert [stage.requires_grad for stage in stages] == [False, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_every_attention_is_fused(
    build: Any, image: Tensor, token_ids: Tensor, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one call of torch's fused attention, and none calls the softmax of an unfused one."""
    segmenter: Segmenter = build["segmenter"]().train(training)
    modules = [module for module in segmenter.modules() if isinstance(module, nn.MultiheadAttention)]
    backbones = len(segmenter.text.backbone.text_model.encoder.layers) + len(segmenter.vision.backbone.encoder.layer)
    assert (len(modules), backbones) == (2 + 1 + 2 * 2, 3 + 4)  # modules: aligners, gate, decoder layers
    calls = {"fused": 0, "unfused": 0}

    def counted(kind: str, called: Any, *inputs: Any, **options: Any) -> Tensor:
        calls[kind] += 1
        return called(*inputs, **options)

    for name, kind in (("scaled_dot_product_attention", "fused"), ("softmax", "unfused")):
        monkeypatch.setattr(F, name, partial(counted, kind, getattr(F, name)))
    segmenter(image, token_ids)
    assert calls == {"fused": len(modules) + backbones, "unfused": 0}


def test_backbones_use_fused_attention_from_every_source(build: Any, tmp_path: Any) -> None:
    for name in ("text_backbone", "vision_backbone"):
        assert build[name]().config._attn_implementation == "sdpa"
    build["text_backbone"]().save_pretrained(tmp_path)
    backbone = TextBackbone(source="a/b", revision="0", width=16, layers=3, heads=2)
    assert _load_snapshot(TEXT["clip"], backbone, tmp_path).config._attn_implementation == "sdpa"
