"""MSA, the multi-scale aligner: RFMixer and cross-attention to the words, beside the MLP of a vision block."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.model.layers import init_up


class RFMixer(nn.Module):
    """Receptive-field mixing: mix = ReLU(x + sum_c x_c) * x for the kernels c, (B, r, H, W) -> (B, r, H, W).

    x_c = DWConv(c x 1)(DWConv(1 x c)(x)) is the paper's (`rfmixer`). Two plain ways to the same receptive field are
    here to compare with: a depthwise c x c convolution (`depthwise`), and a depthwise 3 x 3 convolution of dilation
    (c - 1) / 2 (`dilated`).
    """

    def __init__(self, width: int, kernels: Sequence[int], kind: str = "rfmixer") -> None:
        super().__init__()
        branch = {"rfmixer": _separable, "depthwise": _square, "dilated": _dilated}[kind]
        self.branches = nn.ModuleList(branch(width, size) for size in kernels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + sum(branch(x) for branch in self.branches)) * x


def _separable(width: int, size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, (1, size), padding=(0, size // 2), groups=width),
        nn.Conv2d(width, width, (size, 1), padding=(size // 2, 0), groups=width),
    )


def _square(width: int, size: int) -> nn.Module:
    return nn.Conv2d(width, width, size, padding=size // 2, groups=width)


def _dilated(width: int, size: int) -> nn.Module:
    return nn.Conv2d(width, width, 3, padding=size // 2, dilation=size // 2, groups=width)


class Emphasis(nn.Module):
    """The emphasis alpha of one aligner: sigmoid(p), where p is learned and starts at logit(initial), or `fixed`."""

    def __init__(self, fixed: float | None, initial: float) -> None:
        super().__init__()
        self.fixed = fixed
        if fixed is None:
            self.p = nn.Parameter(torch.tensor(math.log(initial / (1 - initial))))

    def forward(self) -> Tensor | float:
        return torch.sigmoid(self.p) if self.fixed is None else self.fixed


class MultiScaleAligner(nn.Module):
    """alpha * MSA(n) on tokens n (B, P + H W, D) of a vision block, where

    MSA(n) = Up([prefix, mix + CrossAttention(mix, words)]), [prefix, patches] = ReLU(Down(n)), mix = RFMixer(patches).
    Class and register tokens (the prefix of P) bypass RFMixer and attention; padding is masked out of the words.

    mixer: a kind of RFMixer, or `none` for mix = patches. emphasis: `learned`, starting at `emphasis_initial`, or a
    fixed alpha. init: see `init_up`.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        width: int,
        *,
        heads: int,
        kernels: Sequence[int],
        mixer: str = "rfmixer",
        emphasis: float | Literal["learned"],
        emphasis_initial: float,
        init: str,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(vision_width, width)
        self.mixer = nn.Identity() if mixer == "none" else RFMixer(width, kernels, mixer)
        self.attention = nn.MultiheadAttention(width, heads, kdim=text_width, vdim=text_width, batch_first=True)
        self.up = init_up(nn.Linear(width, vision_width), init)
        self.emphasis = Emphasis(None if emphasis == "learned" else emphasis, emphasis_initial)

    def forward(self, tokens: Tensor, guidance: Guidance) -> Tensor:
        height, width = guidance.grid
        x = F.relu(self.down(tokens))
        prefix, patches = x.split([x.shape[1] - height * width, height * width], dim=1)
        mixed = self.mixer(patches.transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)
        words = guidance.words
        aligned = mixed + self.attention(mixed, words, words, key_padding_mask=guidance.padding, need_weights=False)[0]
        return self.emphasis() * self.up(torch.cat([prefix, aligned], dim=1))
