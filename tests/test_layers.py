"""The layers of the package: who may import whom, by folder, and no circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wimfris"
GROUND = {"errors", "files", "metrics"}
MODEL = {"model", "rivals", "kernels", "encoders", "data"}
LAYERS = {
    "settings": set(),
    "runs": set(),
    "kernels": set(),
    "data": {"settings"},
    "encoders": {"data", "settings"},
    "model": {"encoders", "kernels"},
    "rivals": {"model", "encoders", "settings"},
    "training": MODEL | {"runs", "settings"},
    "inference": MODEL | {"training", "runs", "settings"},
    "matrix": {"runs", "settings"},
    "results": {"runs", "settings"},
    "measure": MODEL | {"training", "inference", "matrix", "runs", "results", "settings"},
    "search": {"measure", "matrix", "training", "runs", "results", "settings"},
    "checks": MODEL | {"training", "inference", "runs", "results", "settings"},
}
"""Folder -> the folders that its modules may import, beside its own and the ground. `cli` may import everything."""


def modules() -> dict[str, Path]:
    """Module name -> file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever the import stands."""
    known, names = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (below & known.keys()) or {node.module}
    return {name for name in names if name in known and name != "wimfris"}


def folder(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", sorted(set(modules()) - {"wimfris", "wimfris.__main__"}))
def test_a_module_imports_only_what_its_folder_may(name: str) -> None:
    own = folder(name)
    if own == "cli":
        return
    allowed = {own} | GROUND | LAYERS.get(own, set())
    assert {folder(other) for other in imports(modules()[name])} <= allowed


def test_the_numbers_do_not_depend_on_their_report() -> None:
    """In results/, only `analyses` and `report` import themselves: what they show is computed without them."""
    for name, path in modules().items():
        for part in ("wimfris.results.analyses", "wimfris.results.report"):
            if name.startswith("wimfris.results.") and not name.startswith(part):
                assert not any(other.startswith(part) for other in imports(path)), name


@pytest.mark.slow
def test_the_layers_and_the_modules_have_no_circle() -> None:
    list(TopologicalSorter({name: below - {name} for name, below in LAYERS.items()}).static_order())
    list(TopologicalSorter({name: imports(path) - {name} for name, path in modules().items()}).static_order())


def test_the_house_has_at_most_16_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {*LAYERS, "cli", "builtin"} and len(rooms) <= 16


def test_results_and_studies_never_load_torch() -> None:
    """By their imports: results are functions of committed files."""
    reached, todo = set(), [name for name in modules() if folder_or_none(name) in ("results", "runs", "matrix")]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += imports(modules()[name])
    heavy = [name for name in reached if top_level_torch(modules()[name])]
    assert heavy == []
    for path in (ROOT / "studies").glob("*.py"):
        assert not top_level_torch(path), path


def folder_or_none(module: str) -> str | None:
    return module.split(".")[1] if "." in module else None


def top_level_torch(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    return "torch" in {name.split(".")[0] for name in names}
