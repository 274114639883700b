"""LAVT (Yang et al., CVPR 2022): its pixel-word attention (PWAM), as an adapter of the vision encoder.

LAVT fuses the words into every stage of a Swin encoder. Here PWAM stands between a down- and an up-projection, beside
the MLP of a block. Up starts at zero and takes the place of LAVT's gate, whose two layers both start at zero. Class and
register tokens are left alone. LAVT has no adapter for the text.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.model.layers import init_up


class PixelWordAttention(nn.Module):
    """GELU(project_mm(GELU(vis_project(x)) * Norm(out(Attention(Norm(query(x)), key(l), value(l)))))), in width r.

    Norm is an instance norm over the pixels. Scores are scaled by the whole width, whatever the number of heads.
    """

    def __init__(self, width: int, text_width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.vis_project = nn.Linear(width, width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(text_width, width), nn.Linear(text_width, width)
        self.project_mm = nn.Linear(width, width)

    def forward(self, x: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """Pixels x (B, HW, r), words (B, L, T), padding (B, L), True at padding."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (_norm(self.query(x)), self.key(words), self.value(words))
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=~padding[:, None, None], scale=x.shape[-1] ** -0.5
        )
        language = _norm(self.out(attended.transpose(1, 2).flatten(2)))
        return F.gelu(self.project_mm(F.gelu(self.vis_project(x)) * language))


def _norm(x: Tensor) -> Tensor:
    """Normalise each channel over the pixels: (B, HW, r) -> (B, HW, r)."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


class PixelWordAdapter(nn.Module):
    """[0, Up(PWAM(Down(patches), words))] on tokens (B, 1 + R + H W, D) of a vision block."""

    def __init__(self, vision_width: int, text_width: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.down = nn.Linear(vision_width, width)
        self.attention = PixelWordAttention(width, text_width, heads=heads)
        self.up = init_up(nn.Linear(width, vision_width), "zero")

    def forward(self, tokens: Tensor, guidance: Guidance) -> Tensor:
        prefix = tokens.shape[1] - guidance.grid[0] * guidance.grid[1]
        fused = self.attention(self.down(tokens[:, prefix:]), guidance.words, guidance.padding)
        return F.pad(self.up(fused), (0, 0, prefix, 0))


def vision_adapter(model: Any, vision_width: int, text_width: int) -> nn.Module:
    """Return the adapter of one vision layer; see `families`."""
    sizes = model.rivals.pwam
    return PixelWordAdapter(vision_width, text_width, sizes.width, heads=sizes.heads)
