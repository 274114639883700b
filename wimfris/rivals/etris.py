"""ETRIS (Xu et al., ICCV 2023): our reading of its bridger between the encoders, as a pair of adapters.

The paper's bridger acts on some layers of both encoders at once: each stream is projected to a common width (zoom-in),
goes through an interactor (self-attention, cross-attention to the other stream, feed-forward) and returns to its
encoder as a residual. There are no reference numbers. We deviate in four points, so that it fits frozen encoders of
which text runs first:

- The vision side reads the encoder's final words. The text side cannot see the image and has no cross-attention.
  Padding is masked out of the words, and the text side's attention is causal, like CLIP's.
- Both sides act beside their layer's MLP, at the layers of all rivals. The paper's act on the outputs of three layers.
- Class and register tokens are left alone. One stage's projection is not carried into the next.
- The interactor is the paper's. (The authors' code has it for ResNets; for ViT it only multiplies each stream by its
  cross-attention.) Its zoom-out starts as small as theirs, with standard deviation 0.02.

ETRIS's neck is DETRIS's without the last residual.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.rivals.detris import GatedNeck

LINEAR_SPREAD = 0.02  # standard deviation of the linear layers' initial weights: the authors' value


class Interactor(nn.Module):
    """x = Norm(x + SelfAttention(x)), x = Norm(x + Attention(x, other)), x = Norm(x + FFN(x)): (B, N, r) -> (B, N, r).

    crossed: whether there is the middle one. FFN is twice as wide as x, with a ReLU.
    """

    def __init__(self, width: int, heads: int, *, crossed: bool) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True) if crossed else None
        self.cross_norm = nn.LayerNorm(width) if crossed else None
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.ffn_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, other: Tensor | None = None, padding: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """x (B, N, r), other (B, L, r) and its padding (B, L), True at padding; causal: x sees no later token."""
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1) if causal else None
        x = self.self_norm(x + self.self_attention(x, x, x, attn_mask=later, need_weights=False)[0])
        if self.cross_attention is not None and self.cross_norm is not None:
            y = self.cross_attention(x, other, other, key_padding_mask=padding, need_weights=False)[0]
            x = self.cross_norm(x + y)
        return self.ffn_norm(x + self.ffn(x))


def _init_linear(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=LINEAR_SPREAD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class VisionBridge(nn.Module):
    """[0, ZoomOut(Interactor(ZoomIn(patches), Text(words)))] on tokens n (B, P + H W, D) of a vision block."""

    def __init__(self, vision_width: int, text_width: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.zoom_in = nn.Linear(vision_width, width)
        self.text = nn.Linear(text_width, width)
        self.interactor = Interactor(width, heads, crossed=True)
        self.zoom_out = nn.Linear(width, vision_width)
        _init_linear(self)

    def forward(self, tokens: Tensor, guidance: Guidance) -> Tensor:
        prefix = tokens.shape[1] - guidance.grid[0] * guidance.grid[1]
        patches = self.zoom_in(tokens[:, prefix:])
        bridged = self.zoom_out(self.interactor(patches, self.text(guidance.words), guidance.padding))
        return F.pad(bridged, (0, 0, prefix, 0))


class TextBridge(nn.Module):
    """ZoomOut(Interactor(ZoomIn(x))): (B, L, T) -> (B, L, T), x the residual stream after the layer's attention."""

    def __init__(self, text_width: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.zoom_in = nn.Linear(text_width, width)
        self.interactor = Interactor(width, heads, crossed=False)
        self.zoom_out = nn.Linear(width, text_width)
        _init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.zoom_out(self.interactor(self.zoom_in(x), causal=True))


def text_adapter(model: Any, text_width: int) -> nn.Module:
    """Return the adapter of one text layer; see `families`."""
    return TextBridge(text_width, model.rivals.etris.width, heads=model.rivals.etris.heads)


def vision_adapter(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the adapter of one vision layer; see `families`."""
    return VisionBridge(vision_width, text_width, model.rivals.etris.width, heads=model.rivals.etris.heads)


def neck(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return ETRIS's neck, at the width and heads of `model.hmf`; see `families`."""
    return GatedNeck(vision_width, text_width, model.hmf.width, heads=model.hmf.heads, residual=False)
