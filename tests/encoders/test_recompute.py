"""Gradient checkpointing stores less and computes the same bits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wimfris.measure.blank_model import blank_segmenter
from wimfris.model.segmenter import Output, Segmenter
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VARIANTS = ("full", "none", "detris_adapters_detris_neck", "etris_adapters_etris_neck", "lora", "finetune")

Pair = Callable[..., tuple[Segmenter, Segmenter]]


@pytest.fixture
def pair(build: Any) -> Pair:
    """pair(**options): the small model without and with checkpointing, with equal weights, in training mode."""

    def make(**options: Any) -> tuple[Segmenter, Segmenter]:
        plain = build["segmenter"](**options).double().train()
        checkpointed = build["segmenter"](**options, checkpointing=True).double().train()
        checkpointed.load_state_dict(plain.state_dict())
        return plain, checkpointed

    return make


def total(output: Output) -> Tensor:
    """Return a number that depends on all outputs."""
    return output.logits.square().mean() + output.fused.square().mean() + output.anchor.square().mean()


def gradients(segmenter: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}


def assert_same(plain: nn.Module, checkpointed: nn.Module) -> None:
    """Assert that gradients and buffers, running statistics included, are equal bits."""
    expected, actual = gradients(plain), gradients(checkpointed)
    assert expected.keys() == actual.keys() and expected
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name
    for (name, value), other in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(value, other), name


def backward(segmenter: Segmenter, image: Tensor, token_ids: Tensor) -> Tensor:
    torch.manual_seed(1)
    output = segmenter(image, token_ids)
    total(output).backward()
    return output.logits


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_outputs_and_gradients_are_the_same_bits(pair: Pair, image: Tensor, token_ids: Tensor, dropout: float) -> None:
    plain, checkpointed = pair(dropout=dropout)
    expected, actual = (backward(model, image.double(), token_ids) for model in (plain, checkpointed))
    assert torch.equal(expected, actual)
    trained = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert gradients(plain).keys() == trained
    assert_same(plain, checkpointed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_adapter(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms of the rivals' adapters must not count a batch twice."""
    monkeypatch.chdir(ROOT)
    settings = read_params().model_copy(update={"scale": "smoke"}).settings(variant)
    train = settings.train.model_copy(update={"gradient_checkpointing": True})
    plain = blank_segmenter(settings, "cpu").double().train()
    checkpointed = blank_segmenter(settings.model_copy(update={"train": train}), "cpu").double().train()
    checkpointed.load_state_dict(plain.state_dict())
    token_ids = torch.full((2, 16), 3)
    token_ids[:, 9:] = plain.text.end_token
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (plain, checkpointed):
        backward(model, image, token_ids)
    assert_same(plain, checkpointed)


def test_two_passes_before_one_backward(pair: Pair, image: Tensor, token_ids: Tensor) -> None:
    """A block is computed again with the words of its own pass, not of the last one."""
    plain, checkpointed = pair(dropout=0.1)
    image = image.double()
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        first, second = model(image, token_ids), model(image.flip(0), token_ids.roll(1, 0))
        (total(first) + 2 * total(second)).backward()
    assert_same(plain, checkpointed)


def test_a_retained_graph_is_computed_again_each_time(pair: Pair, image: Tensor, token_ids: Tensor) -> None:
    plain, checkpointed = pair(dropout=0.0)
    for model in (plain, checkpointed):
        loss = total(model(image.double(), token_ids))
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same(plain, checkpointed)


def test_less_is_stored(pair: Pair, image: Tensor, token_ids: Tensor) -> None:
    stored_by = []
    for model in pair(dropout=0.1):
        stored: dict[int, int] = {}

        def pack(value: Tensor, stored: dict[int, int] = stored) -> Tensor:
            stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        before = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            model(image.double(), token_ids)
        stored_by.append({pointer: size for pointer, size in stored.items() if pointer not in before})
    plain, checkpointed = stored_by
    assert len(checkpointed) < 0.7 * len(plain)
    assert sum(checkpointed.values()) < 0.7 * sum(plain.values())


def test_taps_and_adapters_stay_the_same(pair: Pair, image: Tensor, token_ids: Tensor) -> None:
    """A block's own hooks run once a pass, an adapter again in backward, and state-dict names stay the same."""
    plain, checkpointed = pair()
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    assert not any(module.training for module in checkpointed.vision.backbone.modules())
    blocks, adapters = [], []
    for block in checkpointed.vision.backbone.encoder.layer:
        block.register_forward_hook(lambda *_: blocks.append(torch.is_grad_enabled()))
    for adapter in checkpointed.vision.adapters.values():
        adapter.register_forward_hook(lambda *_: adapters.append(1))
    loss = total(checkpointed(image.double(), token_ids))
    assert (len(blocks), len(adapters)) == (4, 2)
    loss.backward()
    assert (len(blocks), len(adapters)) == (4, 4)
    with torch.no_grad():
        checkpointed(image.double(), token_ids)
    assert (len(blocks), len(adapters)) == (8, 6)


def test_a_copy_recomputes_with_its_own_weights(pair: Pair, image: Tensor, token_ids: Tensor) -> None:
    plain, checkpointed = pair(dropout=0.0)
    twin = copy.deepcopy(checkpointed)
    for parameter in checkpointed.parameters():
        parameter.data.zero_()
    for model in (plain, twin):
        backward(model, image.double(), token_ids)
    assert_same(plain, twin)
