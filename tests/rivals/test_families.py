"""Every rival through `training.build`: what is trained, what starts untouched, how many parameters are trained."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from params_file import SHIPPED
from torch import Tensor

from wimfris.encoders.load import load_text, load_tokenizer, load_vision
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.measure.parameters import trained_parameters
from wimfris.model.segmenter import Segmenter
from wimfris.rivals.families import FAMILIES, NECKS, load_family, load_neck
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Model
from wimfris.training.build import build_segmenter

SCALES = [scale for scale in SHIPPED["scales"] if scale != "smoke"]
ADAPTERS = {  # adapters -> a variant that has them under HMF
    "detris": "detris_adapters",
    "etris": "etris_adapters",
    "lora": "lora",
    "bottleneck": "bottleneck",
    "pwam": "pwam",
}
VARIANTS = (*ADAPTERS.values(), "finetune", "detris_adapters_detris_neck", "etris_adapters_etris_neck")

SettingsOf = Callable[[str, str], Settings]


def new_segmenter(settings: Settings) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(settings, load_tokenizer(settings))


def inputs_of(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return two images and two padded sentences."""
    tokenizer = load_tokenizer(settings)
    size = settings.data.image_size
    sentences = ["red circle", "small blue cross left of the large red circle"]
    return torch.randn(2, 3, size, size), torch.stack(
        [torch.as_tensor(tokenizer.encode(sentence)) for sentence in sentences]
    )


def test_the_tables_have_the_names_of_the_settings() -> None:
    assert set(FAMILIES) == set(get_args(Model.model_fields["adapters"].annotation))
    assert set(NECKS) == set(get_args(Model.model_fields["neck"].annotation))
    for family in map(load_family, FAMILIES):
        assert hasattr(family, "tune") or hasattr(family, "vision_adapter")
    assert all(hasattr(load_neck(name), "neck") for name in NECKS)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("scale", SCALES)
def test_rivals_have_about_our_trained_parameters(settings_of: SettingsOf, scale: str, adapters: str) -> None:
    ours, rival = settings_of(scale, "full"), settings_of(scale, ADAPTERS[adapters])
    assert trained_parameters(rival)["adapters"] == pytest.approx(trained_parameters(ours)["adapters"], rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trained_parameter_gets_a_gradient_and_no_other(settings_of: SettingsOf, variant: str) -> None:
    settings = settings_of("smoke", variant)
    segmenter = new_segmenter(settings).train()
    output = segmenter(*inputs_of(settings))
    (output.logits.mean() + output.anchor.mean()).backward()
    trained = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    reached = {name for name, p in segmenter.named_parameters() if p.grad is not None}
    assert reached == trained  # distributed training relies on it
    tuned = {name for name in trained if ".backbone." in name}
    if settings.model.adapters == "finetune":
        backbones = {name for name, _ in segmenter.named_parameters() if ".backbone." in name}
        assert tuned == {name for name in backbones if not name.endswith("mask_token")}
    else:
        assert tuned == {name for name, _ in segmenter.named_parameters() if ".lora_" in name}
        assert bool(tuned) == (settings.model.adapters == "lora")
    adapters = {name.split(".")[0] for name in trained if ".adapters." in name}
    expected = {"lora": set(), "finetune": set(), "pwam": {"vision"}}.get(settings.model.adapters, {"text", "vision"})
    assert adapters == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trained_state_restores_the_model(settings_of: SettingsOf, variant: str) -> None:
    settings = settings_of("smoke", variant)
    segmenter, other = new_segmenter(settings).eval(), new_segmenter(settings).eval()
    given = inputs_of(settings)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = segmenter(*given).logits
        assert not torch.equal(other(*given).logits, expected)
        other.load_trained(segmenter.trained_state())
        assert torch.equal(other(*given).logits, expected)


@pytest.mark.parametrize("variant", ["bottleneck", "lora", "pwam", "finetune"])
@torch.no_grad()
def test_a_family_that_starts_at_zero_leaves_the_frozen_features(settings_of: SettingsOf, variant: str) -> None:
    settings = settings_of("smoke", variant)
    tokenizer = load_tokenizer(settings)
    text = TextEncoder(load_text(settings, tokenizer), {})
    vision = VisionEncoder(load_vision(settings), {}, settings.encoders.vision.taps)
    segmenter = new_segmenter(settings)
    image, token_ids = inputs_of(settings)
    words, sentence = text(token_ids)
    padding = torch.zeros_like(token_ids, dtype=torch.bool)
    for ours, frozen in zip(segmenter.text(token_ids), (words, sentence), strict=True):
        torch.testing.assert_close(ours, frozen)
    for ours, frozen in zip(segmenter.vision(image, words, padding), vision(image, words, padding), strict=True):
        torch.testing.assert_close(ours, frozen)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_rivals_run_in_half_precision(settings_of: SettingsOf, variant: str) -> None:
    settings = settings_of("smoke", variant)
    segmenter = new_segmenter(settings).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = segmenter(*inputs_of(settings)).logits
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in segmenter.parameters() if p.grad is not None)
