"""The frozen vision encoder: DINOv2 with registers, with adapters that hooks attach beside its MLPs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from wimfris.encoders.recompute import frozen_statistics, recompute
from wimfris.encoders.text import ATTENTION

INTERPOLATION_OFFSET = 0.1  # cells that DETRIS adds to the grid's side when it interpolates positions


def vision_backbone(
    *, width: int, layers: int, heads: int, patch: int, registers: int, image_size: int, layer_scale: float = 1.0
) -> Dinov2WithRegistersModel:
    """Return a DINOv2 with registers and fresh weights, whose position grid is that of `image_size` pixels."""
    config = Dinov2WithRegistersConfig(  # type: ignore[call-arg]  # attn_implementation is not declared
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=4,
        patch_size=patch,
        image_size=image_size,
        num_register_tokens=registers,
        layerscale_value=layer_scale,
        attn_implementation=ATTENTION,
    )
    return Dinov2WithRegistersModel(config)


def patch_size(backbone: Dinov2WithRegistersModel) -> int:
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


def set_positions(backbone: Dinov2WithRegistersModel, positions: Tensor) -> None:
    """Give the backbone these position embeddings, (1, 1 + grid * grid, D), in place."""
    embeddings: Any = backbone.embeddings
    old = embeddings.position_embeddings
    embeddings.position_embeddings = nn.Parameter(positions.detach().to(old).clone(), requires_grad=old.requires_grad)


def _narrow(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Cast a norm's output to autocast's type once. Each of its readers, all of them linear, would cast it again."""
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


@dataclass(frozen=True)
class Guidance:
    """The second input of a vision adapter: words (B, L, T), padding (B, L; True at padding) and grid (H, W)."""

    words: Tensor
    padding: Tensor
    grid: tuple[int, int]


class VisionEncoder(nn.Module):
    """DINOv2 with registers, frozen, with an adapter beside the MLP of some blocks; it returns three feature maps.

    An adapter reads n = norm2(h), tokens (B, 1 + R + H W, D), and a `Guidance`. Its output is added to MLP(n) before
    the layer scale, so the block returns h + layer_scale(MLP(n) + adapter(n)). Code and state-dict names of the
    backbone stay the same. The first two maps are the outputs of the blocks `taps` (zero-based), the third that of the
    final norm. With `checkpointing`, training computes the blocks from the first adapter on again in backward.
    """

    def __init__(
        self,
        backbone: Dinov2WithRegistersModel,
        adapters: Mapping[int, nn.Module],
        taps: Sequence[int],
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self._guidance: Guidance | None = None  # of the current pass
        self._tapped: list[Tensor] = []
        for layer, adapter in adapters.items():
            backbone.encoder.layer[layer].get_submodule("mlp").register_forward_hook(
                partial(self._add_adapter, adapter)
            )
        for block in backbone.encoder.layer:
            for norm in ("norm1", "norm2"):
                block.get_submodule(norm).register_forward_hook(_narrow)
        for layer in taps:
            backbone.encoder.layer[layer].register_forward_hook(self._tap)
        if checkpointing:
            for layer in range(min(adapters, default=0), len(backbone.encoder.layer)):
                block: Any = backbone.encoder.layer[layer]
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
        patch, registers = patch_size(self.backbone), self.backbone.config.num_register_tokens
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        self._guidance, self._tapped = Guidance(words, padding, grid), []
        try:
            last = self.backbone(pixel_values=image).last_hidden_state
            return [tokens[:, 1 + registers :].transpose(1, 2).unflatten(2, grid) for tokens in (*self._tapped, last)]
        finally:
            self._guidance, self._tapped = None, []
