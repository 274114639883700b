"""Read params.yaml, and merge a scale and a variant into the settings of one run.

The settings of a run are the shared sections, overridden by `scales.<scale>`, overridden by `variants.<variant>` or
`extended.<variant>`. Invalid settings raise an error before anything runs.
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
    """The whole file. `scales`, `variants` and `extended` hold overrides; `settings` merges them."""

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
    search: dict[str, Any]  # read only by wimfris.search.space; no run depends on it
    pretrain: Pretrain
    pretrain_small: Pretrain
    scales: dict[str, dict[str, Any]]

    @field_validator("seeds", "extended_seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        require(len(set(seeds)) == len(seeds), str(info.field_name), "distinct", seeds)
        return seeds

    @model_validator(mode="after")
    def _check_variant_names(self) -> "Params":
        both = sorted(self.variants.keys() & self.extended.keys())
        require(not both, "extended", "without names that are in variants", ", ".join(both))
        allowed = "a mapping with the key full, because studies compare with this variant"
        require("full" in self.variants, "variants", allowed, f"only {', '.join(self.variants)}")
        return self

    @model_validator(mode="after")
    def _check_extra_seeds(self) -> "Params":
        known = [*self.variants, *self.extended]
        for variant, seeds in self.extra_seeds.items():
            require(variant in known, "the variant of extra_seeds", f"one of {', '.join(known)}", variant)
            key, declared = f"extra_seeds.{variant}", self._seeds_of(variant)
            require(len(set(seeds)) == len(seeds), key, "distinct", seeds)
            require(not set(seeds) & set(declared), key, f"seeds other than the declared {declared}", seeds)
        return self

    def with_protocol(self, protocol: str | None) -> "Params":
        """Return these params with another evaluation protocol, or unchanged for None."""
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
        """Return these params at another scale, or unchanged for None.

        Raises UserError, in one line, if a variant is invalid at that scale or two variants have equal settings there.
        """
        if scale is None or scale == self.scale:
            return self
        params = self.model_copy(update={"scale": scale})
        _check_variants(params)
        return params

    def settings_of(self, run: Run) -> Settings:
        """Return the settings of a run. Raises UserError if its seed is not declared, or as `settings` does."""
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
        """Return these params for another data set and scale, named as folders are: scenes-tiny."""
        data, _, scale = name.rpartition("-")
        return self.model_copy(update={"scale": scale, "data": self.data | {"name": data}})

    def settings(self, variant: str = "full") -> Settings:
        """Return the settings of a variant at the current scale. Raises UserError, in one line, if they are invalid."""
        if self.scale not in self.scales:
            raise UserError(f"params.yaml: scale must be one of {', '.join(self.scales)}, got {self.scale}")
        section = "extended" if variant in self.extended else "variants"
        known: dict[str, dict[str, Any]] = getattr(self, section)
        if variant not in known:
            names = ", ".join([*self.variants, *self.extended])
            raise UserError(f"params.yaml: no variant '{variant}'; the variants are {names}")
        overrides = known[variant]
        foreign = sorted(set(overrides) - {"model", "loss", "train"})
        if foreign:
            raise UserError(
                f"params.yaml: the keys of {section}.{variant} must be model, loss or train, got {foreign[0]}"
            )
        settings = self.resolve(variant, overrides, group="extended" if section == "extended" else "core")
        model = settings.model
        if section == "variants" and (model.adapters in (*RIVALS, "finetune") or model.neck in RIVALS):
            raise UserError(
                f"params.yaml: variants.{variant} uses the adapters or the neck of a rival; move it to extended, "
                "because no core run may depend on the rivals' code"
            )
        return settings

    def resolve(self, name: str, overrides: dict[str, Any], *, group: str) -> Settings:
        """Return the settings of the current scale with these overrides, for a variant with this name and group.

        Raises UserError, in one line, if they are invalid.
        """
        for reserved in {"scale", "variant", "group"} & self.scales[self.scale].keys():
            raise UserError(f"params.yaml: unknown key scales.{self.scale}.{reserved}; remove it")
        shared = {"data": self.data, "model": self.model, "loss": self.loss, "evaluate": self.evaluate}
        merged = merge(merge(shared, self.scales[self.scale]), overrides)
        rival = merged["model"].get("adapters") in RIVALS
        sizes = merge(self.rivals.get(self.scale, {}), merged["model"].get("rivals", {})) if rival else None
        merged["model"] = merged["model"] | {"rivals": sizes}
        merged |= {"scale": self.scale, "variant": name, "group": group}
        return validated(Settings, merged, scale=self.scale, variant=name)


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return base with overrides, merged mapping by mapping. Lists and numbers are replaced, not merged.

    A mapping with another `kind` also replaces the old one: the two have different keys.
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
    """Return the params of a file. Raises UserError, in one line, if a variant is invalid at the file's scale."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {line}not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of settings; restore it with git")
    params = validated(Params, content)
    _check_variants(params)
    return params


def _check_variants(params: Params) -> None:
    """Raise UserError if a variant is invalid, or if two variants have equal settings."""
    names: dict[str, str] = {}
    for variant in (*params.variants, *params.extended):
        resolved = plain(params.settings(variant))
        if resolved in names:
            raise UserError(
                f"params.yaml: variants {names[resolved]} and {variant} have equal settings at scale {params.scale}; "
                "remove one of them; a table can show the other twice"
            )
        names[resolved] = variant


def plain(settings: Settings) -> str:
    """Return the settings as JSON that is equal for settings that train the same model.

    A window as large as the grid becomes "grid", the alignment window becomes a number, and without the HMF neck only
    its width and heads remain.
    """
    content = settings.model_copy(update={"variant": ""}).model_dump(mode="json")
    content["loss"]["align_window"] = settings.align_window
    if settings.model.neck != "hmf":
        content["model"]["hmf"] = {name: content["model"]["hmf"][name] for name in ("width", "heads")}
    elif settings.scan_window == settings.grid:
        content["model"]["hmf"]["window"] = "grid"
    return json.dumps(content)
