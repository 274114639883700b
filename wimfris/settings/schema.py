"""Typed sections of params.yaml, and the settings of one run.

params.yaml holds every number of an experiment; few keys have a default here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

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

from wimfris.settings.backbones import TEXT, VISION
from wimfris.settings.messages import require, require_known, require_numbers
from wimfris.settings.placement import placed

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # part of file and stage names
Init = Literal["zero", "kaiming"]
Split = Literal["val", "testA", "testB", "test"]  # of evaluation; training is on `train`
Size = Annotated[int, Field(gt=0, le=2**16)]  # of a part of the model; the limits refuse slips of the keyboard
Number = Annotated[int, Field(gt=0, le=2**10)]
Tokens = Annotated[int, Field(ge=3, le=2**10)]  # of a sentence, with start and end
SCENES = "scenes"  # the built-in data set, which is drawn and not declared
MEMORY = 2**43  # bytes: no machine has more
RIVALS = ("detris", "etris", "lora", "bottleneck", "pwam")  # adapter families whose sizes are in `rivals`
BUILT_IN = ("builtin", "builtin-small", "random")  # encoders that know only the words of the built-in data set
WEIGHT_FILES = (".pt", ".pth", ".safetensors")  # suffixes of original weight files


class Section(BaseModel):
    """A mapping of params.yaml. It cannot be changed and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        if isinstance(content, dict):
            require_known(content, [field.alias or name for name, field in cls.model_fields.items()])
            fields = {name: field.annotation for name, field in cls.model_fields.items() if name in content}
            require_numbers({name: content[name] for name, kind in fields.items() if kind is not bool})
            for name, kind in fields.items():
                if get_origin(kind) is dict and isinstance(content[name], dict):
                    require_numbers(content[name], name)
        return content


class Scenes(Section):
    """Number of scenes in each split of the built-in data set."""

    train: Annotated[int, Field(gt=0, le=10**7)]
    val: Annotated[int, Field(gt=0, le=10**7)]
    testA: Annotated[int, Field(gt=0, le=10**7)]
    testB: Annotated[int, Field(gt=0, le=10**7)]
    # Only tuning runs are evaluated on it, and nothing trains on it. It decides no result of another run.
    tune: Annotated[int, Field(ge=0, le=10**7)] = Field(0, exclude=True)


class DataSet(Section):
    """A data set of `datasets`: where its files lie, or which other sets it mixes."""

    tokens: Tokens
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict
    )  # scale -> overrides of model, loss and train, and `variants` of them


class Files(DataSet):
    """Files in REFER's layout. Paths are relative to data.root."""

    refs: str  # references: a pickle, or JSON
    instances: str  # COCO's images, annotations and categories
    images: str  # folder
    splits: Annotated[tuple[Split, ...], Field(min_length=1)]  # of evaluation; the first chooses the best epoch
    counts: dict[str, tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]] = Field(
        default_factory=dict
    )  # split -> objects, sentences, images


class Mixture(DataSet):
    """Several sets of files, trained on together and evaluated each on its own splits."""

    mix: Annotated[tuple[str, ...], Field(min_length=2)]
    drop_shared: bool  # leave out training images that are in any val or test split; without it results leak


class Data(Section):
    """The data set in use. The fields with a default are those of its declaration in `datasets`."""

    name: str
    root: str  # folder of the declared files
    image_size: Annotated[int, Field(gt=0, le=2**13)]  # side of the letterboxed image, pixels
    tokens: dict[str, Tokens]  # data set -> text tokens, with start and end
    scenes: Scenes
    splits: tuple[Split | Literal["tune"], ...] = ("val", "testA", "testB")  # of evaluation
    mix: tuple[str, ...] = ()
    drop_shared: bool = False
    files: dict[str, Files] = Field(default_factory=dict, exclude=True)  # of `sets`; where they lie decides no result

    @property
    def length(self) -> int:
        """Return the number of text tokens of this data set."""
        return self.tokens[self.name]

    @property
    def sets(self) -> tuple[str, ...]:
        """Return the data sets that this one consists of."""
        return self.mix or (self.name,)


