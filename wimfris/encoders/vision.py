"""The frozen vision encoder: a vision transformer, with adapters that hooks attach beside its MLPs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.data.letterbox import CLIP_MEAN, CLIP_STD
from wimfris.encoders.backbones import blocks_of, family_of
from wimfris.encoders.recompute import frozen_statistics, recompute
from wimfris.settings.backbones import VISION, Channels

INTERPOLATION_OFFSET = 0.1  # cells that DETRIS adds to the grid's side when it interpolates positions


def patch_size(backbone: Any) -> int:
    """Return the side of a patch in pixels."""
    size = backbone.config.patch_size
    assert isinstance(size, int)
    return size


def interpolate_positions(positions: Tensor, grid: int) -> Tensor:
    """Interpolate position embeddings as DETRIS does: (1, 1 + M * M, D) -> (1, 1 + grid * grid, D), class token first.

    DETRIS interpolates bicubically at the scale (grid + 0.1) / M without antialiasing. The released DINOv2 with
    registers and transformers use the size and antialiasing. A grid of the same size stays as it is.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    scale = (grid + INTERPOLATION_OFFSET) / side
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def set_positions(backbone: Any, positions: Tensor) -> None:
    """Give a DINOv2 these position embeddings, (1, 1 + grid * grid, D), in place."""
    embeddings = backbone.embeddings
    old = embeddings.position_embeddings
    embeddings.position_embeddings = nn.Parameter(positions.detach().to(old).clone(), requires_grad=old.requires_grad)


def recolouring(colours: tuple[Channels, Channels]) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (3, 1, 1), that turn CLIP's normalisation of an image into that by a mean and standard
    deviation.
    """
    mean, std = map(np.array, colours)
    scale, shift = (torch.tensor(value.tolist())[:, None, None] for value in (CLIP_STD / std, (CLIP_MEAN - mean) / std))
    return scale, shift


def _autocast_type(x: Tensor) -> torch.dtype:
    """Return the type to which autocast casts on the tensor's device; that of the tensor where autocast is off."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def _narrow(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Cast a norm's output to autocast's type once. Each of its readers, all of them linear, would cast it again."""
    return output.to(_autocast_type(output))


def _in_bf16(x: Tensor) -> bool:
    """Return whether the residual stream is bf16: where autocast casts to it. fp16 has too small a range for a sum."""
    return _autocast_type(x) is torch.bfloat16


def _narrow_stream(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast the first block's tokens to the type of the residual stream."""
    tokens, *others = inputs
    return (tokens.bfloat16() if _in_bf16(tokens) else tokens, *others)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Take the norm of bf16 tokens without a copy of them in float32. Its sums are in float32 all the same."""
    if x.dtype is not torch.bfloat16:
        return nn.LayerNorm.forward(norm, x)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _scale(layer_scale: Any, x: Tensor) -> Tensor:
    """Return a layer scale of tokens, in their type where the residual stream is bf16."""
    weight: Tensor = layer_scale.lambda1
    return x * (weight.to(x.dtype) if _in_bf16(x) else weight)


@dataclass(frozen=True)
class Guidance:
    """The second input of a vision adapter: words (B, L, T), padding (B, L; True at padding) and grid (H, W)."""

    words: Tensor
    padding: Tensor
    grid: tuple[int, int]


class VisionEncoder(nn.Module):
    """A vision transformer of one of the families `VISION`, frozen, with an adapter beside the MLP of some blocks.

    It returns three feature maps: the outputs of the blocks `taps` (zero-based) and that of the final norm.

    An adapter reads n = norm2(h), tokens (B, P + H W, D), of which the first P are class and register tokens, and a
    `Guidance`. Its output is added to MLP(n) before the layer scale, if there is one, so the block returns
    h + layer_scale(MLP(n) + adapter(n)). Under autocast to bf16, h is bf16 too. Code and state-dict names of the
    backbone stay the same. With `checkpointing`, training computes the blocks from the first adapter on again in
    backward.
    """

    scale: Tensor  # of the family's colours, as `shift`
    shift: Tensor

    def __init__(
        self,
        backbone: Any,
        adapters: Mapping[int, nn.Module],
        taps: Sequence[int],
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.family = family_of(backbone, VISION)
        self.backbone = backbone.requires_grad_(False)
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self._guidance: Guidance | None = None  # of the current pass
        self._tapped: list[Tensor] = []
        if self.family.colours is not None:
            for name, value in zip(("scale", "shift"), recolouring(self.family.colours), strict=True):
                self.register_buffer(name, value, persistent=False)
        blocks = blocks_of(backbone)
        for layer, adapter in adapters.items():
            blocks[layer].get_submodule("mlp").register_forward_hook(partial(self._add_adapter, adapter))
        blocks[0].register_forward_pre_hook(_narrow_stream)
        parts: list[Any] = [part for block in blocks for part in block.children()]
        for part in parts:
            if isinstance(part, nn.LayerNorm):
                part.forward = partial(_norm, part)  # type: ignore[method-assign]
                part.register_forward_hook(_narrow)
            elif hasattr(part, "lambda1"):  # DINOv2's and DINOv3's layer scale
                part.forward = partial(_scale, part)
        for layer in taps:
            blocks[layer].register_forward_hook(self._tap)
        if checkpointing:
            for layer in range(min(adapters, default=0), len(blocks)):
                block: Any = blocks[layer]
                block.forward = partial(self._checkpoint, block.forward, adapters.get(layer, nn.Identity()))

    def _add_adapter(self, adapter: nn.Module, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + adapter(inputs[0], self._guidance)

    def _tap(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._tapped.append(output)

    def _checkpoint(
        self, forward: Callable[..., Tensor], adapter: nn.Module, *inputs: Tensor | None, **options: Any
    ) -> Tensor:
        """Run a block's forward. The adapter's hook runs inside, and again in backward, after the pass has ended."""
        if not (self.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return recompute(forward, *inputs, within=partial(self._restored, self._guidance, adapter), **options)

    @contextmanager
    def _restored(self, guidance: Guidance | None, adapter: nn.Module) -> Iterator[None]:
        """Compute a block of an earlier pass again, with the guidance of that pass."""
        current, self._guidance = self._guidance, guidance
        try:
            with frozen_statistics(adapter):
                yield
        finally:
            self._guidance = current

    def train(self, mode: bool = True) -> "VisionEncoder":
        super().train(mode)
        self.backbone.eval()  # frozen: no dropout in any mode
        return self

    def forward(self, image: Tensor, words: Tensor, padding: Tensor) -> list[Tensor]:
        """Return three maps (B, D, H, W) of an image (B, 3, P H, P W) with patch size P.

        The adapters read words (B, L, T) and their padding (B, L).
        """
        patch = patch_size(self.backbone)
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        if self.family.colours is not None:
            image = image * self.scale + self.shift
        self._guidance, self._tapped = Guidance(words, padding, grid), []
        try:
            last = self.backbone(pixel_values=image, **self.family.options).last_hidden_state
            prefix = last.shape[1] - grid[0] * grid[1]  # class and register tokens
            return [tokens[:, prefix:].transpose(1, 2).unflatten(2, grid) for tokens in (*self._tapped, last)]
        finally:
            self._guidance, self._tapped = None, []
