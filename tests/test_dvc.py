"""The graph in dvc.yaml tells the truth: what a stage declares is what its command uses, no more and no less."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from wimfris.settings.params import Params, Settings, read_params
from wimfris.training.trainer import CODE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wimfris"
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = GRAPH["stages"]
BASELINES = PACKAGE / "model" / "baselines"  # imported for a rival's parts alone, which no variant of the core has
WRITTEN_BY_HAND = ("reports/claims.yaml", "reports/published.csv", "reports/results.ipynb")
RECORD_STUDIES = [path for path in sorted((ROOT / "studies").glob("*.py")) if "write_report" not in path.read_text()]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())

# What DVC's templating puts in, for one of the runs.
VALUES = {
    "${scale}": PARAMS["scale"],
    "${data.name}": PARAMS["data"]["name"],
    "${search.space}": PARAMS["search"]["space"],
    "${item.variant}": "full",
    "${item.seed}": "0",
}


def filled(text: str) -> str:
    for name, value in VALUES.items():
        text = text.replace(name, value)
    assert "${" not in text, f"{text}: a template that this test does not know"
    return text


# --- which modules a command uses -------------------------------------------------------------------------------------


def module_path(name: str) -> Path | None:
    """The file of a module of the package; None where the name is none (a function, a class)."""
    place = ROOT / Path(*name.split("."))
    if place.is_dir():
        return place / "__init__.py"
    return place.with_suffix(".py") if place.with_suffix(".py").is_file() else None


def imported(tree: ast.AST) -> set[Path]:
    """The package's modules that the tree imports, wherever in it the import stands."""
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "wimfris":
                # importing a.b.c runs a/__init__ and a/b/__init__ too
                paths = [module_path(".".join(parts[: k + 1])) for k in range(len(parts))]
                found |= {path for path in paths if path}
    return found


@cache
def closure(module: Path) -> frozenset[Path]:
    """The module and everything that it imports, directly or not."""
    found: set[Path] = set()
    todo = [module]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(ast.parse(path.read_text()))
    return frozenset(found)


