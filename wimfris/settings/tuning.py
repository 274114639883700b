"""Tuning runs: the trials that tune each family of adapters, and the candidates for a scale's recipe.

Both are variants with a name of their own, trained from seeds of their own and evaluated on split `tune` alone. The
trials of a family are points of a Sobol sequence, the same on every machine, so every family has an equal budget. A
scale may shorten the trials; the best ones are trained at full length all the same.
"""

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from wimfris.settings.sections import Name, Section

GROUP = "tuning"  # of the runs' outs
TRIAL, WHOLE = "tune_", "_whole"  # how the variants' names of trials begin, and of their trainings at full length end
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Range = tuple[PositiveFloat, PositiveFloat]


class Family(Section):
    """A family to tune: the variant that stands for it, and the ranges of its settings (dotted key -> low, high)."""

    variant: Name
    ranges: Annotated[dict[str, Range], Field(min_length=1)]

    @property
    def tuned_variant(self) -> str:
        """The name of the variant with the settings of its best trial, where a scale has one."""
        return f"{self.variant}_tuned"


class Recipe(Section):
    """Candidates for the recipe of one scale: name -> overrides, each trained as `variants` from `seeds`."""

    scale: str
    seeds: Annotated[list[Seed], Field(min_length=2)]
    variants: Annotated[list[Name], Field(min_length=1)]
    candidates: dict[Name, dict[str, Any]]


class Tuning(Section):
    """The section `tuning` of params.yaml."""

    trials: Annotated[int, Field(gt=0, le=1024)]  # of each family
    best: PositiveInt  # trials that are trained at full length from all seeds
    seeds: Annotated[list[Seed], Field(min_length=1)]  # the first trains every trial
    short: dict[str, dict[str, Any]] = Field(default_factory=dict)  # scale -> overrides of `train` that shorten a trial
    families: dict[Name, Family]
    recipe: Recipe

    @model_validator(mode="after")
    def _check_ranges(self) -> "Tuning":
        for name, family in self.families.items():
            for key, (low, high) in family.ranges.items():
                if low >= high:
                    raise ValueError(f"families.{name}.ranges.{key}: {low} must be below {high}")
        return self

    def trial_names(self, family: str) -> list[str]:
        """Return the variants' names of a family's trials."""
        return [f"{TRIAL}{family}_{number:02d}" for number in range(self.trials)]

    def trial_values(self, family: str) -> list[dict[str, float]]:
        """Return the values of each trial, dotted key -> value with three digits, spread evenly over the logarithms."""
        from scipy.stats.qmc import Sobol

        ranges = self.families[family].ranges
        points = Sobol(len(ranges), scramble=False).random_base2((self.trials - 1).bit_length())
        centred = points[: self.trials] + 0.5 / len(points)
        return [
            {
                key: float(f"{low * (high / low) ** share:.3g}")
                for (key, (low, high)), share in zip(ranges.items(), point, strict=True)
            }
            for point in centred.tolist()
        ]

    def whole_name(self, trial: str, scale: str) -> str:
        """Return the variant's name of a trial's training at full length: the trial's, if the scale shortens none."""
        return f"{trial}{WHOLE}" if scale in self.short else trial

    def shortened(self, variant: str, scale: str) -> dict[str, Any]:
        """Return the overrides that shorten a variant: of a trial, but not of its training at full length."""
        short = variant.startswith(TRIAL) and not variant.endswith(WHOLE)
        return {"train": self.short[scale]} if short and scale in self.short else {}

    def overrides(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the variants of all tuning runs: name -> the variant it changes, and the changes."""
        trials = {
            f"{name}{length}": (self.families[family].variant, nested(values))
            for family in self.families
            for name, values in zip(self.trial_names(family), self.trial_values(family), strict=True)
            for length in ("", WHOLE)
        }
        recipes = {
            f"recipe_{candidate}_{variant}": (variant, changes)
            for candidate, changes in self.recipe.candidates.items()
            for variant in self.recipe.variants
        }
        return trials | recipes


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as sections: {"train.learning_rate": 1} -> {"train": {"learning_rate": 1}}."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return sections


def flat(sections: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return sections as dotted keys; the inverse of `nested`."""
    values: dict[str, Any] = {}
    for key, value in sections.items():
        values |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return values
