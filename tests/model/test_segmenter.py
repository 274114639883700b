import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.model.loss import SegmentationLoss
from wimfris.model.segmenter import Segmenter
from wimfris.model.tables import forget_tables

BACKBONES = ("text.backbone.", "vision.backbone.")
START, END = 18, 19


@pytest.fixture
def segmenter(build: Any) -> Segmenter:
    return build["segmenter"]().double()


def prefixes(names: list[str]) -> set[str]:
    """Return the parts that the names belong to: `text.adapters.0`, `neck.fusion`, `decoder`."""
    depth = {"text": 3, "vision": 3, "neck": 2}
    return {".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names}


def test_what_is_trained_is_exactly_the_adapters_neck_decoder_projector_and_alignment(segmenter: Segmenter) -> None:
    trained = [name for name, parameter in segmenter.named_parameters() if parameter.requires_grad]
    assert set(trained) == {name for name, _ in segmenter.named_parameters() if not name.startswith(BACKBONES)}
    assert prefixes(trained) == {
        "text.adapters.0",
        "text.adapters.2",
        "vision.adapters.1",
        "vision.adapters.3",
        "neck.aggregate",
        "neck.fusion",
        "decoder",
        "projector",
        "alignment",
    }
    assert {"vision.adapters.1.emphasis.p", "vision.adapters.3.emphasis.p"} <= set(trained)


def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(
    segmenter: Segmenter, image: Tensor, token_ids: Tensor
) -> None:
    output = segmenter.train()(image.double(), token_ids)
    mask = torch.zeros(3, 1, 32, 32, dtype=torch.float64)
    mask[..., 4:20, 8:30] = 1
    SegmentationLoss(contrast=0.5, dice=0.3, align=0.2, window=4, target="any")(output, mask.float()).total.backward()
    for name, parameter in segmenter.named_parameters():
        if name.startswith(BACKBONES):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert name.endswith("in_proj_bias") or (parameter.grad != 0).any(), name


def test_text_adapters_learn_through_the_aligners_and_through_the_alignment(
    build: Any, image: Tensor, token_ids: Tensor
) -> None:
    segmenter = build["segmenter"](neck=False)  # its map depends on the words only through the aligners
    output = segmenter(image, token_ids)
    weight = segmenter.get_parameter("text.adapters.2.up.weight")
    for result in (output.fused, output.anchor):
        (grad,) = torch.autograd.grad(result.square().sum(), weight, retain_graph=True)
        assert (grad != 0).any()


@torch.no_grad()
@pytest.mark.parametrize("gate", ["attention", "text", "none"])
def test_longer_padding_changes_nothing(build: Any, stir: Any, image: Tensor, token_ids: Tensor, gate: str) -> None:
    segmenter = stir(build["segmenter"](gate=gate)).double().eval()
    longer = torch.cat([token_ids, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    short, long = segmenter(image.double(), token_ids), segmenter(image.double(), longer)
    torch.testing.assert_close(long.logits, short.logits)
    torch.testing.assert_close(long.fused, short.fused)
    behind_end = (longer == END).cumsum(1).cumsum(1) > 1
    other = torch.where(behind_end, 5, longer)  # any id may be there
    torch.testing.assert_close(segmenter(image.double(), other).logits, short.logits)


@torch.no_grad()
def test_samples_of_a_batch_are_independent(segmenter: Segmenter, image: Tensor, token_ids: Tensor) -> None:
    segmenter.eval()
    together = segmenter(image.double(), token_ids).logits
    alone = [segmenter(image[k : k + 1].double(), token_ids[k : k + 1]).logits for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_the_answer_depends_on_the_sentence_and_an_empty_one_is_allowed(
    segmenter: Segmenter, image: Tensor, token_ids: Tensor
) -> None:
    segmenter.eval()
    logits = segmenter(image.double(), token_ids).logits
    assert (segmenter(image.double(), token_ids.roll(1, 0)).logits - logits).abs().amax((1, 2, 3)).min() > 1e-6
    empty = torch.zeros_like(token_ids)
    empty[:, 0], empty[:, 1] = START, END
    assert segmenter(image.double(), empty).logits.isfinite().all()


@torch.no_grad()
def test_a_trained_state_can_be_saved_and_loaded(build: Any, stir: Any, image: Tensor, token_ids: Tensor) -> None:
    one, other = stir(build["segmenter"]()).eval(), build["segmenter"]().eval()
    other.text.backbone.load_state_dict(one.text.backbone.state_dict())
    other.vision.backbone.load_state_dict(one.vision.backbone.state_dict())
    before = one(image, token_ids).logits
    assert not torch.equal(other(image, token_ids).logits, before)
    state = one.trained_state()
    assert not any(name.startswith(BACKBONES) for name in state)
    assert {"neck.aggregate.1.running_var", "vision.adapters.1.emphasis.p"} <= state.keys()
    other.load_trained(state)
    assert torch.equal(other(image, token_ids).logits, before)
    assert other.emphasis() == one.emphasis()


def test_a_state_with_other_names_is_an_error_that_names_them(segmenter: Segmenter) -> None:
    state = segmenter.trained_state()
    lacking = {name: value for name, value in state.items() if name != "alignment.bias"}
    with pytest.raises(KeyError, match=r"alignment\.bias"):
        segmenter.load_trained(lacking)
    with pytest.raises(KeyError, match=r"what\.is\.this"):
        segmenter.load_trained(state | {"what.is.this": torch.zeros(1)})


def test_emphasis_is_reported_by_layer(segmenter: Segmenter) -> None:
    assert segmenter.emphasis() == pytest.approx({1: 0.3, 3: 0.3})
    segmenter.get_parameter("vision.adapters.3.emphasis.p").data.zero_()
    assert segmenter.emphasis() == pytest.approx({1: 0.3, 3: 0.5})


def test_training_may_follow_an_evaluation_in_inference_mode(
    segmenter: Segmenter, image: Tensor, token_ids: Tensor
) -> None:
    """What was cached in inference mode (indices, positions) must be usable under autograd."""
    forget_tables()
    with torch.inference_mode():
        segmenter(image.double(), token_ids)
    segmenter(image.double(), token_ids).logits.sum().backward()


@torch.no_grad()
def test_a_copy_has_adapters_of_its_own(segmenter: Segmenter, image: Tensor, token_ids: Tensor) -> None:
    """Hooks must follow a deep copy: a copy whose hooks called the original's adapters would be silently wrong."""
    segmenter.eval()
    before = segmenter(image.double(), token_ids).logits
    twin = copy.deepcopy(segmenter)
    for adapter in ("text.adapters.0", "text.adapters.2", "vision.adapters.1", "vision.adapters.3"):
        segmenter.get_parameter(f"{adapter}.up.weight").zero_()
    assert torch.equal(twin(image.double(), token_ids).logits, before)
    assert not torch.equal(segmenter(image.double(), token_ids).logits, before)