def is_empty(path: Path) -> bool:
    """Holds at most a docstring."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


@cache
def verbs() -> dict[str, ast.FunctionDef]:
    """`data make` -> the function in cli.py that does it."""
    found = {}
    for node in ast.parse((PACKAGE / "cli.py").read_text()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".command"):
                group = ast.unparse(decorator.func).removesuffix(".command").removesuffix("app").strip("_")
                name = ast.literal_eval(decorator.args[0]) if decorator.args else node.name
                found[f"{group} {name}".strip()] = node
    return found


def used(command: str) -> set[Path]:
    """The modules that `wimfris <verb> ...` runs through: those of its function and of what cli.py always imports.

    cli.py itself is left out: it holds every verb, and an edit of one would rerun the stages of all.
    """
    words = command.split()
    assert words[0] == "wimfris"
    words = [word for word in words[1:] if not word.startswith("-")]
    name = next(verb for verb in (" ".join(words[:2]), words[0]) if verb in verbs())
    cli = ast.parse((PACKAGE / "cli.py").read_text())
    always = ast.Module([node for node in cli.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    modules: set[Path] = set()
    # two verbs load the files of studies/: one runs them, the other reads what they declare
    loaded = {"studies": RECORD_STUDIES, "page": RECORD_STUDIES}.get(name, ())
    for path in imported(always) | imported(verbs()[name]) | set(loaded if name == "studies" else ()):
        modules |= closure(path)
    modules |= set(loaded)
    return {path for path in modules if not is_empty(path) and not path.is_relative_to(BASELINES)}


def declared(stage: dict[str, Any]) -> set[Path]:
    """The modules that a stage names as dependencies, folders with all that lie in them."""
    found: set[Path] = set()
    for dependency in stage.get("deps", ()):
        path = ROOT / filled(dependency)
        if dependency.startswith(("wimfris", "studies/")):
            assert path.exists(), f"{dependency}: no such file"
            found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return {path for path in found if not is_empty(path)}


def named(paths: set[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def test_closure_follows_imports_within_functions_and_packages() -> None:
    assert named(set(closure(PACKAGE / "metrics.py"))) == ["wimfris/metrics.py"]
    train = set(closure(PACKAGE / "train.py"))
    assert {PACKAGE / "model" / "scan" / "cuda.py", PACKAGE / "model" / "scan" / "__init__.py"} <= train
    assert PACKAGE / "results" / "tables.py" not in train
    assert set(verbs()) >= {"data make", "data prepare", "encoders record", "train", "tables", "figures", "report"}


def test_core_has_no_rival() -> None:
    params = read_params(ROOT / "params.yaml")
    models = [params.settings(variant).model for variant in params.variants]
    assert all(model.adapters == "wimfris" and model.neck in ("hmf", "none") for model in models)


@pytest.mark.parametrize("name", STAGES)
def test_stage_declares_the_modules_it_uses(name: str) -> None:
    stage = STAGES[name]
    uses, says = used(stage["cmd"]), declared(stage)
    assert named(uses - says) == [], "not declared: an edit of these would not rerun the stage"
    assert named(says - uses) == [], "declared and not used: an edit of these would rerun the stage for nothing"


def test_fingerprint_of_a_checkpoint_covers_the_code_that_decides_the_result() -> None:
    """Of what training uses, only what cannot change a result is left out of the code that a checkpoint belongs to."""
    covered: set[Path] = set()
    for place in CODE:
        path = PACKAGE / place
        assert path.exists(), place
        covered |= set(path.rglob("*.py")) if path.is_dir() else {path}
    left_out = used(STAGES["train"]["cmd"]) - covered
    assert named(left_out) == [
        "wimfris/errors.py",
        "wimfris/files.py",
        "wimfris/runs/manifest.py",
        "wimfris/runs/records.py",
    ]


def test_extended_runs_are_trained_as_the_core_s_are() -> None:
    """The stage of studies/dvc.yaml is the core's, over `extended` and with the rivals' code and sizes, outs apart."""
    core, beyond = STAGES["train"], yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text())["stages"]["train"]
    assert beyond["cmd"] == core["cmd"] and beyond["wdir"] == ".."
    assert beyond["matrix"] == {"variant": "${extended}", "seed": "${extended_seeds}"}
    renamed = [key.replace("variants.${", "extended.${") for key in core["params"]]
    assert sorted(beyond["params"]) == sorted([*renamed, "rivals.${scale}"])
    assert declared(beyond) - declared(core) == {path for path in BASELINES.rglob("*.py") if not is_empty(path)}
    assert declared(core) <= declared(beyond)
    for section in ("outs", "metrics"):
        told = yaml.safe_dump(core[section]).replace("-${scale}/", "-${scale}/extended/")
        assert beyond[section] == yaml.safe_load(told)


def test_search_declares_the_modules_it_uses() -> None:
    """A trial may have any model's settings, so that its code is all models' code, the rivals' with it."""
    stage = yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text())["stages"]["search"]
    assert stage["wdir"] == ".." and stage["cmd"] == "python studies/search.py"
    uses = {path for path in closure(ROOT / "studies" / "search.py") if not is_empty(path)}
    says = declared(stage)
    assert named(uses - says) == [] and all(path.is_relative_to(BASELINES) for path in says - uses)
    keys = [filled(key) for key in stage["params"]]
    assert all(covers(keys, filled(key)) for key in STAGES["train"]["params"] if not key.startswith("variants"))


def test_no_stage_of_the_core_depends_on_a_search() -> None:
    stage = yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text())["stages"]["search"]
    for out in stage["outs"]:
        [path] = [Path(filled(name)) for name in out]
        for name, other in STAGES.items():
            for dependency in map(Path, map(filled, other.get("deps", []))):
                assert not path.is_relative_to(dependency), f"{name} depends on {dependency}, and so on {path}"


# --- which parameters -------------------------------------------------------------------------------------------------


