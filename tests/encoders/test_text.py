"""The frozen text encoder: adapters act in their place, and the backbone stays as it is."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wimfris.encoders.backbones import text_backbone
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
@pytest.mark.parametrize("layers", [(), (0, 2), (0, 1, 2)])
def test_no_or_untrained_adapters_do_not_change_the_frozen_features(
    build: Any, backbone: Any, token_ids: Tensor, layers: tuple[int, ...]
) -> None:
    names, plain = list(backbone.state_dict()), backbone(input_ids=token_ids)
    encoder = TextEncoder(backbone, {layer: build["mta"]("zero").double() for layer in layers})
    words, sentence = encoder(token_ids)
    assert torch.equal(words, plain.last_hidden_state) and torch.equal(sentence, plain.text_embeds)
    assert list(backbone.state_dict()) == names
    assert {name.removeprefix("backbone.") for name in encoder.state_dict() if name.startswith("backbone.")} == set(
        names
    )


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


@torch.no_grad()
def test_the_sentence_is_pooled_at_the_end_token_though_a_higher_id_stands_before_it() -> None:
    """CLIP's end token has the highest id, a built-in vocabulary's has not. An end id of 2 would select argmax."""
    backbone = text_backbone(width=16, layers=1, heads=2, vocabulary=30, length=8, end_token=5).eval()
    encoder = TextEncoder(backbone, {})
    words, sentence = encoder(torch.tensor([[4, 20, 29, 5, 0, 0]]))
    torch.testing.assert_close(sentence, words[:, 3] @ backbone.text_projection.weight.T)


@torch.no_grad()
def test_padding_changes_nothing_at_real_tokens(build: Any, stir: Any, backbone: Any, token_ids: Tensor) -> None:
    encoder = TextEncoder(backbone, {layer: stir(build["mta"]()).double() for layer in (0, 1, 2)})
    words, sentence = encoder(token_ids)
    longer = torch.cat([token_ids, torch.full((3, 6), 7)], dim=1)
    longer_words, longer_sentence = encoder(longer)
    torch.testing.assert_close(longer_words[:, :9], words)
    torch.testing.assert_close(longer_sentence, sentence)
    other = token_ids.clone()
    other[0, 4:] = 11
    torch.testing.assert_close(encoder(other)[0][0, :4], words[0, :4])
    torch.testing.assert_close(encoder(other)[1], sentence)


def test_gradients_reach_the_adapters_through_the_frozen_backbone_and_leave_it_alone(
    build: Any, backbone: Any, token_ids: Tensor
) -> None:
    encoder = TextEncoder(backbone, {layer: build["mta"]().double() for layer in (0, 2)})
    words, sentence = encoder(token_ids)
    (words.square().sum() + sentence.square().sum()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())
    for adapter in encoder.adapters.values():
        assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in adapter.parameters())


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
