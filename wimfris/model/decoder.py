"""The task decoder, as in CRIS and DETRIS: transformer layers over the map, then a convolution made by the sentence."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.recompute import recompute
from wimfris.model.tables import table
from wimfris.model.upsampling import UpsampledConv


def _sinusoid(positions: Tensor, width: int) -> Tensor:
    """Encode positions (n,) -> (n, width) by sines at even and cosines at odd channels (Vaswani et al., 2017).

    Wavelengths run from 2 pi to 10000 * 2 pi.
    """
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = positions[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


@table
def positions_1d(length: int, width: int) -> Tensor:
    """Return the encoded positions of words, (1, length, width)."""
    return _sinusoid(torch.arange(length).float(), width)[None]


@table
def positions_2d(height: int, width: int, channels: int) -> Tensor:
    """Return the encoded positions of a map's cells in raster order, (1, height * width, channels).

    The first half of the channels encodes x, the second y.
    """
    xs = _sinusoid(torch.arange(width).float(), channels // 2)[None].expand(height, -1, -1)
    ys = _sinusoid(torch.arange(height).float(), channels // 2)[:, None].expand(-1, width, -1)
    return torch.cat([xs, ys], dim=-1).reshape(1, height * width, channels)


class DecoderLayer(nn.Module):
    """Self-attention over the map, cross-attention to the words, feed-forward, each with a residual around it.

    Layer norms stand before each of them, and after both attentions.
    """

    def __init__(self, width: int, text_width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(
            width, heads, dropout=dropout, kdim=text_width, vdim=text_width, batch_first=True
        )
        self.cross_attention_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(ffn), nn.Linear(ffn, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, words: Tensor, cells: Tensor, order: Tensor, padding: Tensor) -> Tensor:
        """x (B, H * W, C), words (B, L, T), their positions `cells` and `order`, padding (B, L) -> (B, H * W, C)."""
        y = self.norm1(x)
        query = y + cells
        x = x + self.dropout(self.self_attention_norm(self.self_attention(query, query, y, need_weights=False)[0]))
        query = self.norm2(x) + cells
        y = self.cross_attention(query, words + order, words, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.dropout(self.cross_attention_norm(y))
        return x + self.dropout(self.ffn(self.norm3(x)))


class Decoder(nn.Module):
    """A stack of decoder layers and a final norm.

    checkpointing: in training, compute the layers again in backward.
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        *,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(DecoderLayer(width, text_width, heads, ffn, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, fused: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """Map (B, C, H, W), words (B, L, T), padding (B, L) -> (B, C, H, W)."""
        grid = (fused.shape[2], fused.shape[3])
        cells = positions_2d(*grid, fused.shape[1], device=fused.device).to(fused.dtype)
        order = positions_1d(words.shape[1], words.shape[2], device=words.device).to(words.dtype)
        x = fused.flatten(2).transpose(1, 2)
        checkpointed = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            inputs = (x, words, cells, order, padding)
            x = recompute(layer, *inputs) if checkpointed else layer(*inputs)
        return self.norm(x).transpose(1, 2).unflatten(2, grid)


class Projector(nn.Module):
    """Mask logits: a 3x3 convolution, whose weights and bias the sentence makes, of the map at four times its size."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        layers = {  # DETRIS's names: its layers 0 and 2 upsample
            "1": nn.Sequential(UpsampledConv(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            "3": nn.Sequential(UpsampledConv(width, width // 2), nn.BatchNorm2d(width // 2), nn.ReLU(inplace=True)),
            "4": nn.Conv2d(width // 2, width // 2, 1),
        }
        self.pixels = nn.Sequential(OrderedDict(layers))
        self.kernel = nn.Linear(text_width, 9 * (width // 2) + 1)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """Map (B, C, H, W), sentence (B, T) -> logits (B, 1, 4H, 4W)."""
        parts: list[Any] = list(self.pixels)
        *upsampling, mix = parts
        for layer in upsampling:
            x = layer(x)
        kernel = self.kernel(sentence)
        weight = kernel[:, :-1].unflatten(1, (x.shape[1], 9))
        # The 1x1 convolution is applied to the sentence's kernel instead of the map, which is larger.
        return convolve_each(x, mix.weight.flatten(1).T @ weight, mix.bias @ weight, kernel[:, -1])


def convolve_each(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor) -> Tensor:
    """Convolve each sample with its own 3x3 kernel to one channel; outside the map there are zeros.

    x (B, C, H, W), weight (B, C, 9), offset (B, 9; added to each tap's product with a cell), bias (B,) ->
    (B, 1, H, W). This is a matrix product over channels and a sum of nine shifted maps, because grouped convolutions
    are slow everywhere.
    """
    cells = x.permute(0, 2, 3, 1).flatten(1, 2)
    # Products of nine columns are slow, and of a multiple of eight fast.
    weight, offset = (F.pad(x.flip(-1), (0, 7)) for x in (weight, offset))
    taps = torch.baddbmm(offset[:, None], cells, weight)[..., :9].mT
    return F.fold(taps, x.shape[-2:], kernel_size=3, padding=1) + bias[:, None, None, None]
