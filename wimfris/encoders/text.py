"""The frozen text encoder: a text transformer, with adapters that hooks attach beside its MLPs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wimfris.encoders.backbones import blocks_of, family_of
from wimfris.encoders.recompute import frozen_statistics, recompute
from wimfris.settings.backbones import TEXT


def padding_after(token_ids: Tensor, end_token: int) -> Tensor:
    """Return True at every position after the first end-of-text token: (B, L) -> (B, L) bool.

    The padding id 0 does not mark padding: it is also one of CLIP's word pieces.
    """
    ended = (token_ids == end_token).cumsum(dim=1) > 0
    return torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)


class TextEncoder(nn.Module):
    """A text transformer of one of the families `TEXT`, frozen, with an adapter beside the MLP of some layers.

    An adapter reads the residual stream after its layer's attention, (B, L, T), and its output is added to the MLP's.
    Adapters act through forward hooks, so code and state-dict names of the backbone stay the same. With
    `checkpointing`, training computes the layers from the first adapter on again in backward.
    """

    def __init__(self, backbone: Any, adapters: Mapping[int, nn.Module], *, checkpointing: bool = False) -> None:
        super().__init__()
        self.family = family_of(backbone, TEXT)
        self.backbone = backbone.requires_grad_(False)
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self._stream: dict[int, Tensor] = {}  # layer -> residual stream of the current pass
        blocks = blocks_of(backbone)
        for layer, adapter in adapters.items():
            stream, mlp = (blocks[layer].get_submodule(name) for name in (self.family.stream, self.family.mlp))
            stream.register_forward_pre_hook(partial(self._store_stream, layer))
            mlp.register_forward_hook(partial(self._add_adapter, layer, adapter))
        if checkpointing:
            for layer in range(min(adapters, default=0), len(blocks)):
                block: Any = blocks[layer]
                block.forward = partial(self._checkpoint, block.forward, adapters.get(layer, nn.Identity()))

    @property
    def end_token(self) -> int:
        """Id of the end-of-text token."""
        end = self.backbone.config.eos_token_id
        assert isinstance(end, int)
        return end

    def _store_stream(self, layer: int, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self._stream[layer] = inputs[0]

    def _add_adapter(
        self, layer: int, adapter: nn.Module, module: nn.Module, inputs: tuple[Tensor], output: Tensor
    ) -> Tensor:
        return output + adapter(self._stream.pop(layer))

    def _checkpoint(
        self, forward: Callable[..., Tensor], adapter: nn.Module, *inputs: Tensor | None, **options: Any
    ) -> Tensor:
        """Run a layer's forward. Its hooks run inside, and again in backward."""
        if not (self.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return recompute(forward, *inputs, within=partial(frozen_statistics, adapter), **options)

    def train(self, mode: bool = True) -> "TextEncoder":
        super().train(mode)
        self.backbone.eval()  # frozen: no dropout in any mode
        return self

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return words (B, L, T) and sentence (B, T) of token ids (B, L), padded after the end-of-text token.

        Padding changes neither: a causal mask hides it from every real token, or a mask of the padding does.
        """
        if self.family.sentence == "causal":
            output = self.backbone(input_ids=token_ids)
            return output.last_hidden_state, output.text_embeds
        real = ~padding_after(token_ids, self.end_token)
        words = self.backbone(input_ids=token_ids, attention_mask=real.long()).last_hidden_state
        if self.family.sentence == "mean":
            weights = real.to(words) / real.sum(dim=1, keepdim=True)
            return words, (weights[:, None] @ words)[:, 0]
        last = words[torch.arange(len(words), device=words.device), real.sum(dim=1) - 1]
        head = getattr(self.backbone, "text_model", self.backbone).head  # some versions nest the model
        return words, head(last)
