"""params.yaml, typed: reads it, merges scale and variant, and refuses what it does not know before anything runs.

The settings of one run are the shared sections, overridden by `scales.<scale>`, overridden by `variants.<variant>`.
Every number of an experiment is in params.yaml; this module has no defaults of its own.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from wimfris.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^\w+$")]  # a part of file and stage names
Init = Literal["zero", "kaiming"]
MIXED = ("refcoco", "refcoco+", "refcocog-umd")  # the sets that are trained on together
RIVALS = ("detris", "etris", "lora", "bottleneck")  # whose adapters have sizes of their own
BUILT_IN = ("builtin", "builtin-small", "random")  # sources of encoders that know the built-in set's words
WEIGHT_FILES = (".pt", ".pth", ".safetensors")  # how a source ends that is an original weight file


T = TypeVar("T", bound="Section")


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

    def told(self, dataset: str) -> str:
        """What results call this one of the `sets`: its name, after mixed training with how it was mixed."""
        mixing = {"mixed_strict": " (mixed_strict)", "mixed_as_published": " (mixed_as_published: leaking)"}
        return dataset + mixing.get(self.name, "")


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
    group: str = Field(exclude=True)  # folder of its outs under the data set's: none for the core; decides no result
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
        """Where this variant's runs leave theirs: those beyond the core lie apart, so that no stage of the core depends
        on them.
        """
        return self.folder / self.group

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        text, vision, model = self.encoders.text, self.encoders.vision, self.model
        _require(
            self.data.name in self.data.tokens,
            "data.name",
            f"{', '.join(self.data.tokens)} at scale {self.scale}",
            self.data.name,
        )
        _require(
            self.data.image_size % vision.patch == 0,
            "data.image_size",
            f"a multiple of the patch ({vision.patch})",
            self.data.image_size,
        )
        _require(
            model.neck != "hmf" or (self.scan_window or 1) <= self.grid,
            "model.hmf.window",
            f"at most the grid ({self.grid})",
            model.hmf.window,
        )
        _require(
            self.align_window <= self.grid, "loss.align_window", f"at most the grid ({self.grid})", self.align_window
        )
        for key, width, heads in (
            ("encoders.text", text.width, text.heads),
            ("encoders.vision", vision.width, vision.heads),
            ("model.msa", model.msa.width, model.msa.heads),
            ("model.hmf", model.hmf.width, model.hmf.heads),
        ):
            _require(width % heads == 0, f"{key}.width", f"a multiple of {key}.heads ({heads})", width)
        if model.rivals is not None:
            detris, etris = model.rivals.detris, model.rivals.etris
            for key, width, heads in (
                ("detris.attention_width", detris.attention_width, detris.heads),
                ("etris.width", etris.width, etris.heads),
            ):
                key = f"rivals.{self.scale}.{key}"
                _require(width % heads == 0, key, f"a multiple of its heads ({heads})", width)
        _require(
            model.hmf.width % model.decoder.heads == 0,
            "model.hmf.width",
            f"a multiple of model.decoder.heads ({model.decoder.heads})",
            model.hmf.width,
        )
        _require(text.width % 2 == 0, "encoders.text.width", "even widths (sinusoidal positions)", text.width)
        _require(
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
            _require(all(layer < depth for layer in layers), key, f"layers of 0 .. {depth - 1}", list(layers))
            _require(list(layers) == sorted(set(layers)), key, "each layer once, in order", list(layers))
        _require(all(k % 2 == 1 for k in model.msa.kernels), "model.msa.kernels", "odd sizes", list(model.msa.kernels))
        _require(
            self.train.precision != "fp16" or self.train.device == "cuda",
            "train.precision",
            "fp32 or bf16 on a CPU",
            self.train.precision,
        )
        if isinstance(self.train.schedule, StepSchedule):
            late = [m for m in self.train.schedule.milestones if m >= self.train.epochs]
            _require(not late, "train.schedule.milestones", f"before the last epoch ({self.train.epochs})", late)
        _require(
            self.data.name == "scenes" or text.is_public,
            "encoders.text.source",
            "a hub id or a weight file: the built-in and random encoders know the words of data set scenes alone",
            text.source,
        )
        for key, backbone in (("encoders.text", text), ("encoders.vision", vision)):
            _require(
                backbone.is_hub == (backbone.revision is not None),
                f"{key}.revision",
                "a commit for a hub id, and none otherwise",
                backbone.revision,
            )
        return self


class Params(Section):
    """The whole file. `scales` and `variants` hold overrides; `settings` resolves them."""

    scale: str
    data: dict[str, Any]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    variants: dict[Name, dict[str, Any]]
    extended_seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    extended: dict[Name, dict[str, Any]]
    model: dict[str, Any]
    loss: dict[str, Any]
    evaluate: dict[str, Any]
    rivals: dict[str, dict[str, Any]]
    search: dict[str, Any]  # see wimfris.search.space, which alone reads it: no run depends on it
    pretrain: Pretrain
    pretrain_small: Pretrain
    scales: dict[str, dict[str, Any]]

    @field_validator("seeds", "extended_seeds")
    @classmethod
    def _distinct(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        _require(len(set(seeds)) == len(seeds), str(info.field_name), "each seed once", seeds)
        return seeds

    @model_validator(mode="after")
    def _apart(self) -> "Params":
        both = sorted(self.variants.keys() & self.extended.keys())
        _require(not both, "extended", "names that `variants` does not have", both)
        _require("full" in self.variants, "variants", "a variant `full`, which the others are compared with", "no full")
        return self

    def with_protocol(self, protocol: str | None) -> "Params":
        """These params under another evaluation protocol; None leaves them as they are."""
        return self if protocol is None else self.model_copy(update={"evaluate": {"protocol": protocol}})

    def runs(self) -> list[str]:
        """The runs of the core matrix: every variant with every seed, <variant>-<seed>."""
        return [f"{variant}-{seed}" for variant in self.variants for seed in self.seeds]

    def extended_runs(self) -> list[str]:
        """The runs of the extended variants, <variant>-<seed>."""
        return [f"{variant}-{seed}" for variant in self.extended for seed in self.extended_seeds]

    def runs_of(self, variant: str) -> list[str]:
        """The declared runs of one variant, core or extended."""
        seeds = self.extended_seeds if variant in self.extended else self.seeds
        return [f"{variant}-{seed}" for seed in seeds]

    def stage(self, run: str) -> str:
        """DVC's address of the stage that trains a run."""
        variant = run.rpartition("-")[0]
        return f"studies/dvc.yaml:train@{run}" if variant in self.extended else f"train@{run}"

    def at_scale(self, scale: str | None) -> "Params":
        """The same at another scale, or as it is for None. Raises UserError, in one line, where a variant cannot be at
        that scale, or is another one under a second name there.
        """
        if scale is None or scale == self.scale:
            return self
        found = self.model_copy(update={"scale": scale})
        _check_variants(found)
        return found

    def settings_of(self, run: str) -> Settings:
        """The resolved settings of a run, <variant>-<seed>. Raises as `settings` does."""
        return self.settings(run.rpartition("-")[0])

    def settings(self, variant: str = "full") -> Settings:
        """The resolved settings of a variant at the scale in use. Raises UserError in one line that names the key at
        fault.
        """
        if self.scale not in self.scales:
            raise UserError(f"params.yaml: scale: no scale '{self.scale}'; allowed: {', '.join(self.scales)}")
        section = "extended" if variant in self.extended else "variants"
        known: dict[str, dict[str, Any]] = getattr(self, section)
        if variant not in known:
            there = ", ".join([*self.variants, *self.extended])
            raise UserError(f"params.yaml: variants: no variant '{variant}'; there are: {there}")
        overrides = known[variant]
        foreign = sorted(set(overrides) - {"model", "loss", "train"})
        if foreign:
            raise UserError(
                f"params.yaml: {section}.{variant}.{foreign[0]}: a variant overrides model, loss and train alone"
            )
        settings = self.resolve(variant, overrides, group="extended" if section == "extended" else "")
        model = settings.model
        if section == "variants" and (model.adapters in (*RIVALS, "finetune") or model.neck in RIVALS):
            raise UserError(
                f"params.yaml: variants.{variant}: a rival's adapters or neck; declare it under `extended`, "
                "for no run of the core depends on the rivals' code"
            )
        return settings

    def resolve(self, name: str, overrides: dict[str, Any], *, group: str) -> Settings:
        """The settings of the scale in use under these overrides, as those of a variant of this name whose outs lie in
        this group. Raises UserError in one line that names the key at fault.
        """
        for reserved in {"scale", "variant", "group"} & self.scales[self.scale].keys():
            raise UserError(f"params.yaml: scales.{self.scale}.{reserved}: unknown key; remove it")
        shared = {"data": self.data, "model": self.model, "loss": self.loss, "evaluate": self.evaluate}
        merged = merge(merge(shared, self.scales[self.scale]), overrides)
        rival = merged["model"].get("adapters") in RIVALS
        sizes = merge(self.rivals.get(self.scale, {}), merged["model"].get("rivals", {})) if rival else None
        merged["model"] = merged["model"] | {"rivals": sizes}
        named = {"scale": self.scale, "variant": name, "group": group}
        return validated(Settings, merged | named, scale=self.scale, variant=name)


