"""params.yaml: what is shipped resolves, and what cannot be is refused in one line that names the key."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from wimfris.errors import UserError
from wimfris.settings.params import Params, merge, read_params
from wimfris.settings.run import Run
from wimfris.settings.schema import CosineSchedule, Settings, StepSchedule, placed

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
SCALES = ("smoke", "tiny", "small", "base", "large")
NAMES = ("scenes", "refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "mixed_strict", "mixed_as_published")


def changed(path: Path, shipped_variants: bool = False, **values: Any) -> Path:
    """The shipped file at scale smoke, with other values; `__` stands for the dot. Of the variants `full` alone, so
    that a changed section makes none of them another.
    """
    content = copy.deepcopy(SHIPPED) | {"scale": "smoke"}
    if not shipped_variants:
        content |= {"variants": {"full": {}}, "extended": {}}
    for key, value in values.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path = path / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def settings(path: Path, **values: Any) -> Settings:
    return read_params(changed(path, **values)).settings()


def refusal(path: Path, **values: Any) -> str:
    with pytest.raises(UserError) as error:
        settings(path, **values)
    message = str(error.value)
    assert "\n" not in message, "one line"
    assert message.startswith("params.yaml: ")
    return message


# --- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_shipped_scale_and_variant_resolves(scale: str, tmp_path: Path) -> None:
    params = read_params(changed(tmp_path, shipped_variants=True, scale=scale))
    for variant in (*SHIPPED["variants"], *SHIPPED["extended"]):
        found = params.settings(variant)
        assert (found.scale, found.variant) == (scale, variant)
        assert found.folder == Path(f"runs/scenes-{scale}")
        beyond = variant in SHIPPED["extended"]
        assert found.outs == (found.folder / ("extended" if beyond else "core"))


def test_scales_are_the_documented_ones() -> None:
    assert tuple(SHIPPED["scales"]) == SCALES
    assert SHIPPED["scale"] == "tiny"


@pytest.mark.parametrize("scale", ["base", "large"])
@pytest.mark.parametrize("name", NAMES)
def test_paper_scales_take_every_data_set(scale: str, name: str, tmp_path: Path) -> None:
    found = settings(tmp_path, scale=scale, data__name=name)
    assert found.data.length == (22 if name.startswith(("refcocog", "mixed")) else 17)
    assert found.folder == Path(f"runs/{name}-{scale}")
    assert found.data.splits[0] == "val"
    tests = {"refcocog-umd": ("test",), "refcocog-google": ()}.get(name, ("testA", "testB"))
    tests += ("test",) if name.startswith("mixed") else ()
    assert found.data.splits[1:] == tests


def test_paper_s_numbers(tmp_path: Path) -> None:
    base, large = (settings(tmp_path, scale=scale) for scale in ("base", "large"))
    for found in (base, large):
        assert found.grid == 32 and found.data.image_size == 448
        assert found.train.optimizer == "adam" and found.train.learning_rate == 1e-4
        assert found.train.weight_decay == 0 and found.train.clip_norm is None and found.train.batch_size == 32
        assert (found.loss.contrast, found.loss.dice, found.loss.align) == (0.5, 0.3, 0.2)
        assert found.model.hmf.width == 512 and found.model.decoder.layers == 3
        assert (found.model.msa.width, found.model.msa.heads, found.model.mta.width) == (160, 8, 24)
        assert found.model.mta.layers == (1, 3, 5, 7, 9, 11)
        assert found.encoders.text.width == 512 and found.encoders.text.source == "openai/clip-vit-base-patch16"
    assert isinstance(base.train.schedule, StepSchedule) and isinstance(large.train.schedule, StepSchedule)
    assert (base.train.epochs, base.train.schedule.milestones, base.train.schedule.factor) == (65, (35, 55), 0.1)
    assert (large.train.epochs, large.train.schedule.milestones) == (50, (35,))
    assert (base.encoders.vision.width, base.encoders.vision.taps) == (768, (4, 8))
    assert (large.encoders.vision.width, large.encoders.vision.taps) == (1024, (8, 16))
    assert base.model.msa.layers == (1, 3, 5, 7, 9, 11)
    assert large.model.msa.layers == (2, 6, 10, 14, 18, 22)


def test_tiny_says_what_data_it_takes(tmp_path: Path) -> None:
    message = refusal(tmp_path, scale="tiny", data__name="refcoco")
    assert re.match(r"params\.yaml: data\.name: refcoco is not possible; allowed: scenes at scale tiny", message)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_scale_overrides_shared_and_variant_overrides_scale(tmp_path: Path) -> None:
    path = changed(tmp_path, variants={"full": {}, "wide": {"model": {"msa": {"width": 16}}, "loss": {"dice": 0.5}}})
    content = yaml.safe_load(path.read_text())
    content["model"]["msa"]["width"] = 8
    content["scales"]["smoke"]["model"]["msa"]["width"] = 32
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    params = read_params(path)
    full, wide = params.settings("full"), params.settings("wide")
    assert (full.model.msa.width, wide.model.msa.width) == (32, 16)
    assert (full.loss.dice, wide.loss.dice) == (0.3, 0.5)
    # all else is the same
    assert wide.model.msa.model_copy(update={"width": 32}) == full.model.msa
    assert wide.train == full.train


def test_merge_leaves_its_arguments_alone_and_replaces_lists() -> None:
    base = {"a": {"b": [1, 2], "c": 1}, "d": 2}
    before = copy.deepcopy(base)
    assert merge(base, {"a": {"b": [3]}}) == {"a": {"b": [3], "c": 1}, "d": 2}
    assert base == before


def test_a_schedule_of_another_kind_replaces_the_whole(tmp_path: Path) -> None:
    steps = {"kind": "step", "milestones": [1], "factor": 0.5}
    path = changed(tmp_path, variants={"full": {}, "steps": {"train": {"schedule": steps}}})
    params = read_params(path)
    assert isinstance(params.settings().train.schedule, CosineSchedule)
    assert params.settings("steps").train.schedule == StepSchedule(**steps)
    warmer = {"full": {}, "warmer": {"train": {"schedule": {"warmup": 7}}}}
    assert read_params(changed(tmp_path, variants=warmer)).settings("warmer").train.schedule == CosineSchedule(
        kind="cosine", warmup=7
    )


@pytest.mark.parametrize("section", ["data", "evaluate", "scale", "encoders", "variants"])
def test_a_variant_overrides_model_loss_and_train_alone(section: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, variants={"full": {}, "other": {section: {}}})
    assert message == f"params.yaml: variants.other.{section}: a variant overrides model, loss and train alone"


def test_runs_are_variants_times_seeds(tmp_path: Path) -> None:
    params = read_params(changed(tmp_path, seeds=[0, 3], variants={"full": {}, "plain": {"model": {"neck": "none"}}}))
    assert params.runs() == [Run("full", 0), Run("full", 3), Run("plain", 0), Run("plain", 3)]
    assert params.settings_of(Run("plain", 3)) == params.settings("plain")


def test_extended_runs_have_stages_of_their_own(tmp_path: Path) -> None:
    other = {"model": {"hmf": {"gate": "text"}}}
    params = read_params(changed(tmp_path, seeds=[0, 3], extended={"gate_text": other}, extended_seeds=[1]))
    assert params.extended_runs() == [Run("gate_text", 1)]
    assert params.runs_of("full") == [Run("full", 0), Run("full", 3)]
    assert params.runs_of("gate_text") == [Run("gate_text", 1)]
    assert params.stage(Run("full", 0)) == "train@full-0"
    assert params.stage(Run("gate_text", 1)) == "studies/dvc.yaml:train@gate_text-1"


def test_extra_seeds_add_runs_beyond_the_declared_ones(tmp_path: Path) -> None:
    declared = {"extended": {"gate_text": {"model": {"hmf": {"gate": "text"}}}}, "extended_seeds": [0], "seeds": [0, 1]}
    params = read_params(changed(tmp_path, **declared, extra_seeds={"gate_text": [7], "full": [10, 11]}))
    assert params.extra_runs() == [Run("gate_text", 7), Run("full", 10), Run("full", 11)]
    assert params.runs_of("full") == params.runs() == [Run("full", 0), Run("full", 1)]
    assert params.all_runs() == [*params.runs(), *params.extended_runs(), *params.extra_runs()]
    assert len(set(params.all_runs())) == len(params.all_runs()) == 6
    assert [run for run in params.all_runs() if params.is_core(run)] == params.runs()
    assert read_params(changed(tmp_path, extra_seeds={})).extra_runs() == []


def test_placement_puts_as_many_adapters_side_by_side() -> None:
    assert placed((1, 3, 5, 7, 9, 11), "spread", 12) == (1, 3, 5, 7, 9, 11)
    assert placed((1, 3, 5, 7, 9, 11), "early", 12) == (0, 1, 2, 3, 4, 5)
    assert placed((1, 3, 5, 7, 9, 11), "middle", 12) == (3, 4, 5, 6, 7, 8), "Table 5 of the paper"
    assert placed((1, 3, 5, 7, 9, 11), "late", 12) == (6, 7, 8, 9, 10, 11)
    assert placed((), "late", 12) == ()


def test_sizes_of_rivals_are_settings_of_rivals_alone(tmp_path: Path) -> None:
    extended = {"lora": {"model": {"adapters": "lora", "rivals": {"lora": {"rank": 3}}}}}
    params = read_params(changed(tmp_path, extended=extended))
    assert params.settings().model.rivals is None
    rivals = params.settings("lora").model.rivals
    assert rivals is not None and rivals.lora.rank == 3
    assert rivals.lora.alpha == SHIPPED["rivals"]["smoke"]["lora"]["alpha"]


def test_windows(tmp_path: Path) -> None:
    """The alignment loss follows the scan's window; where there is none it takes 4."""
    found = settings(tmp_path)
    assert (found.scan_window, found.align_window) == (4, 4)
    found = settings(tmp_path, model__hmf__window=2)
    assert (found.scan_window, found.align_window) == (2, 2)
    found = settings(tmp_path, model__hmf__window="grid")
    assert (found.scan_window, found.align_window) == (None, 4)
    found = settings(tmp_path, model__neck="none")
    assert (found.scan_window, found.align_window) == (None, 4)
    found = settings(tmp_path, loss__align_window=8, model__hmf__window=2)
    assert (found.scan_window, found.align_window) == (2, 8)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("colour", "colour"),
        ("model__colour", "model.colour"),
        ("model__msa__colour", "model.msa.colour"),
        ("loss__colour", "loss.colour"),
        ("evaluate__colour", "evaluate.colour"),
        ("data__colour", "data.colour"),
        ("pretrain__colour", "pretrain.colour"),
        ("pretrain__text__colour", "pretrain.text.colour"),
        ("scales__smoke__colour", "colour"),
        ("scales__smoke__train__colour", "train.colour"),
        ("scales__smoke__train__schedule__colour", "train.schedule.colour"),
        ("scales__smoke__encoders__vision__colour", "encoders.vision.colour"),
        ("scales__smoke__data__scenes__colour", "data.scenes.colour"),
    ],
)
def test_unknown_key(key: str, told: str, tmp_path: Path) -> None:
    assert re.match(rf"params\.yaml: {re.escape(told)}: unknown key; ", refusal(tmp_path, **{key: 1}))


