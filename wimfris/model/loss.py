"""The three losses: text-to-pixel contrast, Dice and window alignment."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.model.segmenter import Output


@dataclass(frozen=True)
class Losses:
    """The weighted total and its unweighted terms, each a scalar tensor."""

    total: Tensor
    contrast: Tensor
    dice: Tensor
    align: Tensor


def contrast_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(z_t . z_c) on target pixels and -log(1 - sigmoid) elsewhere.

    logits and mask (B, 1, h, w).
    """
    return F.binary_cross_entropy_with_logits(logits, mask)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over samples of 1 - Dice of sigmoid(logits).

    One pixel is added to both numerator and denominator, which keeps empty masks finite.
    """
    probability, mask = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    overlap = 2 * (probability * mask).sum(1) + 1
    return (1 - overlap / (probability.sum(1) + mask.sum(1) + 1)).mean()


def window_targets(mask: Tensor, cell: int, window: int, target: Literal["any", "fraction"]) -> Tensor:
    """Return each window's target, (B, 1, n, n): 1 where it holds any target pixel (`any`), or their `fraction`.

    mask (B, 1, S, S) in [0, 1]; cell: side of a grid cell in pixels; window: side of a window in cells. Border windows
    count real pixels only.
    """
    size, pixels = window * cell, (mask > 0.5).float()
    if target == "any":
        return F.max_pool2d(pixels, size, ceil_mode=True)
    return F.avg_pool2d(pixels, size, ceil_mode=True, count_include_pad=False)


def align_loss(output: Output, mask: Tensor, window: int, target: Literal["any", "fraction"]) -> Tensor:
    """Return the binary cross-entropy per window, averaged over B * n_win.

    A window's logit is the dot product of the projected sentence with the mean of the neck's map over the window.
    """
    windows = F.avg_pool2d(output.fused, window, ceil_mode=True, count_include_pad=False)
    logits = torch.einsum("bchw,bc->bhw", windows, output.anchor)[:, None]
    return F.binary_cross_entropy_with_logits(
        logits, window_targets(mask, mask.shape[-1] // output.fused.shape[-1], window, target)
    )


class SegmentationLoss:
    """L = contrast L_con + dice L_dice + align L_align.

    window: side of the alignment windows in grid cells; target: see `window_targets`. resize: how the mask comes to the
    size of the logits, by its `nearest` pixels as in CRIS and DETRIS, or by the mean over the `area` of each logit.
    """

    def __init__(
        self,
        *,
        contrast: float,
        dice: float,
        align: float,
        window: int,
        target: Literal["any", "fraction"],
        resize: Literal["nearest", "area"] = "nearest",
    ) -> None:
        self.contrast, self.dice, self.align, self.window, self.target = contrast, dice, align, window, target
        self.resize = resize

    def __call__(self, output: Output, mask: Tensor) -> Losses:
        """Return the losses for a mask (B, 1, S, S) in [0, 1] at the letterbox's size.

        Computed in float32 at least, whatever the autocast.
        """
        output = Output(*(value.to(torch.promote_types(value.dtype, torch.float32)) for value in vars(output).values()))
        small = F.interpolate(mask, size=output.logits.shape[-2:], mode=self.resize)
        contrast, dice = contrast_loss(output.logits, small), dice_loss(output.logits, small)
        align = align_loss(output, mask, self.window, self.target)
        return Losses(self.contrast * contrast + self.dice * dice + self.align * align, contrast, dice, align)
