"""The shipped params.yaml is valid, and invalid settings raise an error of one line that names the key."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from params_file import SHIPPED, read_yaml, write_params, write_yaml

from wimfris.errors import UserError
from wimfris.runs.fingerprint import run_code
from wimfris.settings.params import merge, read_params
from wimfris.settings.placement import placed
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.settings.sections import CosineSchedule, StepSchedule

ROOT = Path(__file__).parents[2]
SCALES = ("smoke", "tiny", "small", "base", "large")
NAMES = ("scenes", *SHIPPED["datasets"])


def settings(path: Path, **values: Any) -> Settings:
    return read_params(write_params(path, **values)).settings()


def message_of(path: Path, *, line: bool = False, **values: Any) -> str:
    """Return the message of the error, without the line of the key unless `line` is true."""
    with pytest.raises(UserError) as error:
        settings(path, **values)
    message = str(error.value)
    assert "\n" not in message, "one line"
    assert message.startswith("params.yaml: ")
    return message if line else re.sub(r" \(line \d+\)$|(?<=\()line \d+, ", "", message)


# --- the shipped file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_shipped_scale_and_variant_resolves(scale: str, tmp_path: Path) -> None:
    params = read_params(write_params(tmp_path, only_full=False, scale=scale))
    for variant in (*SHIPPED["variants"], *params.extended, *SHIPPED["controls"]):
        resolved = params.settings(variant)
        assert (resolved.scale, resolved.variant) == (scale, variant)
        assert resolved.folder == Path(f"runs/scenes-{scale}")
        beyond = variant not in SHIPPED["variants"]
        assert resolved.outs == (resolved.folder / ("extended" if beyond else "core"))


def test_a_scale_has_variants_of_its_own(tmp_path: Path) -> None:
    own = {"other": {"data": {"image_size": 48}, "encoders": {"vision": {"width": 32}}, "train": {"epochs": 1}}}
    params = read_params(write_params(tmp_path, scales__smoke__variants=own))
    resolved = params.settings("other")
    assert (resolved.data.image_size, resolved.encoders.vision.width, resolved.train.epochs) == (48, 32, 1)
    assert resolved.own_encoders and resolved.group == "extended" and not params.settings().own_encoders
    assert resolved.encoders_record == resolved.folder / "encoders" / "other.json"
    assert list(params.extended) == ["other"] and "other" not in params.at_scale("tiny").extended
    assert [str(run) for run in params.runs_of("other")] == [f"other-{seed}" for seed in params.extended_seeds]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"other": {"rivals": {}}},
            "scales.smoke.variants.other must be model, loss, train, encoders or data",
        ),
        (
            {"other": {"data": {"tokens": {}}}},
            "scales.smoke.variants.other.data must be image_size, got tokens",
        ),
        ({"other": {"data": {"image_size": 30}}}, "data.image_size must be a multiple of 4"),
        ({"other": {"encoders": {"text": {"width": 17}}}}, "encoders.text.width must be a multiple of 2"),
        (
            {"full": {}},
            "scales.smoke.variants must be without names that are in variants, extended or controls, got full",
        ),
        ({"a b": {}}, "scales.smoke.variants must be with names of letters, digits and _, got a b"),
        (["other"], "scales.smoke.variants must be a mapping of names to overrides"),
    ],
)
def test_impossible_variants_of_a_scale(tmp_path: Path, own: Any, message: str) -> None:
    assert message in message_of(tmp_path, scales__smoke__variants=own)


def test_only_variants_of_a_scale_change_encoders(tmp_path: Path) -> None:
    message = message_of(tmp_path, extended={"other": {"encoders": {"text": {"width": 32}}}})
    assert "the keys of extended.other must be model, loss or train, got encoders" in message


def test_scales_are_the_documented_ones() -> None:
    assert tuple(SHIPPED["scales"]) == SCALES
    assert SHIPPED["scale"] == "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["base", "large"])
@pytest.mark.parametrize("name", NAMES)
def test_paper_scales_take_every_data_set(scale: str, name: str, tmp_path: Path) -> None:
    resolved = settings(tmp_path, scale=scale, data__name=name)
    assert resolved.data.length == (22 if name == "refcocog-umd" else 17)
    assert resolved.folder == Path(f"runs/{name}-{scale}")
    assert resolved.data.splits[0] == "val"
    tests = {"refcocog-umd": ("test",), "refcocog-google": ()}.get(name, ("testA", "testB"))
    tests += ("test",) if name.startswith("mixed") else ()
    assert resolved.data.splits[1:] == tests


def test_numbers_of_the_paper(tmp_path: Path) -> None:
    base, large = (settings(tmp_path, scale=scale) for scale in ("base", "large"))
    for resolved in (base, large):
        assert resolved.grid == 32 and resolved.data.image_size == 448
        assert resolved.train.optimizer == "adam" and resolved.train.learning_rate == 1e-4
        assert resolved.train.weight_decay == 0 and resolved.train.clip_norm is None and resolved.train.batch_size == 32
        assert (resolved.loss.contrast, resolved.loss.dice, resolved.loss.align) == (0.5, 0.3, 0.2)
        assert resolved.model.hmf.width == 512 and resolved.model.decoder.layers == 3
        assert (resolved.model.msa.width, resolved.model.msa.heads, resolved.model.mta.width) == (160, 8, 24)
        assert resolved.model.mta.layers == (1, 3, 5, 7, 9, 11)
        assert resolved.encoders.text.width == 512 and resolved.encoders.text.source == "openai/clip-vit-base-patch16"
    assert isinstance(base.train.schedule, StepSchedule) and isinstance(large.train.schedule, StepSchedule)
    assert (base.train.epochs, base.train.schedule.milestones, base.train.schedule.factor) == (65, (35, 55), 0.1)
    assert (large.train.epochs, large.train.schedule.milestones) == (50, (35,))
    assert (base.encoders.vision.width, base.encoders.vision.taps) == (768, (4, 8))
    assert (large.encoders.vision.width, large.encoders.vision.taps) == (1024, (8, 16))
    assert base.model.msa.layers == (1, 3, 5, 7, 9, 11)
    assert large.model.msa.layers == (2, 6, 10, 14, 18, 22)


def test_published_settings_of_a_data_set(tmp_path: Path) -> None:
    """Those of DETRIS's configurations: epochs on google, and the adapters of its mixed model."""
    google = settings(tmp_path, scale="base", data__name="refcocog-google").train
    assert google.epochs == 50 and google.schedule == StepSchedule(kind="step", milestones=(35,), factor=0.1)
    assert settings(tmp_path, scale="base", data__name="refcocog-umd").train.epochs == 65
    for name in ("mixed_strict", "mixed_as_published"):
        params = read_params(write_params(tmp_path, only_full=False, scale="large", data__name=name))
        model = params.settings("detris_adapters_detris_neck").model
        assert model.mta.layers == tuple(range(1, 12)) and model.msa.layers == tuple(range(1, 24))
        assert model.rivals is not None and model.rivals.detris.width == model.rivals.detris.text_width == 384
        assert params.settings().model == settings(tmp_path, scale="large").model, "no other variant's"
        assert settings(tmp_path, scale="large", data__name=name).data.drop_shared == (name == "mixed_strict")


