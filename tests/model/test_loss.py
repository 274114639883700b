import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.loss import SegmentationLoss, align_loss, contrast_loss, dice_loss, window_targets
from wimfris.model.segmenter import Output


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def box(size: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., top:bottom, left:right] = 1
    return mask


def test_contrast_by_hand() -> None:
    logits = torch.tensor([[[[logit(0.8), logit(0.3)], [logit(0.5), logit(0.9)]]]])
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    expected = -(math.log(0.8) + math.log(1 - 0.3) + math.log(1 - 0.5) + math.log(0.9)) / 4
    assert contrast_loss(logits, mask).item() == pytest.approx(expected, rel=1e-6)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[[[logit(0.8), logit(0.2)]]], [[[logit(0.5), logit(0.5)]]]])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    first, second = 1 - (2 * 0.8 + 1) / (1.0 + 1 + 1), 1 - (2 * 1.0 + 1) / (1.0 + 2 + 1)
    assert dice_loss(logits, mask).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_dice_of_a_perfect_prediction_is_nothing_and_of_a_wrong_one_is_all() -> None:
    mask = box(32, 4, 6, 20, 25)
    assert dice_loss(100 * (mask - 0.5), mask) < 1e-5
    assert dice_loss(100 * (0.5 - mask), mask) > 0.99
    assert dice_loss(torch.full_like(mask, -50.0), torch.zeros_like(mask)) < 1e-5  # no target, and none predicted


def test_window_targets_by_hand() -> None:
    mask = box(16, 3, 7, 5, 9)  # 2 x 2 pixels about the corner that four windows of 4 cells of 1 pixel share
    cross = torch.tensor([[0.0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.equal(window_targets(mask, 1, 4, "any")[0, 0], cross)
    torch.testing.assert_close(window_targets(mask, 1, 4, "fraction")[0, 0], cross / 16)
    assert torch.equal(window_targets(mask, 2, 2, "any")[0, 0], cross)
    assert torch.equal(window_targets(mask, 2, 8, "any")[0, 0], torch.tensor([[1.0]]))


@pytest.mark.parametrize(("grid", "cell", "window"), [(5, 3, 2), (7, 2, 3), (4, 4, 4), (8, 1, 3)])
def test_border_windows_count_only_real_pixels(grid: int, cell: int, window: int) -> None:
    mask = (torch.rand(2, 1, grid * cell, grid * cell) > 0.9).float()
    steps = range(0, grid * cell, window * cell)
    cut = [mask[:, :, y : y + window * cell, x : x + window * cell] for y in steps for x in steps]
    shape = (2, 1, len(steps), len(steps))
    largest = torch.stack([part.amax((2, 3)) for part in cut], dim=-1).reshape(shape)
    share = torch.stack([part.mean((2, 3)) for part in cut], dim=-1).reshape(shape)
    torch.testing.assert_close(window_targets(mask, cell, window, "any"), largest)
    torch.testing.assert_close(window_targets(mask, cell, window, "fraction"), share)


def test_a_letterboxed_edge_is_target_above_one_half() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 0, 0], mask[0, 0, 3, 3] = 0.4, 0.6
    assert window_targets(mask, 1, 2, "any").flatten().tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("target", ["any", "fraction"])
@pytest.mark.parametrize(("grid", "window"), [(6, 2), (5, 2), (4, 3), (4, 4)])
def test_alignment_by_loop(target: Any, grid: int, window: int) -> None:
    cell, batch = 3, 2
    fused, anchor = torch.randn(batch, 4, grid, grid), torch.randn(batch, 4)
    mask = (torch.rand(batch, 1, grid * cell, grid * cell) > 0.9).float()
    losses = []
    for k in range(batch):
        for y in range(0, grid, window):
            for x in range(0, grid, window):
                score = fused[k, :, y : y + window, x : x + window].mean((1, 2)) @ anchor[k]
                part = mask[k, 0, y * cell : (y + window) * cell, x * cell : (x + window) * cell]
                expected = part.max() if target == "any" else part.mean()
                losses.append(F.binary_cross_entropy_with_logits(score, expected))
    ours = align_loss(Output(torch.zeros(batch, 1, 1, 1), fused, anchor), mask, window, target)
    torch.testing.assert_close(ours, torch.stack(losses).mean())


def test_the_total_weighs_the_terms_on_the_mask_taken_to_the_logits_size_with_nearest() -> None:
    loss = SegmentationLoss(contrast=0.5, dice=0.3, align=0.2, window=2, target="any")
    output = Output(torch.randn(2, 1, 16, 16), torch.randn(2, 4, 4, 4), torch.randn(2, 4))
    mask = (torch.rand(2, 1, 56, 56) > 0.7).float()
    nearest = mask[:, :, [int(i * 3.5) for i in range(16)]][..., [int(i * 3.5) for i in range(16)]]
    terms = loss(output, mask)
    torch.testing.assert_close(terms.contrast, contrast_loss(output.logits, nearest))
    torch.testing.assert_close(terms.dice, dice_loss(output.logits, nearest))
    torch.testing.assert_close(terms.align, align_loss(output, mask, 2, "any"))
    torch.testing.assert_close(terms.total, 0.5 * terms.contrast + 0.3 * terms.dice + 0.2 * terms.align)


def test_the_loss_of_half_precision_outputs_is_in_single_precision() -> None:
    loss = SegmentationLoss(contrast=0.5, dice=0.3, align=0.2, window=2, target="any")
    output = Output(
        torch.randn(2, 1, 16, 16).bfloat16(), torch.randn(2, 4, 4, 4).bfloat16(), torch.randn(2, 4).bfloat16()
    )
    mask = (torch.rand(2, 1, 32, 32) > 0.7).float()
    single = Output(output.logits.float(), output.fused.float(), output.anchor.float())
    assert loss(output, mask).total.dtype == torch.float32
    assert torch.equal(loss(output, mask).total, loss(single, mask).total)
