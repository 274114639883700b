"""What is searched: the spaces of params.yaml, checked before anything runs, and what a trial draws from one.

A space has distributions in the places of the settings that they decide; all else is as params.yaml has it. Layers are
drawn as random keys (Bean, 1994): a number of layers and a key for each layer, of which the largest are taken. So every
draw is a set of layers of an allowed size, none is more likely than another, and no condition ties one to the next.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from optuna.trial import BaseTrial
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, model_validator

from wimfris.errors import UserError
from wimfris.measure.parameters import trained_parameters
from wimfris.settings.messages import validated
from wimfris.settings.params import Params, merge
from wimfris.settings.schema import Name, Section, Settings

BUDGET = "model.msa.width"  # the one width that gives way
TOLERANCE = 0.05  # of the trained parameters of the adapters, where they are held
TRAIN = (
    "learning_rate",
    "weight_decay",
    "clip_norm",
)  # what a space may hold of `train`: a trial's length is the study's
KINDS = ("choice", "real", "layers", "budget")


class Choice(Section):
    """One of these values."""

    kind: Literal["choice"]
    of: Annotated[tuple[Any, ...], Field(min_length=1)]

    def draw(self, trial: BaseTrial, path: str) -> Any:
        if all(_scalar(value) for value in self.of):
            return trial.suggest_categorical(path, self.of)
        return json.loads(trial.suggest_categorical(path, [json.dumps(value) for value in self.of]))

    def ends(self) -> tuple[Any, ...]:
        return self.of

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if value not in self.of:
            raise ValueError(f"{value} is none of {list(self.of)}")
        return {path: value if all(_scalar(one) for one in self.of) else json.dumps(value)}


class Real(Section):
    """A number of an interval; log: of its logarithm."""

    kind: Literal["real"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Real":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 where log is on")
        return self

    def draw(self, trial: BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high, log=self.log)

    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} is not within {self.low} .. {self.high}")
        return {path: value}


class Layers(Section):
    """A set of the encoder's layers, of `least` to `most` members, or as many as there are."""

    kind: Literal["layers"]
    least: PositiveInt
    most: PositiveInt
    depth: PositiveInt = 1  # of the encoder, by the scale in use

    @model_validator(mode="after")
    def _ordered(self) -> "Layers":
        if self.least > self.most:
            raise ValueError(f"least {self.least} must not be above most {self.most}")
        return self

    def draw(self, trial: BaseTrial, path: str) -> list[int]:
        size = trial.suggest_int(f"{path}.size", min(self.least, self.depth), min(self.most, self.depth))
        keys = [trial.suggest_float(f"{path}.{layer}", 0.0, 1.0) for layer in range(self.depth)]
        return sorted(sorted(range(self.depth), key=lambda layer: -keys[layer])[:size])

    def ends(self) -> tuple[list[int], list[int]]:
        return list(range(min(self.least, self.depth))), list(range(min(self.most, self.depth)))

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if not self.least <= len(value) <= self.most or not set(value) <= set(range(self.depth)):
            raise ValueError(f"{value} is no set of {self.least} to {self.most} of the layers 0 .. {self.depth - 1}")
        return {f"{path}.size": len(value)} | {f"{path}.{n}": float(n in value) for n in range(self.depth)}


class Budget(Section):
    """The width at which the adapters have the trained parameters of `full`'s: not drawn, it follows from the rest."""

    kind: Literal["budget"]


Distribution = Choice | Real | Layers
_ANY: TypeAdapter[Choice | Real | Layers | Budget] = TypeAdapter(
    Annotated[Choice | Real | Layers | Budget, Field(discriminator="kind")]
)


class Search(Section):
    """The section `search` of params.yaml."""

    space: str  # what is searched where none is named
    trials: PositiveInt
    seed: NonNegativeInt  # of the sampler, and of every trial's training
    train: dict[str, dict[str, Any]]  # scale -> overrides of `train`: how long a trial is trained
    spaces: dict[Name, dict[str, Any]]