OWN = {"refs": "own/refs.json", "instances": "own/i.json", "images": "own/images", "splits": ["val"], "tokens": 20}


def test_a_declared_data_set_is_used_by_its_name(tmp_path: Path) -> None:
    overrides = {"smoke": {"train": {"epochs": 3}, "variants": {"wide": {"model": {"msa": {"width": 32}}}}}}
    declared = SHIPPED["datasets"] | {"own-2": OWN | {"overrides": overrides}}
    variants = {"full": {}, "wide": {"model": {"msa": {"width": 16}}}}
    params = read_params(write_params(tmp_path, datasets=declared, data__name="own-2", variants=variants))
    resolved, wide = params.settings(), params.settings("wide")
    assert resolved.folder == Path("runs/own-2-smoke") and params.at_name("own-2-smoke").settings() == resolved
    assert (resolved.data.length, resolved.data.splits, resolved.data.sets) == (20, ("val",), ("own-2",))
    assert resolved.train.epochs == 3 and (resolved.model.msa.width, wide.model.msa.width) == (8, 32)
    assert "files" not in resolved.model_dump(mode="json")["data"], "where the files lie decides no result"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, "datasets.own.tokens is missing"),
        (OWN | {"refs": 3}, "datasets.own.refs must be a valid string, got 3"),
        ({key: value for key, value in OWN.items() if key != "images"}, "datasets.own.images is missing"),
        (OWN | {"splits": ["test", "val"]}, "datasets.own.splits must be different splits, val first"),
        (OWN | {"splits": ["val", "valid"]}, "datasets.own.splits.1 must be one of val, testA, testB, test, got valid"),
        (OWN | {"tokens": 2}, "datasets.own.tokens must be greater than or equal to 3, got 2"),
        (OWN | {"tokns": 2}, "unknown key datasets.own.tokns; did you mean tokens?"),
        (OWN | {"counts": {"val": [1, 2]}}, "datasets.own.counts.val.2 is missing"),
        (OWN | {"overrides": {"huge": {}}}, "datasets.own.overrides must be by scale (smoke, "),
        (OWN | {"overrides": {"base": {"data": {}}}}, "datasets.own.overrides.base must be model, loss, train or"),
        ({"mix": ["refcoco"], "tokens": 9, "drop_shared": True}, "datasets.own.mix must have at least 2 items"),
        ({"mix": ["refcoco", "x"], "tokens": 9, "drop_shared": True}, "datasets.own.mix must be of refcoco, "),
    ],
)
def test_a_wrong_declaration_is_named(entry: Any, reason: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, datasets=SHIPPED["datasets"] | {"own": entry}, line=True)
    assert message.startswith(f"params.yaml: {reason}"), message
    assert re.search(r"\(line \d+\)$", message), message


# --- merging ----------------------------------------------------------------------------------------------------------


