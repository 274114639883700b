"""Typed sections of params.yaml, which holds every number of an experiment; few keys have a default here."""

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

from wimfris.settings.messages import require_known, require_numbers

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # part of file and stage names
Init = Literal["zero", "kaiming"]
Split = Literal["val", "testA", "testB", "test"]  # of evaluation; training is on `train`
Size = Annotated[int, Field(gt=0, le=2**16)]  # of a part of the model; the limits refuse slips of the keyboard
Number = Annotated[int, Field(gt=0, le=2**10)]
Tokens = Annotated[int, Field(ge=3, le=2**10)]  # of a sentence, with start and end
SCENES = "scenes"  # the built-in data set, which is drawn and not declared
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
    validation_images: PositiveInt | None = None  # first images of the first split for an epoch's score; None: all
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
    # The first images of a split, which its controls read and whose masks are kept; None: all.
    control_images: Annotated[int, Field(ge=4)] | None = None


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
