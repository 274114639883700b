"""Search spaces: what params.yaml declares, the checks before anything trains, and the settings that a trial draws.

A space looks like a variant's overrides, with distributions in place of values. All other settings are those of
params.yaml. A set of layers is drawn as random keys (Bean, 1994): its size and a number for each layer, of which the
largest are taken. So every draw is a valid set, sets of equal size are equally likely, and no parameter depends on
another.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from optuna.trial import BaseTrial
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, model_validator

from wimfris.errors import UserError
from wimfris.measure.parameters import trained_parameters
from wimfris.search.limits import Limits
from wimfris.settings.messages import validated
from wimfris.settings.params import Params, merge
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Name, Section
from wimfris.settings.tuning import nested

BUDGET = "model.msa.width"  # the only width that may follow from a parameter budget
TOLERANCE = 0.05  # of the budget, a share of the adapters' trained parameters
MOST_HEADS = 512  # the widest adapter that is tried, in multiples of its heads
TRAIN = ("learning_rate", "weight_decay", "clip_norm")  # keys of `train` that a space may set
KINDS = ("choice", "real", "layers", "budget")


class Choice(Section):
    """One of several values."""

    kind: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1, alias="of")]

    @property
    def labels(self) -> list[Any]:
        """Return the values as Optuna can store them: all scalars, or all JSON."""
        scalars = all(value is None or isinstance(value, bool | int | float | str) for value in self.values)
        return list(self.values) if scalars else [json.dumps(value) for value in self.values]

    def draw(self, trial: BaseTrial, path: str) -> Any:
        return self.values[self.labels.index(trial.suggest_categorical(path, self.labels))]

    def extremes(self) -> tuple[Any, ...]:
        return self.values

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if value not in self.values:
            raise ValueError(f"must be one of {list(self.values)}, got {value}")
        return {path: self.labels[self.values.index(value)]}


class Real(Section):
    """A number from an interval, uniform on a linear or on a logarithmic scale."""

    kind: Literal["real"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Real":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 where log is true")
        return self

    def draw(self, trial: BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high, log=self.log)

    def extremes(self) -> tuple[float, float]:
        return self.low, self.high

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be within {self.low} .. {self.high}, got {value}")
        return {path: value}


class Layers(Section):
    """A set of `least` to `most` encoder layers, at most as many as the encoder has."""

    kind: Literal["layers"]
    least: PositiveInt
    most: PositiveInt
    depth: PositiveInt = 1  # the encoder's number of layers at the scale in use

    @model_validator(mode="after")
    def _ordered(self) -> "Layers":
        if self.least > self.most:
            raise ValueError(f"least {self.least} must not be above most {self.most}")
        return self

    @property
    def sizes(self) -> range:
        return range(min(self.least, self.depth), min(self.most, self.depth) + 1)

    def draw(self, trial: BaseTrial, path: str) -> list[int]:
        size = trial.suggest_int(f"{path}.size", self.sizes[0], self.sizes[-1])
        keys = [trial.suggest_float(f"{path}.{layer}", 0.0, 1.0) for layer in range(self.depth)]
        return sorted(sorted(range(self.depth), key=lambda layer: -keys[layer])[:size])

    def extremes(self) -> tuple[list[int], ...]:
        """Return a set of every size: with the smallest and the largest, the sizes that a budget must allow."""
        return tuple(list(range(size)) for size in self.sizes)

    def encode(self, path: str, value: Any) -> dict[str, Any]:
        if not self.least <= len(value) <= self.most or not set(value) <= set(range(self.depth)):
            raise ValueError(f"must be {self.least} to {self.most} of the layers 0 .. {self.depth - 1}, got {value}")
        return {f"{path}.size": len(value)} | {f"{path}.{n}": float(n in value) for n in range(self.depth)}


class Budget(Section):
    """The width that gives the adapters as many trained parameters as those of `full`. Computed, not drawn."""

    kind: Literal["budget"]


Distribution = Choice | Real | Layers
_PARSER: TypeAdapter[Choice | Real | Layers | Budget] = TypeAdapter(
    Annotated[Choice | Real | Layers | Budget, Field(discriminator="kind")]
)


class Search(Section):
    """The section `search` of params.yaml."""

    space: str  # the default space
    trials: PositiveInt
    seed: NonNegativeInt  # of the sampler and of every trial's training
    train: dict[str, dict[str, Any]]  # scale -> overrides of `train` that shorten a trial
    spaces: dict[Name, dict[str, Any]]


class _File(Section):
    search: Search


def read_search(params: Params) -> Search:
    """Return the section `search`. Raises UserError with one line that names the invalid key."""
    search = validated(_File, {"search": params.search}).search
    if search.space not in search.spaces:
        raise UserError(f"params.yaml: search.space: no space '{search.space}'; available: {', '.join(search.spaces)}")
    if search.seed in (*params.seeds, *params.extended_seeds):
        raise UserError(
            f"params.yaml: search.seed: {search.seed} is also a seed of the matrix; use another one, because trials "
            "are confirmed with seeds that no search has used"
        )
    if params.scale not in search.train:
        raise UserError(f"params.yaml: search.train: no entry for scale {params.scale}; add how long a trial trains")
    return search


@dataclass(frozen=True)
class Space:
    """A search space at the scale in use. Raises UserError if some draw would give invalid settings."""

    name: str
    params: Params
    search: Search = field(repr=False)

    def __post_init__(self) -> None:
        if self.name not in self.search.spaces:
            raise UserError(f"--space {self.name}: not in params.yaml; available: {', '.join(self.search.spaces)}")
        if not self.distributions:
            raise self._error("", "no distribution; add at least one")
        self._check_extremes()
        self.first, self.limits  # noqa: B018  # checks them

    @cached_property
    def _leaves(self) -> dict[str, Any]:
        """Map each dotted key to its distribution, or to the value that all trials share."""
        own = ("first", "limits")
        declared = {key: value for key, value in self.search.spaces[self.name].items() if key not in own}
        return {path: self._leaf(path, value) for path, value in _walk(declared)}

    def _leaf(self, path: str, value: Any) -> Any:
        top, _, key = path.partition(".")
        if top not in ("model", "loss", "train") or not key:
            raise self._error(path, "a space may set only keys of model, loss and train")
        if top == "train" and key not in TRAIN:
            raise self._error(path, f"a space may set only these keys of train: {', '.join(TRAIN)}")
        if not (isinstance(value, dict) and "kind" in value):
            return value
        depth = self._depths.get(path)
        if value["kind"] not in KINDS:
            raise self._error(path, f"kind must be one of {', '.join(KINDS)}, got '{value['kind']}'")
        if value["kind"] == ("layers" if depth is None else "real"):
            raise self._error(path, f"kind {value['kind']} does not fit this setting")
        if value["kind"] == "budget" and path != BUDGET:
            raise self._error(path, f"kind budget is only for {BUDGET}")
        try:
            return _PARSER.validate_python(value | ({"depth": depth} if value["kind"] == "layers" else {}))
        except ValidationError as error:
            first = error.errors()[0]
            raise self._error(".".join([path, *map(str, first["loc"][1:])]), first["msg"].lower()) from None

    @cached_property
    def _depths(self) -> dict[str, int]:
        """Map each setting that is a set of layers to its encoder's number of layers."""
        encoders = self.params.settings().encoders
        return {"model.mta.layers": encoders.text.layers, "model.msa.layers": encoders.vision.layers}

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Map each setting that is drawn, by its dotted key, to its distribution."""
        return {path: value for path, value in self._leaves.items() if isinstance(value, Choice | Real | Layers)}

    @cached_property
    def first(self) -> dict[str, Any]:
        """Return the first trial's parameters, as Optuna names them; empty if the space declares none."""
        encoded: dict[str, Any] = {}
        for path, value in _walk(self.search.spaces[self.name].get("first", {})):
            if path not in self.distributions:
                raise self._error(f"first.{path}", "not a distribution of the space")
            try:
                encoded |= self.distributions[path].encode(path, value)
            except (ValueError, TypeError) as error:
                raise self._error(f"first.{path}", str(error)) from None
        return encoded

    @cached_property
    def limits(self) -> Limits | None:
        """Return what a trial may cost; None where the space declares no limits."""
        declared = self.search.spaces[self.name].get("limits")
        try:
            return None if declared is None else Limits.model_validate(declared)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._error(".".join(["limits", *map(str, first["loc"])]), first["msg"].lower()) from None

    def draw(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw a trial's overrides, in the form of a variant of params.yaml."""
        return self._overrides({path: value.draw(trial, path) for path, value in self.distributions.items()})

    def settings(self, name: str, overrides: Mapping[str, Any], group: str) -> Settings:
        """Return the settings of a trial: params.yaml at the scale in use, a trial's length, and the overrides."""
        length = {"train": self.search.train[self.params.scale]}
        return self.params.resolve(name, merge(length, dict(overrides)), group=group)

    def _overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {path: value for path, value in self._leaves.items() if not isinstance(value, Section)}
        overrides: dict[str, Any] = {}
        for path, value in {**fixed, **values}.items():
            overrides = merge(overrides, nested({path: value}))
        if isinstance(self._leaves.get(BUDGET), Budget):
            return merge(overrides, nested({BUDGET: self._width(overrides)}))
        return overrides

    def _width(self, overrides: dict[str, Any]) -> int:
        """Return the multiple of the heads that brings the adapters closest to the trained parameters of `full`."""
        layers = {path: len(value) for path, value in _walk(overrides) if path.endswith(".layers")}
        key = json.dumps(dict(_walk(overrides)) | layers, sort_keys=True)  # only the number of layers matters
        if key in self._widths:
            return self._widths[key]
        settings = self.settings("width", overrides, "")
        heads, target = settings.model.msa.heads, self._adapters({})

        @cache
        def excess(multiple: int) -> float:
            return self._adapters(merge(overrides, nested({BUDGET: heads * multiple}))) / target - 1

        above = 1 + bisect_left(range(1, MOST_HEADS), 0.0, key=excess)
        best = min({max(above - 1, 1), above}, key=lambda multiple: abs(excess(multiple)))
        if abs(excess(best)) > TOLERANCE:
            raise self._error(
                BUDGET,
                f"with {len(settings.vision_layers)} layers, the closest width is {abs(excess(best)):.0%} off the "
                f"trained parameters of `full`; at most {TOLERANCE:.0%} is allowed; narrow the number of layers",
            )
        return self._widths.setdefault(key, heads * best)

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {}

    def _adapters(self, overrides: dict[str, Any]) -> int:
        return trained_parameters(self.settings("width", overrides, ""))["adapters"]

    def _check_extremes(self) -> None:
        """Check the extremes of every two distributions, the others at their first value.

        No check of the settings involves more than two of them.
        """
        extremes = {path: value.extremes() for path, value in self.distributions.items()}
        start = {path: values[0] for path, values in extremes.items()}
        single = [{path: value} for path, values in extremes.items() for value in values]
        pairs = [one | other for one, other in combinations(single, 2) if one.keys() != other.keys()]
        for values in (*single, *pairs):
            try:
                self.settings("check", self._overrides(start | values), "")
            except UserError as error:
                draw = " and ".join(f"{path} {value}" for path, value in values.items())
                reason = str(error).removeprefix("params.yaml: ").partition(" (scale ")[0]
                raise self._error("", f"{draw} is invalid: {reason}") from None

    def _error(self, path: str, reason: str) -> UserError:
        key = ".".join(filter(None, ["search.spaces", self.name, path]))
        return UserError(f"params.yaml: {key}: {reason} (scale {self.params.scale})")


def _walk(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every distribution, and of everything else that is no map."""
    for key, value in content.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from _walk(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