def test_scale_overrides_shared_and_variant_overrides_scale(tmp_path: Path) -> None:
    path = write_params(
        tmp_path, variants={"full": {}, "wide": {"model": {"msa": {"width": 16}}, "loss": {"dice": 0.5}}}
    )
    content = read_yaml(path)
    content["model"]["msa"]["width"] = 8
    content["scales"]["smoke"]["model"]["msa"]["width"] = 32
    write_yaml(content, path)
    params = read_params(path)
    full, wide = params.settings("full"), params.settings("wide")
    assert (full.model.msa.width, wide.model.msa.width) == (32, 16)
    assert (full.loss.dice, wide.loss.dice) == (0.3, 0.5)
    assert wide.model.msa.model_copy(update={"width": 32}) == full.model.msa
    assert wide.train == full.train


def test_merge_replaces_lists_and_does_not_change_its_arguments() -> None:
    base = {"a": {"b": [1, 2], "c": 1}, "d": 2}
    before = copy.deepcopy(base)
    assert merge(base, {"a": {"b": [3]}}) == {"a": {"b": [3], "c": 1}, "d": 2}
    assert base == before


def test_a_schedule_of_another_kind_replaces_the_old_one(tmp_path: Path) -> None:
    steps = {"kind": "step", "milestones": [1], "factor": 0.5}
    path = write_params(tmp_path, variants={"full": {}, "steps": {"train": {"schedule": steps}}})
    params = read_params(path)
    assert isinstance(params.settings().train.schedule, CosineSchedule)
    assert params.settings("steps").train.schedule == StepSchedule(**steps)
    warmer = {"full": {}, "warmer": {"train": {"schedule": {"warmup": 7}}}}
    assert read_params(write_params(tmp_path, variants=warmer)).settings("warmer").train.schedule == CosineSchedule(
        kind="cosine", warmup=7
    )


@pytest.mark.parametrize("section", ["data", "evaluate", "scale", "encoders", "variants"])
def test_a_variant_overrides_only_model_loss_and_train(section: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"full": {}, "other": {section: {}}})
    assert message == f"params.yaml: the keys of variants.other must be model, loss or train, got {section}"


def test_runs_are_variants_times_seeds(tmp_path: Path) -> None:
    params = read_params(
        write_params(tmp_path, seeds=[0, 3], variants={"full": {}, "plain": {"model": {"neck": "none"}}})
    )
    assert params.runs() == [Run("full", 0), Run("full", 3), Run("plain", 0), Run("plain", 3)]
    assert params.settings_of(Run("plain", 3)) == params.settings("plain")


def test_extended_runs_have_a_group_of_their_own(tmp_path: Path) -> None:
    other = {"model": {"hmf": {"gate": "text"}}}
    params = read_params(write_params(tmp_path, seeds=[0, 3], extended={"gate_text": other}, extended_seeds=[1]))
    assert params.extended_runs() == [Run("gate_text", 1)]
    assert params.runs_of("full") == [Run("full", 0), Run("full", 3)]
    assert params.runs_of("gate_text") == [Run("gate_text", 1)]
    assert params.settings_of(Run("full", 0)).group == "core"
    assert params.settings_of(Run("gate_text", 1)).group == "extended"


def test_extra_seeds_add_runs_beyond_the_declared_ones(tmp_path: Path) -> None:
    declared = {"extended": {"gate_text": {"model": {"hmf": {"gate": "text"}}}}, "extended_seeds": [0], "seeds": [0, 1]}
    params = read_params(write_params(tmp_path, **declared, extra_seeds={"gate_text": [7], "full": [10, 11]}))
    assert params.extra_runs() == [Run("gate_text", 7), Run("full", 10), Run("full", 11)]
    assert params.runs_of("full") == params.runs() == [Run("full", 0), Run("full", 1)]
    assert params.all_runs() == [*params.runs(), *params.extended_runs(), *params.extra_runs()]
    assert len(set(params.all_runs())) == len(params.all_runs()) == 6
    assert read_params(write_params(tmp_path, extra_seeds={})).extra_runs() == []


def test_extra_seeds_of_a_variant_of_one_scale_leave_the_others_alone(tmp_path: Path) -> None:
    own = {"other": {"train": {"epochs": 1}}}
    here = {"scales__smoke__variants": own, "extra_seeds": {"other": [7]}, "explorer": ["full", "other"]}
    params = read_params(write_params(tmp_path, **here))
    assert params.extra_runs() == [Run("other", 7)] and len(params.explorer_runs()) == 2
    tiny = params.at_scale("tiny")
    assert tiny.extra_runs() == [] and [run.variant for run in tiny.explorer_runs()] == ["full"]
    assert "other" in tiny.of_other_scales() and "other" not in params.of_other_scales()
    assert read_params(write_params(tmp_path, **here, scale="tiny")).extra_runs() == []


def test_placement_puts_adapters_in_consecutive_layers() -> None:
    assert placed((1, 3, 5, 7, 9, 11), "spread", 12) == (1, 3, 5, 7, 9, 11)
    assert placed((1, 3, 5, 7, 9, 11), "early", 12) == (0, 1, 2, 3, 4, 5)
    assert placed((1, 3, 5, 7, 9, 11), "middle", 12) == (3, 4, 5, 6, 7, 8), "Table 5 of the paper"
    assert placed((1, 3, 5, 7, 9, 11), "late", 12) == (6, 7, 8, 9, 10, 11)
    assert placed((), "late", 12) == ()