def test_unknown_key_of_a_variant(tmp_path: Path) -> None:
    message = refusal(tmp_path, variants={"full": {}, "odd": {"model": {"hmf": {"colour": 1}}}})
    assert re.match(r"params\.yaml: model\.hmf\.colour: unknown key; .*\(scale smoke, variant odd\)", message)


def test_missing_key(tmp_path: Path) -> None:
    path = changed(tmp_path)
    content = yaml.safe_load(path.read_text())
    del content["scales"]["smoke"]["train"]["epochs"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"^params\.yaml: train\.epochs: missing; it has no default"):
        read_params(path)
    del content["seeds"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"^params\.yaml: seeds: missing"):
        read_params(path)


WRONG = {
    "scales__smoke__train__epochs": ("many", r"train\.epochs: .*integer.*'many'"),
    "scales__smoke__train__batch_size": (1, r"train\.batch_size: .*2.*not 1"),
    "scales__smoke__train__weight_decay": (-1.0, r"train\.weight_decay: .*greater than or equal to 0.*-1\.0"),
    "scales__smoke__train__optimizer": ("sgd", r"train\.optimizer: .*'adam' or 'adamw'.*'sgd'"),
    "scales__smoke__train__precision": ("fp8", r"train\.precision: .*'fp32', 'bf16' or 'fp16'.*'fp8'"),
    "scales__smoke__train__device": ("tpu", r"train\.device: .*'cpu' or 'cuda'.*'tpu'"),
    "scales__smoke__train__schedule": ({"kind": "linear"}, r"train\.schedule: .*'cosine', 'step'"),
    "scales__smoke__data__tokens": ({"scenes": 2}, r"data\.tokens\.scenes: .*greater than or equal to 3.*not 2"),
    "scales__smoke__encoders__vision__taps": ([1], r"encoders\.vision\.taps"),
    "data__name": ("coco", r"data\.name: .*'refcoco'.*'refcocog-google'.*'coco'"),
    "model__neck": ("fpn", r"model\.neck: .*'hmf', 'none', 'detris' or 'etris'.*'fpn'"),
    "model__adapters": ("prompt", r"model\.adapters: .*'wimfris'.*'finetune'.*'prompt'"),
    "model__placement": ("even", r"model\.placement: .*'spread'.*'late'.*'even'"),
    "extended_seeds": ([], r"extended_seeds: .*at least 1"),
    "model__hmf__window": ("all", r"model\.hmf\.window: .*'grid'.*integer.*'all'"),
    "model__hmf__gate": ("max", r"model\.hmf\.gate: .*'attention', 'text' or 'none'.*'max'"),
    "model__msa__emphasis": ("some", r"model\.msa\.emphasis: .*'learned'.*number.*'some'"),
    "model__msa__emphasis_initial": (1.0, r"model\.msa\.emphasis_initial: .*less than 1"),
    "model__mta__init": ("ones", r"model\.mta\.init: .*'zero' or 'kaiming'.*'ones'"),
    "model__decoder__dropout": (1.5, r"model\.decoder\.dropout: .*less than or equal to 1.*1\.5"),
    "model__scan": ("cuda", r"model\.scan: .*'auto', 'reference', 'cpu', 'triton' or 'mamba_ssm'.*'cuda'"),
    "loss__dice": (-0.1, r"loss\.dice: .*greater than or equal to 0"),
    "loss__align_target": ("most", r"loss\.align_target: .*'any' or 'fraction'"),
    "loss__align_window": (0, r"loss\.align_window: .*'scan'.*greater than 0"),
    "evaluate__protocol": ("mine", r"evaluate\.protocol: .*'cris'.*'mine'"),
    "seeds": ("0", r"seeds: .*list.*'0'"),
    "scales__smoke__train__learning_rate": (float("inf"), r"train\.learning_rate: .*finite"),
    "variants": ({"full": None}, r"variants\.full: .*dictionary"),
    "pretrain__seed": (-1, r"pretrain\.seed: .*greater than or equal to 0"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_value(key: str, tmp_path: Path) -> None:
    value, told = WRONG[key]
    assert re.match(rf"params\.yaml: {told}", refusal(tmp_path, **{key: value}))


IMPOSSIBLE = {
    "scales__smoke__data__image_size": (30, r"data\.image_size: 30 .* a multiple of the patch \(4\)"),
    "model__hmf__window": (9, r"model\.hmf\.window: 9 .* at most the grid \(8\)"),
    "loss__align_window": (9, r"loss\.align_window: 9 .* at most the grid \(8\)"),
    "scales__smoke__encoders__text__width": (
        17,
        r"encoders\.text\.width: 17 .* a multiple of encoders\.text\.heads \(2\)",
    ),
    "scales__smoke__encoders__text": (
        {"source": "random", "width": 15, "layers": 2, "heads": 3},
        r"encoders\.text\.width: 15 .* even widths",
    ),
    "scales__smoke__encoders__vision__width": (17, r"encoders\.vision\.width: 17 .* encoders\.vision\.heads \(2\)"),
    "scales__smoke__model__msa__width": (9, r"model\.msa\.width: 9 .* a multiple of model\.msa\.heads \(2\)"),
    "scales__smoke__model__hmf__width": (17, r"model\.hmf\.width: 17 .* a multiple of model\.hmf\.heads \(2\)"),
    "scales__smoke__model__decoder__heads": (3, r"model\.hmf\.width: 16 .* a multiple of model\.decoder\.heads \(3\)"),
    "scales__smoke__model__mta__layers": ([1, 3], r"model\.mta\.layers: \[1, 3\] .* layers of 0 \.\. 1"),
    "scales__smoke__model__msa__layers": ([1, 0], r"model\.msa\.layers: \[1, 0\] .* each layer once, in order"),
    "scales__smoke__encoders__vision__taps": ([1, 6], r"encoders\.vision\.taps: \[1, 6\] .* layers of 0 \.\. 1"),
    "model__msa__kernels": ([3, 4], r"model\.msa\.kernels: \[3, 4\] .* odd sizes"),
    "scales__smoke__train__precision": ("fp16", r"train\.precision: fp16 .* fp32 or bf16 on a CPU"),
    "scales__smoke__train__schedule": (
        {"kind": "step", "milestones": [1, 2], "factor": 0.1},
        r"train\.schedule\.milestones: \[2\] .* before the last epoch \(2\)",
    ),
    "scales__smoke__encoders__text__revision": ("abc", r"encoders\.text\.revision: abc .* a commit for a hub id"),
    "scales__smoke__encoders__vision__source": ("a/b", r"encoders\.vision\.revision: None .* a commit for a hub id"),
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_impossible_combination(key: str, tmp_path: Path) -> None:
    value, told = IMPOSSIBLE[key]
    message = refusal(tmp_path, **{key: value})
    assert re.match(rf"params\.yaml: {told}.* \(scale smoke, variant full\)$", message), message


def test_variants_that_are_one_and_the_same(tmp_path: Path) -> None:
    message = refusal(tmp_path, variants={"full": {}, "again": {"model": {"hmf": {"window": 4}}}})
    assert message.startswith("params.yaml: variants full and again have equal settings at scale smoke; remove one")
    message = refusal(tmp_path, extended={"again": {"loss": {"dice": 0.3}}})
    assert "variants full and again have equal settings" in message


def test_variants_that_are_the_same_at_another_scale_alone(tmp_path: Path) -> None:
    """A window of 8 cells is all of a grid of 8, and a quarter of one of 16."""
    whole, eight = {"model": {"hmf": {"window": "grid"}}}, {"model": {"hmf": {"window": 8}}}
    declared = {"full": {}, "whole": whole, "eight": eight | {"loss": {"align_window": 4}}}
    params = read_params(changed(tmp_path, scale="small", variants=declared, extended={}))
    assert params.at_scale(None) is params is params.at_scale("small")
    assert params.at_scale("base").settings("eight").scale == "base"
    with pytest.raises(UserError, match="variants whole and eight have equal settings at scale tiny; remove one"):
        params.at_scale("tiny")
    with pytest.raises(UserError, match="no scale 'huge'"):
        params.at_scale("huge")


@pytest.mark.parametrize(
    ("other", "again"),
    [
        ({}, {"loss": {"align_window": 4}}),
        ({"model": {"neck": "none"}}, {"model": {"neck": "none", "hmf": {"window": 2, "gate": "none"}}}),
        ({"model": {"hmf": {"window": "grid"}}}, {"model": {"hmf": {"window": 8}}, "loss": {"align_window": 4}}),
    ],
)
def test_variants_that_word_the_same_otherwise(other: Any, again: Any, tmp_path: Path) -> None:
    declared = {"full": {}, **({"other": other} if other else {}), "again": again}
    message = refusal(tmp_path, variants=declared, extended={})
    assert f"variants {'other' if other else 'full'} and again have equal settings at scale smoke" in message


@pytest.mark.parametrize("model", [{"adapters": "lora"}, {"neck": "detris"}])
def test_a_rival_is_no_variant_of_the_core(model: dict[str, str], tmp_path: Path) -> None:
    told = "params.yaml: variants.rival: a rival's adapters or neck; declare it under `extended`"
    assert refusal(tmp_path, variants={"full": {}, "rival": {"model": model}}).startswith(told)


def test_a_name_is_of_the_core_or_beyond_it(tmp_path: Path) -> None:
    assert re.match(r"params\.yaml: extended: \['full'\]", refusal(tmp_path, extended={"full": {}}))


def test_there_is_a_full_model_to_compare_with(tmp_path: Path) -> None:
    assert re.match(r"params\.yaml: variants: no full", refusal(tmp_path, variants={"half": {}}))


@pytest.mark.parametrize("name", ["a/b", "a b", "", "a-b"])
def test_variant_name_that_makes_no_file_name(name: str, tmp_path: Path) -> None:
    assert re.match(rf"params\.yaml: variants\.{name}: ", refusal(tmp_path, variants={"full": {}, name: {}}))


def test_seeds_make_distinct_runs(tmp_path: Path) -> None:
    assert refusal(tmp_path, seeds=[0, 0]) == "params.yaml: seeds: [0, 0] is not possible; allowed: each seed once"
    assert re.match(r"params\.yaml: seeds: .*at least 1 item", refusal(tmp_path, seeds=[]))


def test_extra_seeds_are_of_a_variant_and_new(tmp_path: Path) -> None:
    extended = {"extended": {"gate_text": {"model": {"hmf": {"gate": "text"}}}}, "extended_seeds": [1]}
    for extra, error in (
        ({"half": [7]}, "extra_seeds: half is not possible; allowed: the variants: full, gate_text"),
        ({"full": [7, 7]}, "extra_seeds.full: [7, 7] is not possible; allowed: each seed once"),
        (
            {"full": [7, 0]},
            "extra_seeds.full: [7, 0] is not possible; allowed: seeds other than the declared [0, 1, 2]",
        ),
        ({"gate_text": [1]}, "extra_seeds.gate_text: [1] is not possible; allowed: seeds other than the declared [1]"),
    ):
        assert refusal(tmp_path, **extended, extra_seeds=extra) == f"params.yaml: {error}"
    assert re.match(
        r"params\.yaml: extra_seeds\.full\.0: .*greater than", refusal(tmp_path, extra_seeds={"full": [-1]})
    )
    assert re.match(r"params\.yaml: extra_seeds\.full: .*at least 1", refusal(tmp_path, extra_seeds={"full": []}))


@pytest.mark.parametrize("key", ["scale", "variant"])
def test_a_scale_cannot_rename_a_run(key: str, tmp_path: Path) -> None:
    assert re.match(
        rf"params\.yaml: scales\.smoke\.{key}: unknown key", refusal(tmp_path, **{f"scales__smoke__{key}": "x"})
    )


def test_path_of_a_key_that_is_no_identifier(tmp_path: Path) -> None:
    tokens = SHIPPED["scales"]["base"]["data"]["tokens"] | {"refcoco+": 1}
    message = refusal(tmp_path, scale="base", scales__base__data__tokens=tokens)
    assert re.match(r"params\.yaml: data\.tokens\.refcoco\+: .*greater than or equal to 3", message)


def test_built_in_words_are_those_of_scenes(tmp_path: Path) -> None:
    message = refusal(tmp_path, data__name="refcoco", scales__smoke__data__tokens={"refcoco": 17})
    assert re.match(r"params\.yaml: encoders\.text\.source: random .* a hub id", message)


def test_width_that_positions_cannot_share(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        scales__smoke__model__hmf__width=6,
        scales__smoke__model__hmf__heads=2,
        scales__smoke__model__decoder__heads=2,
    )
    assert re.match(r"params\.yaml: model\.hmf\.width: 6 .* a multiple of 4", message)


def test_alignment_window_without_a_scan_in_a_small_grid(tmp_path: Path) -> None:
    message = refusal(tmp_path, model__neck="none", scales__smoke__data__image_size=8)
    assert re.match(r"params\.yaml: loss\.align_window: 4 .* at most the grid \(2\)", message)


def test_a_window_larger_than_the_grid_is_no_matter_without_a_neck(tmp_path: Path) -> None:
    assert settings(tmp_path, model__neck="none", model__hmf__window=9).scan_window is None


def test_impossible_variant_is_refused_whatever_is_asked_for(tmp_path: Path) -> None:
    message = refusal(tmp_path, variants={"full": {}, "wide": {"model": {"hmf": {"window": 9}}}})
    assert message.endswith("(scale smoke, variant wide)")


def test_unknown_scale_and_variant(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path, scale="huge")
        == "params.yaml: scale: no scale 'huge'; allowed: smoke, tiny, small, base, large"
    )
    with pytest.raises(UserError, match=r"^params\.yaml: variants: no variant 'half'; there are: full"):
        read_params(changed(tmp_path)).settings("half")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: no such file; run from the project's root") as error:
        read_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
    path = tmp_path / "params.yaml"
    for content, told in (
        ("scale: tiny\ndata: [1, 2\nseeds: 3\n", r"line \d: not YAML"),
        ("scale: tiny\n\tdata: 3\n", r"line 2: not YAML"),
        ("", "holds no settings"),
        ("- 1\n", "holds no settings"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=told) as error:
            read_params(path)
        assert "\n" not in str(error.value)


def test_a_number_written_as_yaml_text_is_told(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 (without a point) as text: a frequent slip."""
    path = changed(tmp_path)
    path.write_text(re.sub(r"learning_rate: 0\.001\b", "learning_rate: 2e-3", path.read_text()))
    try:
        found = read_params(path).settings().train.learning_rate
    except UserError as error:
        assert "learning_rate" in str(error)  # noqa: PT017
    else:
        assert found == 2e-3


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    found = settings(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        found.train.epochs = 5  # type: ignore[misc]
    assert isinstance(read_params(changed(tmp_path)), Params)
