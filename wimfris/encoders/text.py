"""The frozen text encoder: CLIP's text transformer, with adapters that hooks attach beside its MLPs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from wimfris.encoders.recompute import frozen_statistics, recompute

ATTENTION = "sdpa"  # of both backbones: torch's fused attention, which does not store the attention weights


def text_backbone(
    *, width: int, layers: int, heads: int, vocabulary: int, length: int, end_token: int
) -> CLIPTextModelWithProjection:
    """Return a CLIP text transformer with fresh weights, whose projection has the transformer's width.

    The sentence is pooled at the token `end_token` (2 would select CLIP's old argmax pooling).
    """
    config = CLIPTextConfig(  # type: ignore[call-arg]  # attn_implementation is not declared
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        attn_implementation=ATTENTION,
    )
    return CLIPTextModelWithProjection(config)


class TextEncoder(nn.Module):
    """CLIP's text transformer, frozen, with an adapter beside the MLP of some layers.

    An adapter reads the residual stream after its layer's attention, (B, L, T), and its output is added to the MLP's.
    Adapters act through forward hooks, so code and state-dict names of the backbone stay the same. With
    `checkpointing`, training computes the layers from the first adapter on again in backward.
    """

    def __init__(
        self, backbone: CLIPTextModelWithProjection, adapters: Mapping[int, nn.Module], *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self._stream: dict[int, Tensor] = {}  # layer -> residual stream of the current pass
        for layer, adapter in adapters.items():
            block = backbone.text_model.encoder.layers[layer]
            block.layer_norm2.register_forward_pre_hook(partial(self._store_stream, layer))
            block.mlp.register_forward_hook(partial(self._add_adapter, layer, adapter))
        if checkpointing:
            for layer in range(min(adapters, default=0), len(backbone.text_model.encoder.layers)):
                block = backbone.text_model.encoder.layers[layer]
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

        The causal mask hides the padding from every real token, so no padding mask is needed.
        """
        output = self.backbone(input_ids=token_ids)
        return output.last_hidden_state, output.text_embeds