def hmf(**values: Any) -> dict[str, Any]:
    return {"model": {"hmf": values}}


SAME = {  # a variant, and another with the same function
    "a second text token behind a causal scan": ({}, hmf(text_token="both")),
    "a text token behind it alone": (hmf(text_token="none"), hmf(text_token="last")),
    "both ways": (hmf(direction="bidirectional"), hmf(direction="bidirectional", text_token="both")),
    "four ways, Mamba-2": (
        hmf(mixing="ssd", direction="cross", text_token="none"),
        hmf(mixing="ssd", direction="cross", text_token="last"),
    ),
    "attention has no order": (hmf(mixing="attention"), hmf(mixing="attention", text_token="last")),
    "nothing mixes": (hmf(mixing="none"), hmf(mixing="none", passes=2, text_token="none", direction="cross")),
    "groups have no order": (hmf(window=[2, "grid"]), hmf(window=[8, 2])),
    "no loss, no window of it": (
        {"loss": {"align": 0.0}},
        {"loss": {"align": 0.0, "align_window": 2, "align_target": "fraction"}},
    ),
    "no mixer, no kernels": (
        {"model": {"msa": {"mixer": "none"}}},
        {"model": {"msa": {"mixer": "none", "kernels": [3]}}},
    ),
}
OTHER = {  # near to the above, and another function
    "attention weighs two tokens": (hmf(mixing="attention"), hmf(mixing="attention", text_token="both")),
    "an order of words": ({}, hmf(text_token="words")),
    "a group of its own": ({}, hmf(window=[4, 4])),
    "two passes of one window": (hmf(window=1), hmf(window=1, passes=2)),
}


@pytest.mark.parametrize("case", SAME)
def test_a_variant_with_the_function_of_another_is_refused_and_is_its_control(case: str, tmp_path: Path) -> None:
    one, other = SAME[case]
    extended = {} if one == {} else {"one": one}
    name = "one" if extended else "full"
    message = message_of(tmp_path, extended=extended | {"other": other})
    assert message == (
        f"params.yaml: variants {name} and other compute the same function at scale smoke; remove one of them, or move "
        f"other to controls with same_as: {name}"
    )
    params = read_params(write_params(tmp_path, extended=extended, controls={"other": other | {"same_as": name}}))
    assert Run("other", 0) in params.extended_runs() and Run("other", 0) in params.all_runs()
    assert params.settings_of(Run("other", 0)).group == "extended"


@pytest.mark.parametrize("case", OTHER)
def test_a_variant_with_another_function_is_none_and_no_control(case: str, tmp_path: Path) -> None:
    one, other = OTHER[case]
    extended = {} if one == {} else {"one": one}
    read_params(write_params(tmp_path, extended=extended | {"other": other}))
    name = "one" if extended else "full"
    message = message_of(tmp_path, extended=extended, controls={"other": other | {"same_as": name}})
    assert message.startswith(f"params.yaml: control other does not compute the function of {name} at scale smoke")


def test_a_control_names_a_variant_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    message = message_of(tmp_path, controls={"other": {"same_as": "fll"}})
    assert message == "params.yaml: controls.other.same_as must be one of full, got fll"
    message = message_of(tmp_path, controls={"full": {"same_as": "full"}})
    assert message == "params.yaml: controls must be without names that are in variants or extended, got full"


def test_only_rivals_have_sizes_of_rivals(tmp_path: Path) -> None:
    extended = {"lora": {"model": {"adapters": "lora", "rivals": {"lora": {"rank": 3}}}}}
    params = read_params(write_params(tmp_path, extended=extended))
    assert params.settings().model.rivals is None
    rivals = params.settings("lora").model.rivals
    assert rivals is not None and rivals.lora.rank == 3
    assert rivals.lora.alpha == SHIPPED["rivals"]["smoke"]["lora"]["alpha"]
    assert rivals.model_dump(exclude_none=True).keys() == {"lora"}, "the others have no effect"


def test_windows(tmp_path: Path) -> None:
    """The alignment window follows the scan's window, and is 4 if there is none."""
    resolved = settings(tmp_path)
    assert (resolved.scan_window, resolved.align_window) == (4, 4)
    resolved = settings(tmp_path, model__hmf__window=2)
    assert (resolved.scan_window, resolved.align_window) == (2, 2)
    resolved = settings(tmp_path, model__hmf__window="grid")
    assert (resolved.scan_window, resolved.align_window) == (None, 4)
    resolved = settings(tmp_path, model__neck="none")
    assert (resolved.scan_window, resolved.align_window) == (None, 4)
    resolved = settings(tmp_path, model__hmf__window=[2, 8, "grid", 4])
    assert (resolved.scan_window, resolved.align_window) == (None, 4)
    resolved = settings(tmp_path, loss__align_window=8, model__hmf__window=2)
    assert (resolved.scan_window, resolved.align_window) == (2, 8)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("colour", "colour"),
        ("model__msa__colour", "model.msa.colour"),
        ("pretrain__text__colour", "pretrain.text.colour"),
        ("scales__smoke__colour", "colour"),
        ("scales__smoke__train__schedule__colour", "train.schedule.colour"),
    ],
)
def test_unknown_key(key: str, path: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, **{key: 1})
    assert re.match(rf"params\.yaml: unknown key {re.escape(path)}; remove it", message), message


