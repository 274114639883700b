"""params.yaml, read and resolved: a scale and a variant are merged into the settings of one run, and what is unknown or
impossible is refused before anything runs.

The settings of one run are the shared sections, overridden by `scales.<scale>`, overridden by `variants.<variant>`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, ValidationInfo, field_validator, model_validator

from wimfris.errors import UserError
from wimfris.settings.messages import require, validated
from wimfris.settings.run import Run
from wimfris.settings.schema import RIVALS, Name, Pretrain, Section, Settings

Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]


class Params(Section):
    """The whole file. `scales` and `variants` hold overrides; `settings` resolves them."""

    scale: str
    data: dict[str, Any]
    seeds: Seeds
    variants: dict[Name, dict[str, Any]]
    extended_seeds: Seeds
    extended: dict[Name, dict[str, Any]]
    extra_seeds: dict[str, Seeds]  # variant -> seeds beyond the declared ones
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
        require(len(set(seeds)) == len(seeds), str(info.field_name), "each seed once", seeds)
        return seeds

    @model_validator(mode="after")
    def _apart(self) -> "Params":
        both = sorted(self.variants.keys() & self.extended.keys())
        require(not both, "extended", "names that `variants` does not have", both)
        require("full" in self.variants, "variants", "a variant `full`, which the others are compared with", "no full")
        return self

    @model_validator(mode="after")
    def _extra_seeds_are_new(self) -> "Params":
        known = [*self.variants, *self.extended]
        for variant, seeds in self.extra_seeds.items():
            require(variant in known, "extra_seeds", f"the variants: {', '.join(known)}", variant)
            key, declared = f"extra_seeds.{variant}", self._seeds_of(variant)
            require(len(set(seeds)) == len(seeds), key, "each seed once", seeds)
            require(not set(seeds) & set(declared), key, f"seeds other than the declared {declared}", seeds)
        return self

    def with_protocol(self, protocol: str | None) -> "Params":
        """These params under another evaluation protocol; None leaves them as they are."""
        return self if protocol is None else self.model_copy(update={"evaluate": {"protocol": protocol}})

    def runs(self) -> list[Run]:
        """Return the runs of the core: every variant with every seed."""
        return [run for variant in self.variants for run in self.runs_of(variant)]

    def extended_runs(self) -> list[Run]:
        """Return the runs of the extended variants, without extra seeds."""
        return [run for variant in self.extended for run in self.runs_of(variant)]

    def extra_runs(self) -> list[Run]:
        """Return the runs with extra seeds, of core and extended variants."""
        return [Run(variant, seed) for variant, seeds in self.extra_seeds.items() for seed in seeds]

    def all_runs(self) -> list[Run]:
        """Return the core, extended and extra runs, each once."""
        return [*self.runs(), *self.extended_runs(), *self.extra_runs()]

    def runs_of(self, variant: str) -> list[Run]:
        """Return the runs of one variant, core or extended, without extra seeds."""
        return [Run(variant, seed) for seed in self._seeds_of(variant)]

    def is_core(self, run: Run) -> bool:
        """Return whether a run is one of the core: a core variant with one of `seeds`."""
        return run.variant in self.variants and run.seed in self.seeds

    def _seeds_of(self, variant: str) -> list[int]:
        return self.extended_seeds if variant in self.extended else self.seeds

    def at_scale(self, scale: str | None) -> "Params":
        """The same at another scale, or as it is for None. Raises UserError, in one line, where a variant cannot be at
        that scale, or is another one under a second name there.
        """
        if scale is None or scale == self.scale:
            return self
        found = self.model_copy(update={"scale": scale})
        _check_variants(found)
        return found

    def settings_of(self, run: Run) -> Settings:
        """Return the resolved settings of a run. Raises UserError where its seed is not declared, or as `settings`."""
        settings = self.settings(run.variant)
        if run.seed in self._seeds_of(run.variant):
            return settings
        if run.seed in self.extra_seeds.get(run.variant, ()):
            return settings.model_copy(update={"group": "extra"})
        raise UserError(
            f"params.yaml: run {run}: {run.seed} is not a seed of {run.variant}; declare it as "
            f"extra_seeds: {{{run.variant}: [{run.seed}]}}"
        )

    def at_name(self, name: str) -> "Params":
        """Return the same at a data set and scale, given as in folder names: scenes-tiny."""
        data, _, scale = name.rpartition("-")
        return self.model_copy(update={"scale": scale, "data": self.data | {"name": data}})

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
        settings = self.resolve(variant, overrides, group="extended" if section == "extended" else "core")
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