def placed(layers: tuple[int, ...], placement: str, depth: int) -> tuple[int, ...]:
    """The layers of `depth` that hold an adapter: `layers` themselves (spread), or as many side by side from the first
    layer on (early), in the middle, or up to the last (late).
    """
    first = {"early": 0, "middle": (depth - len(layers)) // 2, "late": depth - len(layers)}
    if placement == "spread":
        return layers
    return tuple(range(first[placement], first[placement] + len(layers)))


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides laid over base, map by map; lists and numbers are replaced. A `kind` that changes replaces its whole
    map.
    """
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        merged[key] = merge(old, value) if same_kind and isinstance(old, dict) else value
    return merged


def read_params(path: Path = Path("params.yaml")) -> Params:
    """The file, checked for the scale in use and every variant. Raises UserError in one line that names the key at
    fault.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or name another params file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings; restore it with git")
    params = validated(Params, content)
    _check_variants(params)
    return params


def _check_variants(params: Params) -> None:
    """Refuse, before anything trains, a variant that cannot be or that is another one under a second name."""
    names: dict[str, str] = {}
    for variant in (*params.variants, *params.extended):
        resolved = plain(params.settings(variant))
        if resolved in names:
            raise UserError(
                f"params.yaml: variants {names[resolved]} and {variant} have equal settings at scale {params.scale}; "
                f"remove one, a table can name {names[resolved]} twice"
            )
        names[resolved] = variant


def plain(settings: Settings) -> str:
    """What a variant's settings come to, however they are worded: a window of the whole grid is none, the alignment's
    window is a number, and of a neck that is not there only the width counts.
    """
    content = settings.model_copy(update={"variant": ""}).model_dump(mode="json")
    content["loss"]["align_window"] = settings.align_window
    if settings.model.neck != "hmf":
        content["model"]["hmf"] = {name: content["model"]["hmf"][name] for name in ("width", "heads")}
    elif settings.scan_window == settings.grid:
        content["model"]["hmf"]["window"] = "grid"
    return json.dumps(content)


def run_folder(data_name: str, scale: str) -> Path:
    """runs/<data set>-<scale>: the outs of one data set at one scale lie apart from every other's."""
    return Path("runs") / f"{data_name}-{scale}"


class _Impossible(ValueError):
    pass


def _require(condition: bool, key: str, allowed: str, value: object) -> None:
    if not condition:
        raise _Impossible(f"{key}: {value} is not possible; allowed: {allowed}")


def validated(kind: type[T], content: dict[str, Any], scale: str = "", variant: str = "") -> T:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(
            "params.yaml: "
            + _told_all(error.errors(), content)
            + (f" (scale {scale}, variant {variant})" if scale else "")
        ) from None


def _path(error: Any, content: Any) -> Iterator[str]:
    """The keys down to the fault: those that the content has. pydantic's path also holds the branches of unions."""
    for part in error["loc"]:
        found = part < len(content) if isinstance(content, list) and isinstance(part, int) else part in _keys(content)
        if found:
            content = content[part]
        if found or (error["type"] == "missing" and part == error["loc"][-1]):
            yield str(part)


def _keys(content: Any) -> Collection[Any]:
    return content if isinstance(content, dict) else ()


def _told(error: Any, content: Any) -> str:
    """One pydantic error as `key: what is wrong; what is allowed`."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, _Impossible):
        return str(cause)
    key = ".".join(_path(error, content))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it, or see params.yaml in the repository for the keys there are"
    if error["type"] == "missing":
        return f"{key}: missing; it has no default"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _told_all(errors: list[Any], content: Any) -> str:
    """The first fault; where it is of a union, what each of its branches allows."""
    first, *others = [_told(error, content) for error in errors]
    key = first.split(":")[0]
    also = [other for other in others if other.split(":")[0] == key]
    return first if not also else first.rsplit(", not ", 1)[0] + "".join(f", or {o.split(': ', 1)[1]}" for o in also)