@pytest.mark.parametrize(
    ("key", "path", "closest"),
    [
        ("sedes", "sedes", "seeds"),
        ("model__hmf__windw", "model.hmf.windw", "window"),
        ("scales__smoke__trian", "trian", "train"),
        ("scales__smoke__train__schedule__warm_up", "train.schedule.warm_up", "warmup"),
    ],
)
def test_unknown_key_suggests_the_closest_known_one(key: str, path: str, closest: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, **{key: 1})
    assert message.startswith(f"params.yaml: unknown key {path}; did you mean {closest}?")


def test_misspelt_key_is_reported_before_the_missing_one(tmp_path: Path) -> None:
    path = write_params(tmp_path)
    path.write_text(path.read_text().replace("      epochs: ", "      epohcs: "))
    with pytest.raises(UserError, match=r"^params\.yaml: unknown key train\.epohcs; did you mean epochs\?"):
        read_params(path)


def test_unknown_key_of_a_variant(tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"full": {}, "odd": {"model": {"hmf": {"colour": 1}}}})
    assert re.match(r"params\.yaml: unknown key model\.hmf\.colour; .*\(scale smoke, variant odd\)", message)


def test_missing_key(tmp_path: Path) -> None:
    path = write_params(tmp_path)
    content = read_yaml(path)
    del content["scales"]["smoke"]["train"]["epochs"]
    write_yaml(content, path)
    with pytest.raises(UserError, match=r"^params\.yaml: train\.epochs is missing and has no default"):
        read_params(path)
    del content["seeds"]
    write_yaml(content, path)
    with pytest.raises(UserError, match=r"^params\.yaml: seeds is missing"):
        read_params(path)


WRONG = [
    ("scales__smoke__train__epochs", "many", "train.epochs must be a valid integer, got 'many'"),
    (
        "scales__smoke__train__schedule",
        {"kind": "linear"},
        "train.schedule.kind must be one of cosine, step, got linear",
    ),
    ("scales__smoke__data__tokens", {"scenes": 2}, "data.tokens.scenes must be greater than or equal to 3, got 2"),
    ("scales__smoke__encoders__vision__taps", [1], "encoders.vision.taps.1 is missing"),
    (
        "data__name",
        "coco",
        "data.name must be one of scenes, refcoco, refcoco+, refcocog-umd, refcocog-google, "
        "mixed_strict, mixed_as_published, got coco; declare others in datasets",
    ),
    ("scales__smoke__train__batch_size", True, "train.batch_size must not be a boolean, got True"),
    ("model__msa__kernels", [3, True], "model.msa.kernels must not be a boolean, got [3, True]"),
    ("seeds", [True], "seeds must not be a boolean, got [True]"),
    ("extra_seeds", {"full": [True]}, "extra_seeds.full must not be a boolean, got [True]"),
    ("scales__smoke__data__image_size", 10**9, "data.image_size must be less than or equal to 8192, got 1000000000"),
    ("scales__smoke__train__schedule", {"knd": "cosine"}, "unknown key train.schedule.knd; did you mean kind?"),
    ("extended_seeds", [], "extended_seeds must have at least 1 item, got []"),
    ("scales__smoke__model__hmf", 3, "model.hmf must be a valid dictionary, got 3"),
    ("model__hmf__window", "all", "model.hmf.window must be grid or a valid integer or a valid list, got all"),
    ("model__msa__emphasis", "some", "model.msa.emphasis must be learned or a valid number, got some"),
    ("model__decoder__dropout", 1.5, "model.decoder.dropout must be less than or equal to 1, got 1.5"),
    ("loss__align_window", 0, "loss.align_window must be scan or greater than 0, got 0"),
    ("seeds", "0", "seeds must be a valid list, got '0'"),
    ("scales__smoke__train__learning_rate", float("inf"), "train.learning_rate must be a finite number, got inf"),
]


@pytest.mark.parametrize(("key", "value", "reason"), WRONG)
def test_wrong_value(key: str, value: Any, reason: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, **{key: value})
    assert message.startswith(f"params.yaml: {reason}"), message


def test_a_schedule_needs_a_kind(tmp_path: Path) -> None:
    message = message_of(tmp_path, scales__smoke__train__schedule={"warmup": 2})
    assert message.startswith("params.yaml: train.schedule.kind is missing and has no default")


