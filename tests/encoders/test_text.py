"""The frozen text encoder: adapters act in their place, and the backbone stays as it is."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wimfris.encoders.text import TextEncoder


class Probe(nn.Module):
    """An adapter that stores its input and returns a known function of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return torch.sin(x)


@pytest.fixture
def backbone(build: Any) -> nn.Module:
    return build["text_backbone"]().double().eval()


def causal(length: int) -> Tensor:
    return torch.full((1, 1, length, length), -torch.inf, dtype=torch.float64).triu(1)


@torch.no_grad()
def test_an_adapter_reads_the_stream_after_attention_and_adds_beside_the_mlp(backbone: Any, token_ids: Tensor) -> None:
    layer = backbone.text_model.encoder.layers[1]
    before = backbone(input_ids=token_ids, output_hidden_states=True).hidden_states
    probe = Probe()
    after = TextEncoder(backbone, {1: probe})
    hidden: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    after(token_ids)
    stream = before[1] + layer.self_attn(hidden_states=layer.layer_norm1(before[1]), attention_mask=causal(9))[0]
    torch.testing.assert_close(probe.seen, stream)
    mlp = layer.mlp.fc2(layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(stream))))
    torch.testing.assert_close(stream + mlp, before[2])
    torch.testing.assert_close(hidden[0], stream + mlp + torch.sin(stream))


@torch.no_grad()
def test_words_are_the_final_norm_and_the_sentence_is_projected_at_the_end_token(
    build: Any, backbone: Any, token_ids: Tensor
) -> None:
    encoder = TextEncoder(backbone, {1: build["mta"]().double()})
    hidden: list[Tensor] = []
    backbone.text_model.encoder.layers[-1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    words, sentence = encoder(token_ids)
    torch.testing.assert_close(words, backbone.text_model.final_layer_norm(hidden[0]))
    ends = [3, 5, 8]
    torch.testing.assert_close(sentence, words[torch.arange(3), ends] @ backbone.text_projection.weight.T)
    assert encoder.end_token == 19


def test_the_backbone_stays_in_eval_mode(build: Any, backbone: Any) -> None:
    encoder = TextEncoder(backbone, {0: build["mta"]()})
    outer = nn.Sequential(encoder).train()
    assert encoder.training and encoder.adapters["0"].training
    assert not any(module.training for module in backbone.modules())
    outer.eval()
    assert not any(module.training for module in encoder.modules())


@torch.no_grad()
def test_two_passes_are_independent(build: Any, stir: Any, backbone: Any, token_ids: Tensor) -> None:
    adapters = {layer: stir(build["mta"]()).double() for layer in (0, 2)}
    encoder = TextEncoder(copy.deepcopy(backbone), adapters)
    first = encoder(token_ids)[0]
    encoder(token_ids.flip(0))
    assert torch.equal(encoder(token_ids)[0], first)
