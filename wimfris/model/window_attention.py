"""Multi-head attention among the tokens of a window, in place of the scan."""

from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Self-attention without positions: (batch, L, width) -> (batch, L, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """padding (batch, L), True at tokens that nobody sees."""
        mixed: Tensor = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        return mixed


def mixing(width: int, *, heads: int, state: int, conv: int, expand: int, backend: str) -> nn.Module:
    """Return the block of the mixing `attention`; see `wimfris.model.hmf`."""
    return WindowAttention(width, heads)