class _File(Section):
    search: Search


def read_search(params: Params) -> Search:
    """The section `search`. Raises UserError in one line that names the key at fault."""
    search = validated(_File, {"search": params.search}).search
    if search.space not in search.spaces:
        raise UserError(f"params.yaml: search.space: no space '{search.space}'; there are: {', '.join(search.spaces)}")
    if search.seed in (*params.seeds, *params.extended_seeds):
        raise UserError(
            f"params.yaml: search.seed: {search.seed} is a seed of the matrix; take another, for what a search finds "
            "is confirmed with seeds that it has not seen"
        )
    if params.scale not in search.train:
        raise UserError(f"params.yaml: search.train: says nothing of scale {params.scale}; add how long a trial trains")
    return search


@dataclass(frozen=True)
class Space:
    """A space of params.yaml at the scale in use. Raises UserError where any of its draws would be impossible."""

    name: str
    params: Params
    search: Search = field(repr=False)

    def __post_init__(self) -> None:
        if self.name not in self.search.spaces:
            raise UserError(f"--space {self.name}: not in params.yaml; there are: {', '.join(self.search.spaces)}")
        if not self.distributions:
            raise self._fault("", "decides nothing; give it a distribution")
        self._check_pairs()
        self.first  # noqa: B018  # refuses what it cannot be

    @cached_property
    def _leaves(self) -> dict[str, Any]:
        """Dotted key -> distribution, or a value that holds for all trials."""
        declared = {key: value for key, value in self.search.spaces[self.name].items() if key != "first"}
        found: dict[str, Any] = {}
        full = self.params.settings()
        depths = {"model.mta.layers": full.encoders.text.layers, "model.msa.layers": full.encoders.vision.layers}
        for path, value in _walk(declared):
            top, _, key = path.partition(".")
            if top not in ("model", "loss", "train") or not key:
                raise self._fault(path, "a space holds keys of model, loss and train alone")
            if top == "train" and key not in TRAIN:
                raise self._fault(path, f"of train, a space may hold {', '.join(TRAIN)}: all trials train equally long")
            if not (isinstance(value, dict) and "kind" in value):
                found[path] = value
                continue
            if value["kind"] not in KINDS:
                raise self._fault(path, f"kind '{value['kind']}' is none of {', '.join(KINDS)}")
            if (value["kind"] == "layers") != (path in depths) and value["kind"] in ("layers", "real"):
                raise self._fault(path, f"kind {value['kind']} does not go there")
            try:
                found[path] = _ANY.validate_python(
                    value | ({"depth": depths[path]} if value["kind"] == "layers" else {})
                )
            except ValidationError as error:
                told = error.errors()[0]
                key = ".".join(map(str, told["loc"][1:]))
                raise self._fault(f"{path}.{key}" if key else path, told["msg"].lower()) from None
            if isinstance(found[path], Budget) and path != BUDGET:
                raise self._fault(path, f"the budget is kept by {BUDGET} alone")
        return found

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Dotted key of a setting -> what it is drawn from."""
        return {path: value for path, value in self._leaves.items() if isinstance(value, Choice | Real | Layers)}

    @property
    def keeps_budget(self) -> bool:
        """Whether every draw has about the trained parameters of `full`'s adapters."""
        return isinstance(self._leaves.get(BUDGET), Budget)

    @cached_property
    def first(self) -> dict[str, Any]:
        """The parameters, as Optuna names them, of the first trial; empty where none is declared."""
        encoded: dict[str, Any] = {}
        for path, value in _walk(self.search.spaces[self.name].get("first", {})):
            if path not in self.distributions:
                raise self._fault(f"first.{path}", "not a distribution of the space")
            try:
                encoded |= self.distributions[path].encode(path, value)
            except (ValueError, TypeError) as error:
                raise self._fault(f"first.{path}", str(error)) from None
        return encoded

    def draw(self, trial: BaseTrial) -> dict[str, Any]:
        """The overrides of a trial, as a variant of params.yaml would have them."""
        return self._overrides({path: value.draw(trial, path) for path, value in self.distributions.items()})

    def settings(self, name: str, overrides: Mapping[str, Any], group: str) -> Settings:
        """The settings of a trial: those of the scale in use, trained as long as a trial is, under its overrides."""
        length = {"train": self.search.train[self.params.scale]}
        return self.params.resolve(name, merge(length, dict(overrides)), group=group)

    def _overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {path: value for path, value in self._leaves.items() if not isinstance(value, Section)}
        overrides: dict[str, Any] = {}
        for path, value in {**fixed, **values}.items():
            overrides = merge(overrides, nested(path, value))
        return merge(overrides, nested(BUDGET, self._width(overrides))) if self.keeps_budget else overrides

    def _width(self, overrides: dict[str, Any]) -> int:
        """The width, a multiple of the heads, whose adapters come nearest to the trained parameters of `full`'s."""
        settings = self.settings("width", overrides, "")
        counts = {path: len(value) for path, value in _walk(overrides) if path.endswith(".layers")}
        key = json.dumps(dict(_walk(overrides)) | counts, sort_keys=True)  # which layers they are decides nothing
        if key not in self._widths:
            heads = settings.model.msa.heads
            target = self._adapters({})

            def off(heads_wide: int) -> float:
                found = self._adapters(merge(overrides, nested(BUDGET, heads * heads_wide)))
                return found / target - 1

            above = 1
            while off(above) < 0:
                above *= 2
            below = above // 2
            while above - below > 1:
                middle = (above + below) // 2
                below, above = (middle, above) if off(middle) < 0 else (below, middle)
            best = min((width for width in (below, above) if width), key=lambda width: abs(off(width)))
            if abs(off(best)) > TOLERANCE:
                raise self._fault(
                    BUDGET,
                    f"{len(settings.vision_layers)} layers come within {abs(off(best)):.0%} of the trained parameters "
                    f"of `full`, {TOLERANCE:.0%} are asked for; narrow the number of layers",
                )
            self._widths[key] = heads * best
        return self._widths[key]

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Those found so far, by what decides them."""
        return {}

    def _adapters(self, overrides: dict[str, Any]) -> int:
        return trained_parameters(self.settings("width", overrides, ""))["adapters"]

    def _check_pairs(self) -> None:
        """Every two ends of two distributions, the others at their first: the schema ties no more than two keys."""
        ends = {path: value.ends() for path, value in self.distributions.items()}
        start = {path: of[0] for path, of in ends.items()}
        alone = [({path: value}) for path, of in ends.items() for value in of]
        pairs = [
            {a: one, b: other} for (a, of), (b, there) in combinations(ends.items(), 2) for one in of for other in there
        ]
        sizes = [  # every number of layers, for the budget
            {path: list(range(size))}
            for path, value in self.distributions.items()
            if isinstance(value, Layers)
            for size in range(len(value.ends()[0]), len(value.ends()[1]) + 1)
        ]
        for chosen in (*alone, *pairs, *sizes):
            try:
                self.settings("check", self._overrides(start | chosen), "")
            except UserError as error:
                told = " and ".join(f"{path} {value}" for path, value in chosen.items())
                text = str(error).removeprefix("params.yaml: ").partition(" (scale ")[0]
                raise self._fault("", f"{told} cannot be: {text}") from None

    def _fault(self, path: str, told: str) -> UserError:
        key = f"search.spaces.{self.name}" + (f".{path}" if path else "")
        return UserError(f"params.yaml: {key}: {told} (scale {self.params.scale})")


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    found: dict[str, Any] = value
    return found


def _walk(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no map, or is a distribution."""
    for key, value in content.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from _walk(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
