"""DETRIS (Huang et al., 2025): its dense aligner, its text adapter and its neck.

Their outputs are tested against numbers made with the authors' code; `detris_weights` maps the authors' names.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.model.layers import CoordConv, conv_norm_relu

NORM_EPSILON = 1e-3  # the authors' value, of the adapters' batch norms
ATTENTION_DROPOUT = 0.1  # the authors' value, of the aligner's attention weights


class DenseMixer(nn.Module):
    """Densely connected convolutions of kernels 1, 3 and 5: (B, r, *grid) -> (B, r, *grid).

    b1 = C1(x), b2 = C3(C1([x, b1])), b3 = C5(C1([x, b1, b2])), out = [b1, b2, b3] of r/2, r/4 and r/4 channels, where C
    is a convolution, batch norm and ReLU; kernels 3 and 5 act on r/16 channels. `dimensions`: 1 for words, 2 for maps.
    """

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        half, quarter, reduced = width // 2, width // 4, max(width // 16, 1)
        self.branch1 = _convolution(width, half, 1, dimensions)
        self.branch2 = nn.Sequential(
            _convolution(width + half, reduced, 1, dimensions), _convolution(reduced, quarter, 3, dimensions)
        )
        self.branch3 = nn.Sequential(
            _convolution(width + half + quarter, reduced, 1, dimensions), _convolution(reduced, quarter, 5, dimensions)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.branch1(x)
        second = self.branch2(torch.cat([x, first], dim=1))
        third = self.branch3(torch.cat([x, first, second], dim=1))
        return torch.cat([first, second, third], dim=1)


def _convolution(inputs: int, outputs: int, kernel: int, dimensions: int) -> nn.Sequential:
    if dimensions == 1:
        return nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2),
            nn.BatchNorm1d(outputs, eps=NORM_EPSILON),
            nn.ReLU(),
        )
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs, eps=NORM_EPSILON), nn.ReLU()
    )


class WordAttention(nn.Module):
    """Multi-head attention of patches to words at its own width: (B, N, r), (B, L, T) -> (B, N, r).

    As in the authors' code, padding is not masked and there is no residual around it.
    """

    def __init__(self, width: int, text_width: int, attention_width: int, heads: int) -> None:
        super().__init__()
        self.image = nn.Linear(width, attention_width)
        self.text = nn.Linear(text_width, attention_width)
        self.attention = nn.MultiheadAttention(attention_width, heads, dropout=ATTENTION_DROPOUT, batch_first=True)
        self.back = nn.Linear(attention_width, width)

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        key = self.text(words)
        return self.back(self.attention(self.image(patches), key, key, need_weights=False)[0])


class DenseAligner(nn.Module):
    """scale * Up(x + [prefix, WordAttention(DenseMixer(patches) + patches, words)]), x = [prefix, patches] =
    ReLU(Down(n)), on tokens n (B, P + H W, D) of a vision block; the result is added to the block's MLP.

    Class and register tokens (the prefix of P) bypass the mixer and attention, and so are doubled. Attention reads all
    words, padding included.
    """

    def __init__(
        self, vision_width: int, text_width: int, width: int, *, attention_width: int, heads: int, scale: float
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(vision_width, width)
        self.mixer = DenseMixer(width, 2)
        self.cross = WordAttention(width, text_width, attention_width, heads)
        self.up = nn.Linear(width, vision_width)
        for module in self.modules():  # as in the authors' code: He initialisation of convolutions and linear layers
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, guidance: Guidance) -> Tensor:
        height, width = guidance.grid
        x = F.relu(self.down(tokens))
        prefix, patches = x.split([x.shape[1] - height * width, height * width], dim=1)
        grid = patches.transpose(1, 2).unflatten(2, (height, width))
        mixed = (self.mixer(grid) + grid).flatten(2).transpose(1, 2)
        return self.scale * self.up(x + torch.cat([prefix, self.cross(mixed, guidance.words)], dim=1))


class DenseTextAdapter(nn.Module):
    """scale * Up(x + [x_0, DenseMixer(x_1 ..)]), x = ReLU(Down(residual stream)): (B, L, T) -> (B, L, T).

    The stream is the one after the layer's attention; the result is added to the layer's MLP. The first token bypasses
    the mixer. Its kernels read later words and padding, which breaks CLIP's causal order, as in the authors' code.
    """

    def __init__(self, text_width: int, width: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(text_width, width)
        self.mixer = DenseMixer(width, 1)
        self.up = nn.Linear(width, text_width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        mixed = self.mixer(x[:, 1:].transpose(1, 2)).transpose(1, 2)
        return self.scale * self.up(x + torch.cat([x[:, :1], mixed], dim=1))


class SentenceGate(nn.Module):
    """x * MHA(x, sentence): (B, N, C), (B, 1, C) -> (B, N, C).

    Attention over one key has weight 1 whatever the query: this is a gate per channel made from the sentence.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        return x * self.attention(x, sentence, sentence, need_weights=False)[0]


class GatedNeck(nn.Module):
    """The neck that ETRIS and DETRIS share: three stages (B, D, H, W) of one size -> (B, C, H, W).

    a = Aggr([Gate_i(Proj_i(stage_i), Text(sentence)) for i = 1, 2, 3]), where Proj and Aggr are 1x1 convolutions with
    batch norm and ReLU. out = CoordConv(a), plus a where `residual`, as in DETRIS but not in ETRIS.
    """

    def __init__(self, vision_width: int, text_width: int, width: int, *, heads: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.text = nn.Linear(text_width, width)
        self.projections = nn.ModuleList(conv_norm_relu(vision_width, width, 1) for _ in range(3))
        self.gates = nn.ModuleList(SentenceGate(width, heads) for _ in range(3))
        self.aggregate = conv_norm_relu(3 * width, width, 1)
        self.coordinates = CoordConv(width)

    def forward(self, stages: list[Tensor], words: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """stages: three maps (B, D, H, W); sentence (B, T). `words` and `padding` are ignored."""
        key, grid = self.text(sentence)[:, None], stages[0].shape[2:]
        gated = []
        for stage, project, gate in zip(stages, self.projections, self.gates, strict=True):
            cells = project(stage).flatten(2).transpose(1, 2)
            gated.append(gate(cells, key).transpose(1, 2).unflatten(2, grid))
        fused = self.aggregate(torch.cat(gated, dim=1))
        located = self.coordinates(fused)
        return fused + located if self.residual else located


def text_adapter(model: Any, text_width: int) -> nn.Module:
    """Return the adapter of one text layer; see `families`."""
    sizes = model.rivals.detris
    return DenseTextAdapter(text_width, sizes.text_width, scale=sizes.scale)


def vision_adapter(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the adapter of one vision layer; see `families`."""
    sizes = model.rivals.detris
    return DenseAligner(
        vision_width,
        text_width,
        sizes.width,
        attention_width=sizes.attention_width,
        heads=sizes.heads,
        scale=sizes.scale,
    )


def neck(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return DETRIS's neck, at the width and heads of `model.hmf`; see `families`."""
    return GatedNeck(vision_width, text_width, model.hmf.width, heads=model.hmf.heads, residual=True)
