"""From settings to parts: the only place where the configuration meets the model's constructors."""

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_text, load_vision, weights_hash
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.errors import UserError
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.loss import SegmentationLoss
from wimfris.model.msa import MultiScaleAligner
from wimfris.model.mta import MambaTextAdapter
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings


def build_device(settings: Settings) -> torch.device:
    """The device of the settings. Raises UserError where it is not there."""
    if settings.train.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device: cuda, but torch sees no CUDA device; "
            f"set scales.{settings.scale}.train.device to cpu, or mend the driver"
        )
    return torch.device(settings.train.device)


def uses_baselines(settings: Settings) -> bool:
    """Whether any part of the model is a rival's: `wimfris.rivals` is imported for those alone."""
    return settings.model.adapters != "wimfris" or settings.model.neck in ("detris", "etris")


def build_text_adapters(settings: Settings) -> dict[int, nn.Module]:
    """Text layer -> MTA, or the adapter of a rival."""
    if settings.model.adapters != "wimfris":
        from wimfris.rivals import families as baselines

        return baselines.build_text_adapters(settings)
    mta = settings.model.mta
    return {
        layer: MambaTextAdapter(
            settings.encoders.text.width,
            mta.width,
            state=mta.state,
            conv=mta.conv,
            expand=mta.expand,
            scale=mta.scale,
            init=mta.init,
            backend=settings.model.scan,
        )
        for layer in settings.text_layers
    }


def build_vision_adapters(settings: Settings) -> dict[int, nn.Module]:
    """Vision layer -> MSA, or the adapter of a rival."""
    if settings.model.adapters != "wimfris":
        from wimfris.rivals import families as baselines

        return baselines.build_vision_adapters(settings)
    msa = settings.model.msa
    return {
        layer: MultiScaleAligner(
            settings.encoders.vision.width,
            settings.encoders.text.width,
            msa.width,
            heads=msa.heads,
            kernels=msa.kernels,
            mixer=msa.mixer,
            emphasis=msa.emphasis,
            emphasis_initial=msa.emphasis_initial,
            init=msa.init,
        )
        for layer in settings.vision_layers
    }


def build_neck(settings: Settings) -> nn.Module:
    """HMF, the 1x1 convolution alone where `model.neck` is none, or a rival's neck."""
    if settings.model.neck in ("detris", "etris"):
        from wimfris.rivals import families as baselines

        return baselines.build_neck(settings)
    hmf, text_width = settings.model.hmf, settings.encoders.text.width
    fusion = None
    if settings.model.neck == "hmf":
        fusion = WindowMambaFusion(
            hmf.width,
            text_width,
            window=settings.scan_window,
            text_token=hmf.text_token,
            direction=hmf.direction,
            mixing=hmf.mixing,
            gate=hmf.gate,
            norm=hmf.norm,
            heads=hmf.heads,
            state=hmf.state,
            conv=hmf.conv,
            expand=hmf.expand,
            backend=settings.model.scan,
        )
    return Neck(settings.encoders.vision.width, hmf.width, fusion)


def build_segmenter(settings: Settings, tokenizer: Tokenizer) -> Segmenter:
    """The whole model, backbones loaded, everything else fresh from torch's global random state."""
    backbones = load_text(settings, tokenizer), load_vision(settings)
    loaded = {name: weights_hash(backbone) for name, backbone in zip(("text", "vision"), backbones, strict=True)}
    return assemble(settings, *backbones, loaded)


def assemble(
    settings: Settings,
    text: CLIPTextModelWithProjection,
    vision: Dinov2WithRegistersModel,
    loaded: dict[str, str] | None = None,
) -> Segmenter:
    """The model around its two backbones, which it freezes, or makes ready for a rival's way of tuning; `loaded` are
    their hashes, where they were loaded.
    """
    text_width, width = settings.encoders.text.width, settings.model.hmf.width
    decoder, checkpointing = settings.model.decoder, settings.train.gradient_checkpointing
    taps = settings.encoders.vision.taps
    segmenter = Segmenter(
        TextEncoder(text, build_text_adapters(settings), checkpointing=checkpointing),
        VisionEncoder(vision, build_vision_adapters(settings), taps, checkpointing=checkpointing),
        build_neck(settings),
        Decoder(
            width,
            text_width,
            layers=decoder.layers,
            heads=decoder.heads,
            ffn=decoder.ffn,
            dropout=decoder.dropout,
            checkpointing=checkpointing,
        ),
        Projector(width, text_width),
        nn.Linear(text_width, width),
        loaded,
    )
    if settings.model.adapters != "wimfris":
        from wimfris.rivals import families as baselines

        baselines.tune_backbones(settings, text, vision)
    return segmenter


def build_loss(settings: Settings) -> SegmentationLoss:
    """The weighted sum of the three losses."""
    loss = settings.loss
    return SegmentationLoss(
        contrast=loss.contrast, dice=loss.dice, align=loss.align, window=settings.align_window, target=loss.align_target
    )
