"""The sections of params.yaml and the settings of one run, typed. They have no defaults of their own: every number of an
experiment is in params.yaml.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from wimfris.settings.messages import require

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # a part of file and stage names
Init = Literal["zero", "kaiming"]
MIXED = ("refcoco", "refcoco+", "refcocog-umd")  # the sets that are trained on together
RIVALS = ("detris", "etris", "lora", "bottleneck")  # whose adapters have sizes of their own
BUILT_IN = ("builtin", "builtin-small", "random")  # sources of encoders that know the built-in set's words
WEIGHT_FILES = (".pt", ".pth", ".safetensors")  # how a source ends that is an original weight file


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scenes(Section):
    """How many scenes of each split the built-in set draws."""

    train: PositiveInt
    val: PositiveInt
    testA: PositiveInt
    testB: PositiveInt


class Data(Section):
    name: Literal[
        "scenes",
        "refcoco",
        "refcoco+",
        "refcocog-umd",
        "refcocog-google",
        "mixed_strict",  # MIXED, without the training images that any of their val or test splits holds
        "mixed_as_published",  # MIXED with them: it leaks
    ]
    root: str  # folder of the official files
    image_size: PositiveInt  # side of the letterbox, pixels
    tokens: dict[str, Annotated[int, Field(ge=3)]]  # data set -> text tokens, start and end included
    scenes: Scenes

    @property
    def length(self) -> int:
        """Text tokens of this data set."""
        return self.tokens[self.name]

    @property
    def is_mixed(self) -> bool:
        """Whether several sets are trained on together."""
        return self.name.startswith("mixed_")

    @property
    def sets(self) -> tuple[str, ...]:
        """The data sets that this one is made of."""
        return MIXED if self.is_mixed else (self.name,)

    @property
    def splits(self) -> tuple[str, ...]:
        """The evaluation splits of the data set, `val` first. Those of mixed sets are the sets' own, put together."""
        tests = {"refcocog-umd": ("test",), "refcocog-google": ()}
        return ("val", *tests.get(self.name, ("testA", "testB", *(["test"] if self.is_mixed else []))))


class TextBackbone(Section):
    source: str  # builtin | builtin-small | random | a hub id | an original weight file
    revision: str | None = None  # of the hub id: a commit
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt

    @property
    def is_hub(self) -> bool:
        """Whether the source is a hub id."""
        return self.is_public and not self.is_file

    @property
    def is_file(self) -> bool:
        """Whether the source is a weight file, named as its authors published it."""
        return self.source.endswith(WEIGHT_FILES)

    @property
    def is_public(self) -> bool:
        """Whether the source is one of the published encoders, which know natural language and images."""
        return self.source not in BUILT_IN


class VisionBackbone(TextBackbone):
    patch: PositiveInt
    registers: NonNegativeInt
    taps: tuple[NonNegativeInt, NonNegativeInt]  # zero-based blocks after which the first two stages leave


class Encoders(Section):
    text: TextBackbone
    vision: VisionBackbone


class Mta(Section):
    layers: tuple[NonNegativeInt, ...]
    width: PositiveInt
    state: PositiveInt
    conv: PositiveInt
    expand: PositiveInt
    scale: float
    init: Init


class Msa(Section):
    layers: tuple[NonNegativeInt, ...]
    width: PositiveInt
    heads: PositiveInt
    mixer: Literal["rfmixer", "depthwise", "dilated", "none"]  # what the receptive fields are mixed by
    kernels: tuple[PositiveInt, ...]
    init: Init
    emphasis: Literal["learned"] | PositiveFloat  # learned, or fixed at this alpha
    emphasis_initial: Annotated[float, Field(gt=0, lt=1)]


class Hmf(Section):
    width: PositiveInt
    window: Literal["grid"] | PositiveInt  # grid: no window, one sequence over the whole map
    text_token: Literal["first", "last", "both", "none"]  # where in a window's sequence the sentence stands
    direction: Literal["raster", "bidirectional"]  # bidirectional: a second scan, backwards, is added
    mixing: Literal["ssm", "attention", "none"]  # what mixes the tokens of a window
    gate: Literal["attention", "text", "none"]
    heads: PositiveInt
    norm: bool
    state: PositiveInt
    conv: PositiveInt
    expand: PositiveInt


class Decoder(Section):
    layers: PositiveInt
    heads: PositiveInt
    ffn: PositiveInt
    dropout: Fraction