IMPOSSIBLE = {
    "scales__smoke__data__image_size": (30, "data.image_size must be a multiple of 4 (encoders.vision.patch), got 30"),
    "model__hmf__window": (9, "model.hmf.window must be at most the grid size (8), got 9"),
    "model__hmf": (
        SHIPPED["model"]["hmf"] | {"window": [2, 4, 8]},
        "model.hmf.width must be a multiple of 3 (groups of channels in model.hmf.window), got 16",
    ),
    "loss__align_window": (9, "loss.align_window must be at most the grid size (8), got 9"),
    "scales__smoke__encoders__text__width": (
        17,
        "encoders.text.width must be a multiple of 2 (encoders.text.heads), got 17",
    ),
    "scales__smoke__encoders__text": (
        {"source": "random", "width": 15, "layers": 2, "heads": 3},
        "encoders.text.width must be a multiple of 2 (sinusoidal positions), got 15",
    ),
    "scales__smoke__encoders__vision__width": (
        17,
        "encoders.vision.width must be a multiple of 2 (encoders.vision.heads), got 17",
    ),
    "scales__smoke__model__msa__width": (9, "model.msa.width must be a multiple of 2 (model.msa.heads), got 9"),
    "scales__smoke__model__hmf__width": (17, "model.hmf.width must be a multiple of 2 (model.hmf.heads), got 17"),
    "scales__smoke__model__decoder__heads": (
        3,
        "model.hmf.width must be a multiple of 3 (model.decoder.heads), got 16",
    ),
    "scales__smoke__model__mta__layers": ([1, 3], "model.mta.layers must be layers from 0 to 1, got [1, 3]"),
    "scales__smoke__model__msa__layers": (
        [1, 0],
        "model.msa.layers must be in increasing order, each layer once, got [1, 0]",
    ),
    "scales__smoke__encoders__vision__taps": ([1, 6], "encoders.vision.taps must be layers from 0 to 1, got [1, 6]"),
    "model__msa__kernels": ([3, 4], "model.msa.kernels must be odd numbers, got [3, 4]"),
    "loss": (
        {"contrast": 0, "dice": 0.0, "align": 0, "align_window": "scan", "align_target": "any"},
        "loss must be a section with a weight above 0 (contrast, dice or align), got [0.0, 0.0, 0.0]",
    ),
    "scales__smoke__encoders__vision": (
        SHIPPED["scales"]["smoke"]["encoders"]["vision"] | {"width": 65536, "layers": 1024},
        "encoders.vision.width must be smaller: with the other sizes it needs 192 TiB of memory, got 65536",
    ),
    "scales__smoke__train__precision": ("fp16", "train.precision must be fp32 or bf16 on a CPU, got fp16"),
    "scales__smoke__train__schedule": (
        {"kind": "step", "milestones": [1, 2], "factor": 0.1},
        "train.schedule.milestones must be less than train.epochs (2), got [2]",
    ),
    "scales__smoke__encoders__text__revision": (
        "abc",
        "encoders.text.revision must be a commit if source is a hub id, null otherwise, got abc",
    ),
    "scales__smoke__encoders__vision__source": (
        "a/b",
        "encoders.vision.revision must be a commit if source is a hub id, null otherwise, got None",
    ),
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_impossible_combination(key: str, tmp_path: Path) -> None:
    value, reason = IMPOSSIBLE[key]
    assert message_of(tmp_path, **{key: value}) == f"params.yaml: {reason} (scale smoke, variant full)"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model__hmf__conv", 5, "model.hmf.conv must be from 2 to 4"),
        ("model__mta__conv", 1, "model.mta.conv must be from 2 to 4"),
        ("scales__smoke__model__hmf__width", 20, "model.hmf.width must be such that width * expand is a multiple of 8"),
        ("scales__smoke__model__mta__width", 3, "model.mta.width must be such that width * expand is a multiple of 8"),
    ],
)
def test_sizes_that_mamba_ssm_lacks(key: str, value: int, reason: str, tmp_path: Path) -> None:
    assert read_params(write_params(tmp_path, model__scan="mamba_ssm")).settings().model.scan == "mamba_ssm"
    message = message_of(tmp_path, model__scan="mamba_ssm", **{key: value})
    assert message == f"params.yaml: {reason} with model.scan mamba_ssm, got {value} (scale smoke, variant full)"


@pytest.mark.parametrize(
    ("adapters", "sizes", "reason"),
    [
        (
            "detris",
            {"attention_width": 9},
            "detris.attention_width must be a multiple of 2 (rivals.smoke.detris.heads)",
        ),
        ("etris", {"width": 9}, "etris.width must be a multiple of 2 (rivals.smoke.etris.heads)"),
    ],
)
def test_sizes_of_rivals_are_multiples_of_their_heads(
    adapters: str, sizes: dict[str, int], reason: str, tmp_path: Path
) -> None:
    rivals = {"smoke": {**SHIPPED["rivals"]["smoke"], adapters: SHIPPED["rivals"]["smoke"][adapters] | sizes}}
    message = message_of(tmp_path, rivals=rivals, extended={"rival": {"model": {"adapters": adapters}}})
    assert message == f"params.yaml: rivals.smoke.{reason}, got 9 (scale smoke, variant rival)"


def test_variants_with_equal_settings(tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"full": {}, "again": {"model": {"hmf": {"window": 4}}}})
    assert message.startswith("params.yaml: variants full and again have equal settings at scale smoke; remove one")
    message = message_of(tmp_path, extended={"again": {"loss": {"dice": 0.3}}})
    assert "variants full and again have equal settings" in message


