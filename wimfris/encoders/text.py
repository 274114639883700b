"""The frozen text encoder: CLIP's text transformer, with adapters attached beside its MLPs by hooks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from wimfris.encoders.recompute import kept_statistics, recompute

ATTENTION = "sdpa"  # of both backbones: torch's fused attention, which never holds the attention weights


def text_backbone(
    *, width: int, layers: int, heads: int, vocabulary: int, length: int, end_token: int
) -> CLIPTextModelWithProjection:
    """A CLIP text transformer with fresh weights; the sentence is projected to its own width.

    `end_token` is the end-of-text id that the sentence is pooled at (2 would mean CLIP's old arg-max pooling).
    """
    config = CLIPTextConfig(  # type: ignore[call-arg]  # of every configuration, and not declared
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
    """words, sentence = encoder(token_ids): CLIP text, frozen, with an adapter beside the MLP of some layers.

    An adapter reads the residual stream after its layer's attention, (B, L, T), and what it returns is added to the
    MLP's output. The backbone's code and state-dict names stay as they are: adapters live beside it and act through
    forward hooks.

    checkpointing: in training, the layers from the first adapter on are computed again in backward.
    """

    def __init__(
        self, backbone: CLIPTextModelWithProjection, adapters: Mapping[int, nn.Module], *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self._stream: dict[int, Tensor] = {}  # layer -> residual stream of the pass under way
        for layer, adapter in adapters.items():
            block = backbone.text_model.encoder.layers[layer]
            block.layer_norm2.register_forward_pre_hook(partial(self._keep_stream, layer))
            block.mlp.register_forward_hook(partial(self._add_adapter, layer, adapter))
        if checkpointing:
            for layer in range(min(adapters, default=0), len(backbone.text_model.encoder.layers)):
                block = backbone.text_model.encoder.layers[layer]
                block.forward = partial(self._checkpoint, block.forward, adapters.get(layer, nn.Identity()))

    @property
    def end_token(self) -> int:
        """The end-of-text id."""
        end = self.backbone.config.eos_token_id
        assert isinstance(end, int)
        return end

    def _keep_stream(self, layer: int, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self._stream[layer] = inputs[0]

    def _add_adapter(
        self, layer: int, adapter: nn.Module, module: nn.Module, inputs: tuple[Tensor], output: Tensor
    ) -> Tensor:
        return output + adapter(self._stream.pop(layer))

    def _checkpoint(
        self, forward: Callable[..., Tensor], adapter: nn.Module, *inputs: Tensor | None, **options: Any
    ) -> Tensor:
        """A layer's forward; its hooks run inside, and once more in backward."""
        if not (self.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return recompute(forward, *inputs, within=partial(kept_statistics, adapter), **options)

    def train(self, mode: bool = True) -> "TextEncoder":
        super().train(mode)
        self.backbone.eval()  # frozen: no dropout, whatever the mode
        return self

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, L), padded after the end-of-text token -> words (B, L, T) and sentence (B, T).

        The causal mask keeps padding out of every real token, so that no padding mask is needed.
        """
        output = self.backbone(input_ids=token_ids)
        return output.last_hidden_state, output.text_embeds