class Detris(Section):
    """DETRIS's dense aligner and text adapter, in the layers of `msa` and `mta`."""

    width: PositiveInt  # of the vision aligner
    attention_width: PositiveInt  # of its attention to the words
    heads: PositiveInt
    text_width: PositiveInt
    scale: float


class Etris(Section):
    """ETRIS's bridger between the encoders (our reading: there are no golden numbers)."""

    width: PositiveInt
    heads: PositiveInt


class Lora(Section):
    """LoRA on the queries and values of every attention of both encoders."""

    rank: PositiveInt
    alpha: PositiveFloat


class Bottleneck(Section):
    """Plain adapters Up(ReLU(Down(x))) in the layers of `msa` and `mta`."""

    width: PositiveInt
    text_width: PositiveInt
    scale: float


class Rivals(Section):
    """Sizes of the rivals, for about the trainable parameters of MSA + MTA at the same scale."""

    detris: Detris
    etris: Etris
    lora: Lora
    bottleneck: Bottleneck


class Model(Section):
    scan: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]
    adapters: Literal["wimfris", "detris", "etris", "lora", "bottleneck", "finetune"]
    placement: Literal["spread", "early", "middle", "late"]  # spread: the layers as listed; otherwise as many, together
    mta: Mta
    msa: Msa
    rivals: Rivals | None  # None where no adapter is a rival's: their sizes decide nothing then
    neck: Literal["hmf", "none", "detris", "etris"]
    hmf: Hmf
    decoder: Decoder


class Loss(Section):
    contrast: NonNegativeFloat
    dice: NonNegativeFloat
    align: NonNegativeFloat
    align_window: Literal["scan"] | PositiveInt
    align_target: Literal["any", "fraction"]


class CosineSchedule(Section):
    kind: Literal["cosine"]
    warmup: NonNegativeInt  # steps


class StepSchedule(Section):
    kind: Literal["step"]
    milestones: tuple[PositiveInt, ...]  # epochs
    factor: PositiveFloat