def test_variants_with_equal_settings_at_another_scale(tmp_path: Path) -> None:
    """A window of 8 x 8 cells covers a grid of 8 x 8, and a quarter of a grid of 16 x 16."""
    whole, eight = {"model": {"hmf": {"window": "grid"}}}, {"model": {"hmf": {"window": 8}}}
    declared = {"full": {}, "whole": whole, "eight": eight | {"loss": {"align_window": 4}}}
    params = read_params(write_params(tmp_path, scale="small", variants=declared, extended={}))
    assert params.at_scale(None) is params is params.at_scale("small")
    assert params.at_scale("base").settings("eight").scale == "base"
    with pytest.raises(UserError, match="variants whole and eight have equal settings at scale tiny; remove one"):
        params.at_scale("tiny")
    with pytest.raises(UserError, match="scale must be one of smoke, tiny, small, base, large, got huge"):
        params.at_scale("huge")


@pytest.mark.parametrize(
    ("other", "again"),
    [
        ({}, {"loss": {"align_window": 4}}),
        ({"model": {"neck": "none"}}, {"model": {"neck": "none", "hmf": {"window": 2, "gate": "none"}}}),
        ({"model": {"hmf": {"window": "grid"}}}, {"model": {"hmf": {"window": 8}}, "loss": {"align_window": 4}}),
    ],
)
def test_variants_with_other_overrides_but_equal_settings(other: Any, again: Any, tmp_path: Path) -> None:
    declared = {"full": {}, **({"other": other} if other else {}), "again": again}
    message = message_of(tmp_path, variants=declared, extended={})
    assert f"variants {'other' if other else 'full'} and again have equal settings at scale smoke" in message


@pytest.mark.parametrize("model", [{"adapters": "lora"}, {"neck": "detris"}])
def test_a_rival_cannot_be_a_core_variant(model: dict[str, str], tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"full": {}, "rival": {"model": model}})
    assert message.startswith(
        "params.yaml: variants.rival uses the adapters or the neck of a rival; move it to extended"
    )


def test_a_core_variant_and_an_extended_one_cannot_share_a_name(tmp_path: Path) -> None:
    message = message_of(tmp_path, extended={"full": {}})
    assert message == "params.yaml: extended must be without names that are in variants, got full"


def test_variants_must_include_full(tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"half": {}})
    assert re.match(r"params\.yaml: variants must be a mapping with the key full, .* got only half$", message)


@pytest.mark.parametrize("name", ["a/b", "a b", "", "a-b"])
def test_variant_name_that_cannot_be_part_of_a_file_name(name: str, tmp_path: Path) -> None:
    assert re.match(
        rf"params\.yaml: variants\.{name} must match pattern ", message_of(tmp_path, variants={"full": {}, name: {}})
    )


def test_seeds_are_distinct(tmp_path: Path) -> None:
    assert message_of(tmp_path, seeds=[0, 0]) == "params.yaml: seeds must be distinct, got [0, 0]"
    assert re.match(r"params\.yaml: seeds must have at least 1 item", message_of(tmp_path, seeds=[]))


def test_extra_seeds_name_a_variant_and_are_not_declared_twice(tmp_path: Path) -> None:
    extended = {"extended": {"gate_text": {"model": {"hmf": {"gate": "text"}}}}, "extended_seeds": [1]}
    for extra, error in (
        ({"half": [7]}, "the variant of extra_seeds must be one of full, gate_text, got half"),
        ({"full": [7, 7]}, "extra_seeds.full must be distinct, got [7, 7]"),
        ({"full": [7, 0]}, "extra_seeds.full must be seeds other than the declared [0, 1, 2], got [7, 0]"),
        ({"gate_text": [1]}, "extra_seeds.gate_text must be seeds other than the declared [1], got [1]"),
    ):
        assert message_of(tmp_path, **extended, extra_seeds=extra) == f"params.yaml: {error}"
    assert re.match(
        r"params\.yaml: extra_seeds\.full\.0 must be greater than", message_of(tmp_path, extra_seeds={"full": [-1]})
    )
    assert re.match(
        r"params\.yaml: extra_seeds\.full must have at least 1", message_of(tmp_path, extra_seeds={"full": []})
    )


@pytest.mark.parametrize("key", ["scale", "variant"])
def test_a_scale_cannot_rename_a_run(key: str, tmp_path: Path) -> None:
    assert re.match(
        rf"params\.yaml: unknown key scales\.smoke\.{key};", message_of(tmp_path, **{f"scales__smoke__{key}": "x"})
    )


def test_path_of_a_key_that_is_not_an_identifier(tmp_path: Path) -> None:
    message = message_of(tmp_path, scale="base", data__name="refcoco+", scales__base__data__tokens={"refcoco+": 1})
    assert re.match(r"params\.yaml: data\.tokens\.refcoco\+ must be greater than or equal to 3, got 1", message)


@pytest.mark.parametrize(("kernels", "reason"), [([], "at least one number, got []"), ([3, 17], "at most 15, which ")])
def test_kernels_must_meet_the_grid(kernels: list[int], reason: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, model__msa__kernels=kernels)
    assert message.startswith(f"params.yaml: model.msa.kernels must be {reason}")
    assert settings(tmp_path, model__msa__kernels=[15]).model.msa.kernels == (15,)