class Backbone(Section):
    """A frozen encoder. Its `family` is one of wimfris/settings/backbones.py."""

    family: str
    source: str  # builtin | builtin-small | random | a hub id | an original weight file
    revision: str | None = None  # commit of the hub id
    width: Size
    layers: Number
    heads: Number

    @property
    def is_hub(self) -> bool:
        """Return whether the source is a hub id."""
        return self.is_public and not self.is_file

    @property
    def is_file(self) -> bool:
        """Return whether the source is a weight file as its authors published it."""
        return self.source.endswith(WEIGHT_FILES)

    @property
    def is_public(self) -> bool:
        """Return whether the source is a published encoder, pretrained on natural language or images."""
        return self.source not in BUILT_IN


class TextBackbone(Backbone):
    family: Literal["clip", "siglip", "bert"] = "clip"


class VisionBackbone(Backbone):
    patch: Size
    registers: Annotated[int, Field(ge=0, le=2**10)]
    taps: tuple[NonNegativeInt, NonNegativeInt]  # zero-based blocks whose outputs are the first two stages
    # How positions come to the grid of the images: as transformers and the released DINOv2 do, or as DETRIS does.
    positions: Literal["transformers", "detris"] = "transformers"
    family: Literal["dinov2_with_registers", "dinov2", "dinov3_vit", "siglip"] = "dinov2_with_registers"


class Encoders(Section):
    text: TextBackbone
    vision: VisionBackbone


class Mta(Section):
    layers: tuple[NonNegativeInt, ...]
    width: Size
    state: Size
    conv: Number
    expand: Number
    scale: float
    init: Init


class Msa(Section):
    layers: tuple[NonNegativeInt, ...]
    width: Size
    heads: Number
    mixer: Literal["rfmixer", "depthwise", "dilated", "none"]  # how the receptive fields are mixed
    kernels: tuple[PositiveInt, ...]
    init: Init
    emphasis: Literal["learned"] | PositiveFloat  # learned, or a fixed alpha
    emphasis_initial: Annotated[float, Field(gt=0, lt=1)]


Window = Literal["grid"] | PositiveInt  # side in cells; grid: no windows, one sequence over the whole map


class Hmf(Section):
    width: Size
    window: Window | Annotated[tuple[Window, ...], Field(min_length=2)]  # several: each for a group of channels
    # position of the sentence in a window's sequence; words: all words in front, instead of the sentence
    text_token: Literal["first", "last", "both", "none", "words"]
    direction: Literal["raster", "bidirectional", "cross"]  # also a backward scan; also both by columns
    passes: Literal[1, 2] = 1  # 2: a second pass, in windows moved by half a window
    mixing: Literal["ssm", "ssd", "attention", "none"]  # how the tokens of a window are mixed; ssd is Mamba-2's scan
    gate: Literal["attention", "text", "none"]
    heads: Number  # of the gate, and of the mixings attention and ssd
    norm: bool
    state: Size
    conv: Number
    expand: Number

    @property
    def windows(self) -> tuple[Window, ...]:
        """Return the window of each group of channels."""
        return self.window if isinstance(self.window, tuple) else (self.window,)


class Decoder(Section):
    layers: Number
    heads: Number
    ffn: Size
    dropout: Fraction


class Detris(Section):
    """DETRIS's dense aligner in the layers of `msa`, and its text adapter in the layers of `mta`."""

    width: Size  # width of the vision aligner
    attention_width: Size  # width of its attention to the words
    heads: Number
    text_width: Size
    scale: float


class Etris(Section):
    """ETRIS's bridger between the encoders, as we read the paper: there are no reference outputs to compare with."""

    width: Size
    heads: Number


class Lora(Section):
    """LoRA on the queries and values of all attention layers of both encoders."""

    rank: Size
    alpha: PositiveFloat


class Bottleneck(Section):
    """Bottleneck adapters Up(ReLU(Down(x))) in the layers of `msa` and `mta`."""

    width: Size
    text_width: Size
    scale: float


class Pwam(Section):
    """LAVT's pixel-word attention in the layers of `msa`."""

    width: Size
    heads: Number