class Train(Section):
    epochs: PositiveInt
    epoch_steps: PositiveInt | None = None  # of an epoch; None: the whole training split, less an uneven last batch
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs two
    optimizer: Literal["adam", "adamw"]
    learning_rate: PositiveFloat
    backbone_factor: PositiveFloat = 1.0  # of the learning rate, for what is trained inside the backbones
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    schedule: CosineSchedule | StepSchedule = Field(discriminator="kind")
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda"]
    threads: PositiveInt  # of the CPU: their number changes the sums
    workers: NonNegativeInt
    checkpoint_seconds: PositiveFloat
    gradient_checkpointing: bool = False  # compute layers again in backward: less memory, more time, the same gradients
    compile: bool = False  # by torch.compile, where it can: faster after minutes of compiling, other last bits

    def steps(self, objects: int) -> int:
        """Of an epoch over that many objects: the last, uneven batch is left out."""
        return min(objects // self.batch_size, self.epoch_steps or objects)


class Evaluate(Section):
    protocol: Literal["cris", "lavt", "remamber"]  # see wimfris.data.protocol
    batch_size: PositiveInt


class PretrainText(Section):
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat


class PretrainVision(PretrainText):
    scenes: PositiveInt


class Pretrain(Section):
    """How the built-in encoders were made, for the sizes of one scale."""

    scale: str
    seed: NonNegativeInt
    text: PretrainText | None = (
        None  # None: the built-in text encoder serves, and the vision encoder starts as built in
    )
    vision: PretrainVision


class Settings(Section):
    """Everything that decides a run's result, resolved: what the manifest records."""

    scale: str
    variant: str
    group: str = Field(exclude=True)  # folder of its outs: core, extended or a search's; decides no result
    data: Data
    encoders: Encoders
    model: Model
    loss: Loss
    train: Train
    evaluate: Evaluate

    @property
    def grid(self) -> int:
        """Patches along a side of the letterboxed image."""
        return self.data.image_size // self.encoders.vision.patch

    @property
    def scan_window(self) -> int | None:
        """Side of the scan's windows in patches; None where there is no window."""
        return None if self.model.neck != "hmf" or self.model.hmf.window == "grid" else self.model.hmf.window

    @property
    def align_window(self) -> int:
        """Side of the alignment loss's windows in patches: 4 where it follows a scan that has none."""
        return (self.scan_window or 4) if self.loss.align_window == "scan" else self.loss.align_window

    @property
    def text_layers(self) -> tuple[int, ...]:
        """The text layers that hold an adapter."""
        return placed(self.model.mta.layers, self.model.placement, self.encoders.text.layers)

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """The vision layers that hold an adapter."""
        return placed(self.model.msa.layers, self.model.placement, self.encoders.vision.layers)

    @property
    def folder(self) -> Path:
        """Where the outs of this data set and scale live."""
        return run_folder(self.data.name, self.scale)

    @property
    def outs(self) -> Path:
        """Where this variant's runs leave theirs: those of the core, of the extended variants and of searches lie apart,
        so that no stage of the core depends on the others.
        """
        return self.folder / self.group

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        require(
            self.data.name in self.data.tokens,
            "data.name",
            f"{', '.join(self.data.tokens)} at scale {self.scale}",
            self.data.name,
        )
        require(
            self.data.image_size % vision.patch == 0,
            "data.image_size",
            f"a multiple of the patch ({vision.patch})",
            self.data.image_size,
        )
        require(
            model.neck != "hmf" or (self.scan_window or 1) <= self.grid,
            "model.hmf.window",
            f"at most the grid ({self.grid})",
            model.hmf.window,
        )
        require(
            self.align_window <= self.grid, "loss.align_window", f"at most the grid ({self.grid})", self.align_window
        )
        for key, width, heads in (
            ("encoders.text", text.width, text.heads),
            ("encoders.vision", vision.width, vision.heads),
            ("model.msa", model.msa.width, model.msa.heads),
            ("model.hmf", model.hmf.width, model.hmf.heads),
        ):
            require(width % heads == 0, f"{key}.width", f"a multiple of {key}.heads ({heads})", width)
        if model.rivals is not None:
            detris, etris = model.rivals.detris, model.rivals.etris
            for key, width, heads in (
                ("detris.attention_width", detris.attention_width, detris.heads),
                ("etris.width", etris.width, etris.heads),
            ):
                key = f"rivals.{self.scale}.{key}"
                require(width % heads == 0, key, f"a multiple of its heads ({heads})", width)
        require(
            model.hmf.width % model.decoder.heads == 0,
            "model.hmf.width",
            f"a multiple of model.decoder.heads ({model.decoder.heads})",
            model.hmf.width,
        )
        require(text.width % 2 == 0, "encoders.text.width", "even widths (sinusoidal positions)", text.width)
        require(
            model.hmf.width % 4 == 0,
            "model.hmf.width",
            "a multiple of 4 (two-dimensional sinusoidal positions)",
            model.hmf.width,
        )
        for key, layers, depth in (
            ("model.mta.layers", model.mta.layers, text.layers),
            ("model.msa.layers", model.msa.layers, vision.layers),
            ("encoders.vision.taps", vision.taps, vision.layers),
        ):
            require(all(layer < depth for layer in layers), key, f"layers of 0 .. {depth - 1}", list(layers))
            require(list(layers) == sorted(set(layers)), key, "each layer once, in order", list(layers))
        require(all(k % 2 == 1 for k in model.msa.kernels), "model.msa.kernels", "odd sizes", list(model.msa.kernels))
        require(
            self.train.precision != "fp16" or self.train.device == "cuda",
            "train.precision",
            "fp32 or bf16 on a CPU",
            self.train.precision,
        )
        if isinstance(self.train.schedule, StepSchedule):
            late = [m for m in self.train.schedule.milestones if m >= self.train.epochs]
            require(not late, "train.schedule.milestones", f"before the last epoch ({self.train.epochs})", late)
        require(
            self.data.name == "scenes" or text.is_public,
            "encoders.text.source",
            "a hub id or a weight file: the built-in and random encoders know the words of data set scenes alone",
            text.source,
        )
        for key, backbone in (("encoders.text", text), ("encoders.vision", vision)):
            require(
                backbone.is_hub == (backbone.revision is not None),
                f"{key}.revision",
                "a commit for a hub id, and none otherwise",
                backbone.revision,
            )
        return self


def placed(layers: tuple[int, ...], placement: str, depth: int) -> tuple[int, ...]:
    """The layers of `depth` that hold an adapter: `layers` themselves (spread), or as many side by side from the first
    layer on (early), in the middle, or up to the last (late).
    """
    first = {"early": 0, "middle": (depth - len(layers)) // 2, "late": depth - len(layers)}
    if placement == "spread":
        return layers
    return tuple(range(first[placement], first[placement] + len(layers)))


def run_folder(data_name: str, scale: str) -> Path:
    """runs/<data set>-<scale>: the outs of one data set at one scale lie apart from every other's."""
    return Path("runs") / f"{data_name}-{scale}"