def test_a_key_that_is_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_params(tmp_path)
    text = path.read_text().replace("      epochs: 2\n", "      epochs: 2\n      epochs: 3\n", 1)
    path.write_text(text)
    line = text.splitlines().index("      epochs: 3") + 1
    with pytest.raises(UserError, match=rf"^\S+params\.yaml: line {line}: key \S+epochs is given twice; remove one"):
        read_params(path)


def test_the_line_is_that_of_the_section_that_gives_the_key(tmp_path: Path) -> None:
    """A variant's, before the scale's, before the shared one; of a merged mapping (`<<`) that of the original."""
    for text, line in (
        (ROOT.joinpath("params.yaml").read_text(), None),
        (
            ROOT.joinpath("params.yaml")
            .read_text()
            .replace("window_1: {model: {hmf: {window: 1}}}", "window_1: {model: {hmf: {window: 99}}}", 1),
            "window: 99",
        ),
        (
            ROOT.joinpath("params.yaml")
            .read_text()
            .replace("      checkpoint_seconds: 20", "      checkpoint_seconds: no", 1),
            "checkpoint_seconds: no",
        ),
    ):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        if line is None:
            read_params(path)
            continue
        number = next(k for k, row in enumerate(text.splitlines(), 1) if line in row)
        with pytest.raises(UserError, match=rf"\(line {number}, scale tiny, variant "):
            read_params(path)


def test_a_file_in_another_encoding_and_one_with_conflict_markers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("scale: tiny # für\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml: not UTF-8 text \(byte 15\); save it as UTF-8"):
        read_params(path)
    path.write_text("a: 1\n<<<<<<< HEAD\nscale: tiny\n=======\nscale: base\n>>>>>>> other\n")
    with pytest.raises(UserError, match="conflict markers; resolve the conflict"):
        read_params(path)


def test_width_must_suit_two_dimensional_positions(tmp_path: Path) -> None:
    message = message_of(
        tmp_path,
        scales__smoke__model__hmf__width=6,
        scales__smoke__model__hmf__heads=2,
        scales__smoke__model__decoder__heads=2,
    )
    assert re.match(r"params\.yaml: model\.hmf\.width must be a multiple of 4 \(.*\), got 6", message)


def test_default_alignment_window_must_fit_the_grid(tmp_path: Path) -> None:
    message = message_of(tmp_path, model__neck="none", scales__smoke__data__image_size=8)
    assert re.match(r"params\.yaml: loss\.align_window must be at most the grid size \(2\), got 4", message)


def test_the_window_is_ignored_without_a_neck(tmp_path: Path) -> None:
    assert settings(tmp_path, model__neck="none", model__hmf__window=9).scan_window is None


def test_reading_checks_every_variant(tmp_path: Path) -> None:
    message = message_of(tmp_path, variants={"full": {}, "wide": {"model": {"hmf": {"window": 9}}}})
    assert message.endswith("(scale smoke, variant wide)")


def test_unknown_scale_and_variant(tmp_path: Path) -> None:
    message = message_of(tmp_path, scale="huge")
    assert message == "params.yaml: scale must be one of smoke, tiny, small, base, large, got huge"
    with pytest.raises(UserError, match=r"^params\.yaml: no variant 'half'; the variants are full$"):
        read_params(write_params(tmp_path)).settings("half")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: no such file; run from the project's root") as error:
        read_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
    path = tmp_path / "params.yaml"
    for content, reason in (
        ("scale: tiny\ndata: [1, 2\nseeds: 3\n", r"line \d: not YAML"),
        ("scale: tiny\n\tdata: 3\n", r"line 2: not YAML"),
        ("", "must be a mapping of settings"),
        ("- 1\n", "must be a mapping of settings"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=reason) as error:
            read_params(path)
        assert "\n" not in str(error.value)


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 2e-3, which has no point, as text."""
    path = write_params(tmp_path)
    path.write_text(re.sub(r"learning_rate: 0\.001\b", "learning_rate: 2e-3", path.read_text()))
    assert read_params(path).settings().train.learning_rate == 2e-3


# --- the explorer -----------------------------------------------------------------------------------------------------


def test_the_explorer_changes_no_run(tmp_path: Path) -> None:
    without, other = (read_params(write_params(tmp_path, explorer=names)) for names in ([], ["full"]))
    assert without.settings() == other.settings() and not without.explorer_runs()
    assert list(map(str, other.explorer_runs())) == ["full-0"]
    assert "wimfris.settings.params" not in run_code(other.settings().model_dump(mode="json")["model"])


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (["full", "another"], "a system of explorer must be one of full, got another"),
        (["full", "full"], "explorer must be distinct, got ['full', 'full']"),
        (["full"] * 21, "explorer must be a list of at most 20 systems, got 21"),
    ],
)
def test_systems_of_the_explorer_are_known_and_few(systems: list[str], message: str, tmp_path: Path) -> None:
    assert message_of(tmp_path, explorer=systems) == f"params.yaml: {message}"


def test_another_protocol_keeps_the_rest_of_the_shared_section() -> None:
    params = read_params(ROOT / "params.yaml").model_copy(
        update={"evaluate": {"protocol": "cris", "control_images": 7}}
    )
    assert params.with_protocol("lavt").evaluate == {"protocol": "lavt", "control_images": 7}
