"""The families of frozen encoders: their classes in transformers, their tokens and positions, and where adapters act.

To add a family, add an entry to `TEXT` or `VISION`, and its name to `TextBackbone.family` or `VisionBackbone.family`.
The blocks need no entry: they are the one list of modules that is as long as the configuration says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TextFamily:
    """A family of text encoders. In each block the adapter reads the input of `stream`, the residual stream after
    attention, and its output is added to that of `mlp`.
    """

    model: str  # class in transformers, as `config`
    config: str
    types: tuple[str, ...]  # `model_type` of its configuration, and of published checkpoints that hold it
    # The sentence: the model's own pooling at the end token, after causal attention; the model's head there; or the
    # mean of the real tokens. The last two are bidirectional and get a mask of the padding.
    sentence: Literal["causal", "head", "mean"]
    projection: str = ""  # the configuration's name for the width of the sentence, if that is a setting
    vocabulary: int  # of published checkpoints
    positions: int  # of published checkpoints
    stream: str = "layer_norm2"
    mlp: str = "mlp"
    files: bool = False  # whether the authors' original weight files can be read


@dataclass(frozen=True, kw_only=True)
class VisionFamily:
    """A family of vision encoders. In each block the adapter reads the input of module `mlp`, and its output is added
    to that module's.
    """

    model: str
    config: str
    types: tuple[str, ...]
    class_token: bool
    registers: bool  # whether it can have register tokens
    positions: Literal["learned", "rotary"]  # learned ones are interpolated to the grid of the image
    pixels: int  # side of the images of published checkpoints
    inner: str = "intermediate_size"  # the configuration's name for the MLP's width; "mlp_ratio" is relative
    settings: Mapping[str, Any] = field(default_factory=dict)  # fixed entries of the configuration
    options: Mapping[str, Any] = field(default_factory=dict)  # of every pass
    # Mean and standard deviation of RGB in pretraining. None: images stay normalised by CLIP's, with which DETRIS and
    # the paper feed DINOv2.
    colours: tuple[Channels, Channels] | None = None
    files: bool = False

    @property
    def detris_positions(self) -> bool:
        """Return whether positions can be interpolated as DETRIS does: a learned table with a class token."""
        return self.class_token and self.positions == "learned"


TEXT = {
    "clip": TextFamily(
        model="CLIPTextModelWithProjection",
        config="CLIPTextConfig",
        types=("clip_text_model", "clip"),
        sentence="causal",
        projection="projection_dim",
        vocabulary=49408,
        positions=77,
        files=True,
    ),
    "siglip": TextFamily(  # SigLIP, and SigLIP 2 with a fixed resolution
        model="SiglipTextModel",
        config="SiglipTextConfig",
        types=("siglip_text_model", "siglip"),
        sentence="head",
        projection="projection_size",
        vocabulary=256000,
        positions=64,
    ),
    "bert": TextFamily(  # BERT, and the sentence encoders made of it
        model="BertModel",
        config="BertConfig",
        types=("bert",),
        sentence="mean",
        vocabulary=30522,
        positions=512,
        stream="intermediate",
        mlp="output.dense",
    ),
}
VISION = {
    "dinov2_with_registers": VisionFamily(
        model="Dinov2WithRegistersModel",
        config="Dinov2WithRegistersConfig",
        types=("dinov2_with_registers",),
        class_token=True,
        registers=True,
        positions="learned",
        pixels=518,
        inner="mlp_ratio",
        files=True,
    ),
    "dinov2": VisionFamily(
        model="Dinov2Model",
        config="Dinov2Config",
        types=("dinov2",),
        class_token=True,
        registers=False,
        positions="learned",
        pixels=518,
        inner="mlp_ratio",
        files=True,
    ),
    "dinov3_vit": VisionFamily(
        model="DINOv3ViTModel",
        config="DINOv3ViTConfig",
        types=("dinov3_vit",),
        class_token=True,
        registers=True,
        positions="rotary",
        pixels=224,
        colours=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    "siglip": VisionFamily(  # SigLIP, and SigLIP 2 with a fixed resolution
        model="SiglipVisionModel",
        config="SiglipVisionConfig",
        types=("siglip_vision_model", "siglip"),
        class_token=False,
        registers=False,
        positions="learned",
        pixels=512,
        settings={"vision_use_head": False},  # its pooling, which nothing reads
        options={"interpolate_pos_encoding": True},
        colours=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ),
}
