"""Read params.yaml, and merge a scale and a variant into the settings of one run.

The settings of a run are the shared sections, overridden by `scales.<scale>`, by the data set's overrides at this
scale, by `variants.<variant>` or `extended.<variant>`, and by the data set's overrides of that variant. Invalid
settings raise an error before anything runs. A control has the form of a variant, and names in `same_as` a variant
with the same function: what differs between the two is chance.

A scale may have variants of its own, `scales.<scale>.variants`. They alone may override the encoders and the image
size, whose values make sense at one scale only.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from wimfris.errors import UserError, suggestion
from wimfris.settings.function import function, plain
from wimfris.settings.lines import Lines, line_of, read_yaml
from wimfris.settings.messages import require, validated
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.settings.sections import RIVALS, SCENES, Files, Mixture, Name, Pretrain, Section, Split
from wimfris.settings.tuning import GROUP, Tuning

Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
Declared = Annotated[
    Annotated[Files, Tag("files")] | Annotated[Mixture, Tag("mixture")],
    Discriminator(lambda content: "mixture" if "mix" in content else "files"),
]
DataName = Annotated[str, Field(pattern=r"^\w[\w+.-]*$")]  # part of folder names
SYSTEMS = 20  # at most so many in the explorer, which is one page with the masks of all
OVERRIDES = {"model", "loss", "train"}  # sections that a variant or a data set may override
SCALE_OVERRIDES = OVERRIDES | {"data", "encoders"}  # those that a variant of one scale may


class Params(Section):
    """The whole file. `scales`, `variants`, `extended` and `controls` hold overrides; `settings` merges them."""

    scale: str
    data: dict[str, Any]
    datasets: dict[DataName, Declared] = Field(default_factory=dict)
    seeds: Seeds
    variants: dict[Name, dict[str, Any]]
    extended_seeds: Seeds
    everywhere: dict[Name, dict[str, Any]] = Field(alias="extended")  # variants beyond the core of every scale
    controls: dict[Name, dict[str, Any]] = Field(default_factory=dict)  # `same_as`, a variant, and further overrides
    extra_seeds: dict[str, Seeds]  # variant -> seeds beyond the declared ones
    explorer: list[str] = Field(default_factory=list)  # systems whose masks the evidence keeps; no run depends on it
    model: dict[str, Any]
    loss: dict[str, Any]
    evaluate: dict[str, Any]
    rivals: dict[str, dict[str, Any]]
    search: dict[str, Any]  # read only by wimfris.search.space; no run depends on it
    tuning: Tuning
    pretrain: Pretrain
    pretrain_small: Pretrain
    scales: dict[str, dict[str, Any]]
    _lines: Lines = PrivateAttr(default_factory=dict)

    @property
    def extended(self) -> dict[str, dict[str, Any]]:
        """Return the variants beyond the core: those of every scale, and those of the scale in use."""
        return self.everywhere | self._of_scale()

    def _of_scale(self) -> dict[str, dict[str, Any]]:
        return self.scales.get(self.scale, {}).get("variants", {})

    @field_validator("seeds", "extended_seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        require(len(set(seeds)) == len(seeds), str(info.field_name), "distinct", seeds)
        return seeds

    @model_validator(mode="after")
    def _check_datasets(self) -> "Params":
        require(SCENES not in self.datasets, "datasets", f"without {SCENES}, which is built in", SCENES)
        for name, declared in self.datasets.items():
            for scale, overrides in declared.overrides.items():
                key = f"datasets.{name}.overrides"
                require(scale in self.scales, key, f"by scale ({', '.join(self.scales)})", scale)
                foreign = sorted(set(overrides) - OVERRIDES - {"variants"})
                require(not foreign, f"{key}.{scale}", "model, loss, train or variants", ", ".join(foreign))
            if isinstance(declared, Files):
                first, distinct = declared.splits[0], len(set(declared.splits)) == len(declared.splits)
                allowed = "different splits, val first: it chooses the best epoch"
                require(first == "val" and distinct, f"datasets.{name}.splits", allowed, list(declared.splits))
            else:
                known = [other for other, files in self.datasets.items() if isinstance(files, Files)]
                unknown = [other for other in declared.mix if other not in known]
                require(not unknown, f"datasets.{name}.mix", f"of {', '.join(known)}", ", ".join(unknown))
                folders = sorted({self._files(other).images for other in declared.mix})
                allowed = "of sets with one folder of images"
                require(len(folders) == 1, f"datasets.{name}.mix", allowed, " and ".join(folders))
        return self

    @model_validator(mode="after")
    def _check_tuning(self) -> "Params":
        for scale in self.tuning.short:
            require(scale in self.scales, "tuning.short", f"by scale ({', '.join(self.scales)})", scale)
        return self

    @model_validator(mode="after")
    def _check_variant_names(self) -> "Params":
        both = sorted(self.variants.keys() & self.everywhere.keys())
        require(not both, "extended", "without names that are in variants", ", ".join(both))
        both = sorted(self.controls.keys() & (self.variants | self.everywhere).keys())
        require(not both, "controls", "without names that are in variants or extended", ", ".join(both))
        for name, control in self.controls.items():
            known = [*self.variants, *self.everywhere]
            allowed = f"one of {', '.join(known)}"
            require(control.get("same_as") in known, f"controls.{name}.same_as", allowed, control.get("same_as"))
        for scale, content in self.scales.items():
            key, own = f"scales.{scale}.variants", content.get("variants", {})
            valid = isinstance(own, dict) and all(isinstance(value, dict) for value in own.values())
            require(valid, key, "a mapping of names to overrides", own)
            both = sorted(own.keys() & (self.variants | self.everywhere | self.controls).keys())
            require(not both, key, "without names that are in variants, extended or controls", ", ".join(both))
            named = [name for name in own if not re.fullmatch(r"\w+", str(name))]
            require(not named, key, "with names of letters, digits and _", ", ".join(map(str, named)))
        allowed = "a mapping with the key full, because studies compare with this variant"
        require("full" in self.variants, "variants", allowed, f"only {', '.join(self.variants)}")
        return self

    def _of_any_scale(self) -> list[str]:
        """Return the names of all variants and controls, those of other scales included."""
        own = (name for content in self.scales.values() for name in content.get("variants", {}))
        return list(dict.fromkeys([*self.all_variants, *own]))

    @model_validator(mode="after")
    def _check_extra_seeds(self) -> "Params":
        known, here = self._of_any_scale(), self.all_variants
        for variant, seeds in self.extra_seeds.items():
            require(variant in known, "the variant of extra_seeds", f"one of {', '.join(here)}", variant)
            key, declared = f"extra_seeds.{variant}", self._seeds_of(variant)
            require(len(set(seeds)) == len(seeds), key, "distinct", seeds)
            require(not set(seeds) & set(declared), key, f"seeds other than the declared {declared}", seeds)
        return self

    @model_validator(mode="after")
    def _check_explorer(self) -> "Params":
        known, here, systems = self._of_any_scale(), self.all_variants, self.explorer
        require(len(systems) <= SYSTEMS, "explorer", f"a list of at most {SYSTEMS} systems", len(systems))
        require(len(set(systems)) == len(systems), "explorer", "distinct", systems)
        for variant in systems:
            require(variant in known, "a system of explorer", f"one of {', '.join(here)}", variant)
        return self

    def with_protocol(self, protocol: str | None) -> "Params":
        """Return these params with another evaluation protocol, or unchanged for None."""
        if protocol is None:
            return self
        return self.model_copy(update={"evaluate": self.evaluate | {"protocol": protocol}})

    @property
    def beyond(self) -> dict[str, dict[str, Any]]:
        """Return the overrides of the variants beyond the core: the extended ones and the controls.

        A control has the overrides of the variant in `same_as`, and its own.
        """
        controls = {}
        for name, control in self.controls.items():
            own = {key: value for key, value in control.items() if key != "same_as"}
            controls[name] = merge((self.variants | self.extended)[control["same_as"]], own)
        return self.extended | controls

    @property
    def all_variants(self) -> dict[str, dict[str, Any]]:
        """Return the overrides of the variants and controls that the scale has."""
        return self.variants | self.beyond

    def of_other_scales(self) -> set[str]:
        """Return the names of the variants that other scales have and this one lacks."""
        return {*self._of_any_scale()} - self.all_variants.keys()

    def runs(self) -> list[Run]:
        """Return the runs of the core: every variant with every seed."""
        return [run for variant in self.variants for run in self.runs_of(variant)]

    def extended_runs(self) -> list[Run]:
        """Return the runs of the extended variants and the controls, without extra seeds."""
        return [run for variant in self.beyond for run in self.runs_of(variant)]

    def extra_runs(self) -> list[Run]:
        """Return the runs with extra seeds, of the variants that the scale has."""
        here = self.all_variants
        return [Run(name, seed) for name, seeds in self.extra_seeds.items() if name in here for seed in seeds]

    def explorer_runs(self) -> list[Run]:
        """Return the runs whose masks the evidence keeps: the first seed of each system of `explorer`."""
        here = self.all_variants
        return [self.runs_of(name)[0] for name in self.explorer if name in here]

    def all_runs(self) -> list[Run]:
        """Return the core, extended and extra runs, each once."""
        return [*self.runs(), *self.extended_runs(), *self.extra_runs()]

    def runs_of(self, variant: str) -> list[Run]:
        """Return the runs of one variant or control, without extra seeds."""
        return [Run(variant, seed) for seed in self._seeds_of(variant)]

    @cached_property
    def tuned(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The variants of tuning runs: name -> the variant it changes, and the changes."""
        return self.tuning.overrides()

    def same_function(self) -> list[list[str]]:
        """Return the variants that compute the same function at the current scale, a list for each such function.

        The first one of a list is the original, the others are its controls.
        """
        groups: dict[str, list[str]] = {}
        for name in self.all_variants:
            groups.setdefault(function(self.settings(name)), []).append(name)
        return [group for group in groups.values() if len(group) > 1]

    def _seeds_of(self, variant: str) -> list[int]:
        if variant in self.variants:
            return self.seeds
        if variant in self._of_any_scale():
            return self.extended_seeds
        return self.tuning.recipe.seeds if variant.startswith("recipe_") else self.tuning.seeds

    def at_scale(self, scale: str | None) -> "Params":
        """Return these params at another scale, or unchanged for None.

        Raises UserError, in one line, if a variant is invalid at that scale or two have the same function there.
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
        raise self._error(
            "extra_seeds",
            f"run {run}: {run.seed} is not a seed of {run.variant}; declare it as extra_seeds: "
            f"{{{run.variant}: [{run.seed}]}}",
        )

    def at_name(self, name: str) -> "Params":
        """Return these params for another data set and scale, named as folders are: scenes-tiny."""
        data, _, scale = name.rpartition("-")
        return self.model_copy(update={"scale": scale, "data": self.data | {"name": data}})

    def settings(self, variant: str = "full") -> Settings:
        """Return the settings of a variant at the current scale. Raises UserError, in one line, if they are invalid."""
        if self.scale not in self.scales:
            raise self._error("scale", f"scale must be one of {', '.join(self.scales)}, got {self.scale}")
        known = self.all_variants
        if variant not in known and variant in self.tuned:
            base, changes = self.tuned[variant]
            short = self.tuning.shortened(variant, self.scale)
            return self.resolve(variant, merge(merge(known[base], short), changes), group=GROUP)
        if variant not in known:
            raise UserError(f"params.yaml: no variant '{variant}'; {suggestion(variant, known, 'variants')}")
        overrides = known[variant]
        in_scale = variant in self._of_scale()
        section = next(name for name in ("variants", "controls", "extended") if variant in getattr(self, name))
        key = f"scales.{self.scale}.variants.{variant}" if in_scale else f"{section}.{variant}"
        foreign = sorted(set(overrides) - (SCALE_OVERRIDES if in_scale else OVERRIDES))
        if foreign:
            allowed = "model, loss, train, encoders or data" if in_scale else "model, loss or train"
            raise self._error(f"{key}.{foreign[0]}", f"the keys of {key} must be {allowed}, got {foreign[0]}")
        foreign = sorted(set(overrides.get("data", {})) - {"image_size"})
        if foreign:
            raise self._error(f"{key}.data", f"the key of {key}.data must be image_size, got {foreign[0]}")
        settings = self.resolve(variant, overrides, group="core" if section == "variants" else "extended")
        model = settings.model
        if section == "variants" and (model.adapters in (*RIVALS, "finetune") or model.neck in RIVALS):
            raise self._error(
                f"variants.{variant}",
                f"variants.{variant} uses the adapters or the neck of a rival; move it to extended, because no core "
                "run may depend on the rivals' code",
            )
        return settings

    def resolve(self, name: str, overrides: dict[str, Any], *, group: str) -> Settings:
        """Return the settings of the current scale with these overrides, for a variant with this name and group.

        Raises UserError, in one line, if they are invalid.
        """
        for reserved in {"scale", "variant", "group", "own_encoders"} & self.scales[self.scale].keys():
            key = f"scales.{self.scale}.{reserved}"
            raise self._error(key, f"unknown key {key}; remove it")
        shared = {"data": self.data, "model": self.model, "loss": self.loss, "evaluate": self.evaluate}
        declared = self.datasets.get(str(self.data.get("name")))
        own = dict(declared.overrides.get(self.scale, {})) if declared else {}
        own_variants = own.pop("variants", {})
        merged: dict[str, Any] = shared
        shared_scale = {key: value for key, value in self.scales[self.scale].items() if key != "variants"}
        for part in (shared_scale, own, overrides, own_variants.get(name, {})):
            merged = merge(merged, part)
        merged["data"] = self._with_declaration(merged["data"])
        if group == GROUP:
            merged["data"] = merged["data"] | {"splits": ["tune"]}
        family = merged["model"].get("adapters")
        sizes = merge(self.rivals.get(self.scale, {}), merged["model"].get("rivals", {}))
        if family in RIVALS and family not in sizes:
            raise self._error(f"rivals.{self.scale}", f"rivals.{self.scale}.{family} is missing and has no default")
        merged["model"] = merged["model"] | {"rivals": {family: sizes[family]} if family in RIVALS else None}
        merged |= {"scale": self.scale, "variant": name, "group": group, "own_encoders": "encoders" in overrides}
        in_set = ("datasets", str(self.data.get("name")), "overrides", self.scale)
        sections = [(*in_set, "variants", name), ("variants", name), ("extended", name), ("controls", name), in_set]
        sections += [("scales", self.scale, "variants", name), ("scales", self.scale), ()]
        return validated(Settings, merged, self._lines, sections, scale=self.scale, variant=name)

    def _files(self, name: str) -> Files:
        """Return the files of a declared set. `_check_datasets` sees to it that it is no mixture."""
        files = self.datasets[name]
        assert isinstance(files, Files)
        return files

    def _with_declaration(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the section `data` with the declaration of the data set in use.

        Raises UserError if there is none.
        """
        name = data.get("name")
        if name is None:
            return data  # the schema reports it
        if name == SCENES:
            if SCENES not in data.get("tokens", {}):
                key = f"scales.{self.scale}.data.tokens"
                raise self._error(key, f"{key} must have the key {SCENES}, the data set in use")
            return data
        declared = self.datasets.get(str(name))
        if declared is None:
            known = ", ".join([SCENES, *self.datasets])
            raise self._error("data.name", f"data.name must be one of {known}, got {name}; declare others in datasets")
        tokens = data.get("tokens", {}).get(name, declared.tokens)
        if isinstance(declared, Files):
            return data | {"tokens": {name: tokens}, "splits": declared.splits, "files": {name: declared}}
        files = {other: self._files(other) for other in declared.mix}
        used = {split for part in files.values() for split in part.splits}
        splits = [split for split in get_args(Split) if split in used]
        mixing = {"mix": declared.mix, "drop_shared": declared.drop_shared}
        return data | {"tokens": {name: tokens}, "splits": splits, "files": files} | mixing

    def _error(self, key: str, message: str) -> UserError:
        """Return an error about a key of the file, with its line."""
        line = line_of(self._lines, key.split("."))
        return UserError(f"params.yaml: {message}" + (f" (line {line})" if line else ""))


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
    if not path.exists():
        raise UserError(f"{path}: no such file; run from the project's root")
    content, lines = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of settings; restore it with git")
    params = validated(Params, content, lines)
    params._lines = lines
    _check_variants(params)
    return params


def _check_variants(params: Params) -> None:
    """Raise UserError if a variant is invalid, if two have the same function, or if a control has another's."""
    names: dict[str, str] = {}
    for variant in (*params.variants, *params.extended):
        settings = params.settings(variant)
        other = names.setdefault(function(settings), variant)
        if other != variant and plain(params.settings(other)) == plain(settings):
            raise UserError(
                f"params.yaml: variants {other} and {variant} have equal settings at scale {params.scale}; "
                "remove one of them; a table can show the other twice"
            )
        if other != variant:
            raise UserError(
                f"params.yaml: variants {other} and {variant} compute the same function at scale {params.scale}; "
                f"remove one of them, or move {variant} to controls with same_as: {other}"
            )
    for name, control in params.controls.items():
        if function(params.settings(name)) != function(params.settings(control["same_as"])):
            raise params._error(
                f"controls.{name}",
                f"control {name} does not compute the function of {control['same_as']} at scale {params.scale}; "
                "correct same_as, or move it to extended",
            )
