"""The whole model: frozen encoders with their adapters, neck, decoder and projector."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wimfris.encoders.text import TextEncoder, padding_after
from wimfris.encoders.vision import VisionEncoder
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.msa import MultiScaleAligner


@dataclass(frozen=True)
class Output:
    """Mask logits (B, 1, 4H, 4W), and for the alignment loss the neck's map `fused` (B, C, H, W) and the projected
    sentence `anchor` (B, C).
    """

    logits: Tensor
    fused: Tensor
    anchor: Tensor


class Segmenter(nn.Module):
    """Image and sentence in, mask logits out. The encoders' backbones are frozen; everything else is trained.

    encoders: SHA-256 of the two backbones, where they were loaded.
    """

    def __init__(
        self,
        text: TextEncoder,
        vision: VisionEncoder,
        neck: nn.Module,
        decoder: Decoder,
        projector: Projector,
        alignment: nn.Linear,
        encoders: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = encoders or {}
        self.text, self.vision = text, vision
        self.neck, self.decoder, self.projector = neck, decoder, projector
        self.alignment = alignment

    def forward(self, image: Tensor, token_ids: Tensor) -> Output:
        """Segment images (B, 3, S, S) by token_ids (B, L), int64, padded after the end-of-text token."""
        padding = padding_after(token_ids, self.text.end_token)
        words, sentence = self.text(token_ids)
        fused = self.neck(self.vision(image, words, padding), words, sentence, padding)
        logits = self.projector(self.decoder(fused, words, padding), sentence)
        return Output(logits, fused, self.alignment(sentence))

    def trained_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: all parameters and buffers except those frozen in the backbones."""
        backbones = ("text.backbone.", "vision.backbone.")
        tuned = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: value for name, value in self.state_dict().items() if name in tuned or not name.startswith(backbones)
        }

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Load what `trained_state` returned. Raises KeyError where names are missing or unknown."""
        expected = self.trained_state().keys()
        if expected != state.keys():
            missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
            raise KeyError(f"missing: {missing[:3]}, unknown: {unknown[:3]}")
        self.load_state_dict(state, strict=False)

    @torch.no_grad()
    def emphasis(self) -> dict[int, float]:
        """Return vision layer -> learned alpha of its aligner; empty where alpha is fixed."""
        aligners = {int(k): msa for k, msa in self.vision.adapters.items() if isinstance(msa, MultiScaleAligner)}
        return {layer: float(msa.emphasis()) for layer, msa in aligners.items() if msa.emphasis.fixed is None}