def look_up(key: str) -> Any:
    value: Any = PARAMS
    for part in filled(key).split("."):
        assert isinstance(value, dict) and part in value, f"{key}: params.yaml has no such key"
        value = value[part]
    return value


@pytest.mark.parametrize("name", STAGES)
def test_declared_parameters_exist(name: str) -> None:
    keys = STAGES[name].get("params", [])
    assert len(keys) == len(set(keys))
    for key in keys:
        look_up(key)


def covers(keys: list[str], key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)


@pytest.mark.parametrize("name", ["train", "figures"])
def test_stages_that_use_a_model_declare_all_that_makes_it(name: str) -> None:
    keys = [filled(key) for key in STAGES[name]["params"]]
    scale = VALUES["${scale}"]
    for key in ("data", "model", "evaluate", "variants.full", f"scales.{scale}"):
        assert covers(keys, key), key


def test_train_declares_every_section_of_the_settings() -> None:
    """A section that is added to the settings has to be declared, or be of a scale."""
    keys = [filled(key) for key in STAGES["train"]["params"]]
    for section in set(Settings.model_fields) - {"scale", "variant", "group"}:
        assert section in keys or section not in Params.model_fields, section


def test_no_stage_depends_on_other_scales_or_all_of_them() -> None:
    for name, stage in STAGES.items():
        keys = stage.get("params", [])
        assert "scales" not in keys, name
        scales = {filled(key).split(".")[1] for key in keys if key.startswith("scales.")}
        # the built-in encoders are of the scale that `pretrain` names, whichever is in use
        assert scales <= {PARAMS["pretrain"]["scale"] if name == "pretrain" else VALUES["${scale}"]}, name


def test_runs_depend_on_the_built_in_encoders_through_what_identifies_them() -> None:
    """`encoders` hashes them; an edit of their card then trains nothing anew."""
    assert "wimfris/builtin/encoders" in STAGES["encoders"]["deps"]
    assert "runs/${data.name}-${scale}/encoders.json" in STAGES["train"]["deps"]
    for name in ("train", "figures"):
        assert not [dependency for dependency in STAGES[name]["deps"] if "builtin" in dependency]


# --- outs -------------------------------------------------------------------------------------------------------------


def outs(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in [*STAGES[name].get("outs", []), *STAGES[name].get("metrics", [])]:
        found |= {entry: {}} if isinstance(entry, str) else entry
    return found


def test_what_a_stage_reads_another_makes() -> None:
    """Or it is in the repository, or a folder that others fill."""
    made = {filled(out) for name in STAGES for out in outs(name)}
    for name, stage in STAGES.items():
        for dependency in stage.get("deps", []):
            if dependency.startswith(("wimfris", "studies/")):
                continue
            path = filled(dependency)
            if path in WRITTEN_BY_HAND:
                assert (ROOT / path).is_file()
                continue
            assert path in made or any(out.startswith(f"{path}/") for out in made), f"{name}: {dependency}"


def test_manifest_is_committed_and_no_dependency() -> None:
    manifests = [out for out in outs("train") if "/manifests/" in out]
    assert len(manifests) == 1
    assert outs("train")[manifests[0]] == {"cache": False}
    assert not [d for stage in STAGES.values() for d in stage.get("deps", []) if "manifests" in d]


def test_large_files_are_cached_and_small_ones_committed() -> None:
    for name in STAGES:
        for out, options in outs(name).items():
            large = any(part in out for part in ("/weights/", "/records/", "/refer", "/index", "/logs/", "/live/"))
            large = large and out.startswith("runs/")
            assert options == ({} if large else {"cache": False}), out


def test_train_outs_are_the_run_s_files() -> None:
    from wimfris.training.trainer import RunFiles

    settings = read_params(ROOT / "params.yaml").settings()
    files = {str(path) for path in vars(RunFiles.of(settings.folder, "full-0")).values()}
    assert {filled(out) for out in outs("train")} == files


def test_pretraining_is_frozen() -> None:
    assert STAGES["pretrain"]["frozen"] is True
    assert [name for name, stage in STAGES.items() if stage.get("frozen")] == ["pretrain"]