class Rivals(Section):
    """Sizes of a rival's adapters, with about as many trainable parameters as MSA + MTA at the same scale.

    Only those of the family in use are there: the others have no effect.
    """

    detris: Detris | None = None
    etris: Etris | None = None
    lora: Lora | None = None
    bottleneck: Bottleneck | None = None
    pwam: Pwam | None = None


class Model(Section):
    scan: Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]
    adapters: Literal["wimfris", "detris", "etris", "lora", "bottleneck", "pwam", "finetune"]
    placement: Literal["spread", "early", "middle", "late"]  # spread: the layers as listed; see `placed`
    mta: Mta
    msa: Msa
    rivals: Rivals | None  # None unless `adapters` is a rival's: the sizes have no effect otherwise
    neck: Literal["hmf", "none", "detris", "etris"]
    hmf: Hmf
    decoder: Decoder


class Loss(Section):
    contrast: NonNegativeFloat
    dice: NonNegativeFloat
    align: NonNegativeFloat
    align_window: Literal["scan"] | PositiveInt
    align_target: Literal["any", "fraction"]
    target_resize: Literal["nearest", "area"] = "nearest"  # how the mask comes to the size of the logits


class CosineSchedule(Section):
    kind: Literal["cosine"]
    warmup: NonNegativeInt  # steps


class StepSchedule(Section):
    kind: Literal["step"]
    milestones: tuple[PositiveInt, ...]  # epochs
    factor: PositiveFloat


class Train(Section):
    epochs: Annotated[int, Field(gt=0, le=10**6)]
    epoch_steps: PositiveInt | None = None  # at most; None: the whole training split
    batch_size: Annotated[int, Field(ge=2, le=2**16)]  # batch norm needs two
    optimizer: Literal["adam", "adamw"]
    learning_rate: PositiveFloat
    backbone_factor: PositiveFloat = 1.0  # times the learning rate, for backbone parameters
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    average: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the average of the weights that is evaluated
    schedule: CosineSchedule | StepSchedule = Field(discriminator="kind")
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda"]
    threads: Size  # CPU threads: their number changes rounding
    workers: Annotated[int, Field(ge=0, le=2**10)]
    checkpoint_seconds: PositiveFloat
    gradient_checkpointing: bool = False  # less memory, more time, same gradients
    compile: bool = False  # use torch.compile where possible: faster after some minutes, other rounding

    def steps(self, objects: int) -> int:
        """Return the steps of an epoch over this many objects. An incomplete last batch is dropped."""
        return min(objects // self.batch_size, self.epoch_steps or objects)


class Evaluate(Section):
    protocol: Literal["cris", "lavt", "remamber"]  # see wimfris.data.protocol
    batch_size: Size


class PretrainText(Section):
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat


class PretrainVision(PretrainText):
    scenes: PositiveInt


class Pretrain(Section):
    """Pretraining of the built-in encoders of one scale."""

    scale: str
    seed: NonNegativeInt
    text: PretrainText | None = None  # None: use the built-in text encoder, and start from the built-in vision encoder
    vision: PretrainVision


class Settings(Section):
    """All settings of one run, as its manifest records them."""

    scale: str
    variant: str
    group: str = Field(exclude=True)  # folder of the outs: core, extended, extra or a search's
    own_encoders: bool = Field(default=False, exclude=True)  # the variant overrides the encoders of its scale
    data: Data
    encoders: Encoders
    model: Model
    loss: Loss
    train: Train
    evaluate: Evaluate

    @property
    def grid(self) -> int:
        """Return the number of patches along a side of the letterboxed image."""
        return self.data.image_size // self.encoders.vision.patch

    @property
    def scan_window(self) -> int | None:
        """Return the side of the scan's windows in patches; None without windows, or where there are several."""
        window = self.model.hmf.window
        return window if self.model.neck == "hmf" and isinstance(window, int) else None

    @property
    def align_window(self) -> int:
        """Return the side of the alignment loss's windows in patches. It is 4 if the scan has none, or several."""
        return (self.scan_window or 4) if self.loss.align_window == "scan" else self.loss.align_window

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Return the text layers with an adapter."""
        return placed(self.model.mta.layers, self.model.placement, self.encoders.text.layers)

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Return the vision layers with an adapter."""
        return placed(self.model.msa.layers, self.model.placement, self.encoders.vision.layers)

    @property
    def folder(self) -> Path:
        """Return the folder of this data set and scale."""
        return run_folder(self.data.name, self.scale)

    @property
    def encoders_record(self) -> Path:
        """Return the file that identifies the frozen encoders: that of the scale, or the variant's own."""
        return self.folder / (Path("encoders", f"{self.variant}.json") if self.own_encoders else "encoders.json")

    @property
    def record_command(self) -> str:
        """Return the command that writes `encoders_record`."""
        return f"wimfris encoders record --variant {self.variant}" if self.own_encoders else "dvc repro -f encoders"

    @property
    def outs(self) -> Path:
        """Return the folder of this variant's outs. Each group has its own, so that no core stage depends on others."""
        return self.folder / self.group

    @model_validator(mode="after")
    def _check_data(self) -> "Settings":
        data, patch = self.data, self.encoders.vision.patch
        allowed = f"a multiple of {patch} (encoders.vision.patch)"
        require(data.image_size % patch == 0, "data.image_size", allowed, data.image_size)
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> "Settings":
        allowed = f"at most the grid size ({self.grid})"
        sides = [window for window in self.model.hmf.windows if isinstance(window, int)]
        largest = max(sides, default=1) if self.model.neck == "hmf" else 1
        require(largest <= self.grid, "model.hmf.window", allowed, largest)
        require(self.align_window <= self.grid, "loss.align_window", allowed, self.align_window)
        return self

    @model_validator(mode="after")
    def _check_widths(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        multiples = [
            ("encoders.text.width", text.width, text.heads, "encoders.text.heads"),
            ("encoders.text.width", text.width, 2, "sinusoidal positions"),
            ("encoders.vision.width", vision.width, vision.heads, "encoders.vision.heads"),
            ("model.msa.width", model.msa.width, model.msa.heads, "model.msa.heads"),
            ("model.hmf.width", model.hmf.width, model.hmf.heads, "model.hmf.heads"),
            ("model.hmf.width", model.hmf.width, model.decoder.heads, "model.decoder.heads"),
            ("model.hmf.width", model.hmf.width, 4, "two-dimensional sinusoidal positions"),
            ("model.hmf.width", model.hmf.width, len(model.hmf.windows), "groups of channels in model.hmf.window"),
        ]
        if model.neck == "hmf" and model.hmf.mixing in ("attention", "ssd"):
            inner = model.hmf.width // len(model.hmf.windows) * (model.hmf.expand if model.hmf.mixing == "ssd" else 1)
            reason = f"model.hmf.heads, with mixing {model.hmf.mixing}"
            multiples.append(("model.hmf.width", inner, model.hmf.heads, reason))
        if model.rivals is not None:
            key = f"rivals.{self.scale}"
            for name in ("detris", "etris", "pwam"):
                sizes = getattr(model.rivals, name)
                if sizes is not None:
                    field = "attention_width" if name == "detris" else "width"
                    multiples.append(
                        (f"{key}.{name}.{field}", getattr(sizes, field), sizes.heads, f"{key}.{name}.heads")
                    )
        for key, width, divisor, reason in multiples:
            require(width % divisor == 0, key, f"a multiple of {divisor} ({reason})", width)
        return self

    @model_validator(mode="after")
    def _check_layers_and_kernels(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        for key, layers, depth in (
            ("model.mta.layers", model.mta.layers, text.layers),
            ("model.msa.layers", model.msa.layers, vision.layers),
            ("encoders.vision.taps", vision.taps, vision.layers),
        ):
            require(all(layer < depth for layer in layers), key, f"layers from 0 to {depth - 1}", list(layers))
            require(list(layers) == sorted(set(layers)), key, "in increasing order, each layer once", list(layers))
        kernels = list(model.msa.kernels)
        require(bool(kernels) or model.msa.mixer == "none", "model.msa.kernels", "at least one number", kernels)
        require(all(size % 2 == 1 for size in kernels), "model.msa.kernels", "odd numbers", kernels)
        reach = 2 * self.grid - 1  # the outer weights of a larger kernel never meet a pixel
        allowed = f"at most {reach}, which covers the grid of {self.grid} from every cell"
        require(all(size <= reach for size in kernels), "model.msa.kernels", allowed, kernels)
        return self

    @model_validator(mode="after")
    def _check_scan(self) -> "Settings":
        """Refuse what causal_conv1d, which the backend `mamba_ssm` calls, has no kernel for."""
        if self.model.scan == "mamba_ssm":
            for key, block in (("model.mta", self.model.mta), ("model.hmf", self.model.hmf)):
                inner = block.expand * block.width
                if isinstance(block, Hmf):
                    inner //= len(block.windows)
                    inner += 2 * block.state if block.mixing == "ssd" else 0  # its convolution takes B and C too
                require(2 <= block.conv <= 4, f"{key}.conv", "from 2 to 4 with model.scan mamba_ssm", block.conv)
                allowed = "such that width * expand is a multiple of 8 with model.scan mamba_ssm"
                require(inner % 8 == 0, f"{key}.width", allowed, block.width)
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> "Settings":
        """Refuse sizes that no machine holds: the weights of the vision encoder, and its activations of one batch."""
        vision, batch = self.encoders.vision, max(self.train.batch_size, self.evaluate.batch_size)
        tokens = self.grid**2 + 1 + vision.registers
        needs = {
            "encoders.vision.width": 48 * vision.layers * vision.width**2,
            "train.batch_size": 4 * batch * tokens * vision.width,
            "data.image_size": 4 * vision.heads * tokens**2,
        }
        for key, need in needs.items():
            allowed = f"smaller: with the other sizes it needs {need / 2**40:,.0f} TiB of memory"
            value = {"data": self.data.image_size, "train": batch, "encoders": vision.width}[key.split(".")[0]]
            require(need <= MEMORY, key, allowed, value)
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> "Settings":
        weights = [self.loss.contrast, self.loss.dice, self.loss.align]
        require(any(weights), "loss", "a section with a weight above 0 (contrast, dice or align)", weights)
        return self

    @model_validator(mode="after")
    def _check_training(self) -> "Settings":
        train = self.train
        possible = train.precision != "fp16" or train.device == "cuda"
        require(possible, "train.precision", "fp32 or bf16 on a CPU", train.precision)
        if isinstance(train.schedule, StepSchedule):
            late = [milestone for milestone in train.schedule.milestones if milestone >= train.epochs]
            require(not late, "train.schedule.milestones", f"less than train.epochs ({train.epochs})", late)
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "Settings":
        text, vision = self.encoders.text, self.encoders.vision
        for key, backbone in (("encoders.text", text), ("encoders.vision", vision)):
            allowed = "a commit if source is a hub id, null otherwise"
            require(backbone.is_hub == (backbone.revision is not None), f"{key}.revision", allowed, backbone.revision)
        return self

    @model_validator(mode="after")
    def _check_families(self) -> "Settings":
        text, vision = self.encoders.text, self.encoders.vision
        for key, backbone, families in (("encoders.text", text, TEXT), ("encoders.vision", vision, VISION)):
            built_in = backbone.family == next(iter(families))  # of the first family, as scales tiny and small have it
            possible = families[backbone.family].files if backbone.is_file else backbone.is_public or built_in
            allowed = f"a hub id or random with family {backbone.family}"
            require(possible or backbone.source == "random", f"{key}.source", allowed, backbone.source)
        family = VISION[vision.family]
        allowed = f"0, because family {vision.family} has no register tokens"
        require(family.registers or not vision.registers, "encoders.vision.registers", allowed, vision.registers)
        allowed = f"transformers with family {vision.family}, which has no learned position of a class token"
        detris = vision.positions == "detris"
        require(family.detris_positions or not detris, "encoders.vision.positions", allowed, vision.positions)
        if family.positions == "rotary":
            allowed = f"a multiple of {4 * vision.heads} (rotary positions turn pairs of rows and columns in each head)"
            require(vision.width % (4 * vision.heads) == 0, "encoders.vision.width", allowed, vision.width)
        return self


def run_folder(data_name: str, scale: str) -> Path:
    """Return the folder of one data set at one scale, runs/<data set>-<scale>."""
    return Path("runs") / f"{data_name}-{scale}"
