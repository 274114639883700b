"""The fingerprint of a run. A run is current if its fingerprint is that of the present settings, data and code.

The fingerprint is a hash of all that decides the run's result: its resolved settings, its seed, its data, its frozen
encoders, and the source code that it reaches. Static analysis of imports lists the code, without importing anything:

- A run reaches every module in the import closure of `wimfris.training.run`. Imports inside functions count.
- A dispatch table (a module-level dict of dotted module names, such as `FAMILIES`) is followed only at the entry that
  the settings select. So an edit of LoRA changes the fingerprints of LoRA's runs alone.
- Docstrings, comments, formatting and the texts of `UserError` do not count, and neither do the field declarations and
  validators of the settings: their resolved values are in the fingerprint.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from wimfris.files import file_hash

PACKAGE = Path(__file__).parents[1]
ROOT = "wimfris.training.run"
SCHEMA = ("wimfris.settings.schema", "wimfris.settings.sections")
CHOICES = {"FAMILIES": "adapters", "NECKS": "neck", "MIXINGS": "hmf.mixing", "BACKENDS": "scan"}
"""Name of a dispatch table -> the dotted key of the model's settings that chooses its entry."""
REPORTING = ("wimfris.errors", "wimfris.files", "wimfris.runs.manifest", "wimfris.settings.messages")
"""Modules that report and store. They cannot change a result, so their code does not count."""


def digest(content: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


DATA = ("index", "images", "objects")
"""The tables of a data set that decide a run's records."""


class _Settings(Protocol):
    """What the fingerprint needs of `wimfris.settings.schema.Settings`."""

    @property
    def folder(self) -> Path: ...

    @property
    def encoders_record(self) -> Path: ...

    def model_dump(self, *, mode: str, exclude_defaults: bool) -> dict[str, Any]: ...


def variant_content(settings: _Settings) -> dict[str, Any]:
    """Return what decides the result of a variant, whatever its seed and data: its settings and its code.

    A setting that a later version adds does not count at its default.
    """
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return {"settings": values, "code": run_code(values["model"])}


def decisive(settings: _Settings, seed: int) -> dict[str, Any]:
    """Return all that decides the result of a run; its digest is the run's fingerprint.

    Raises FileNotFoundError where the index or the record of the encoders is missing.
    """
    return variant_content(settings) | {
        "seed": seed,
        "data": {name: file_hash(settings.folder / "index" / f"{name}.parquet") for name in DATA},
        "encoders": json.loads(settings.encoders_record.read_text(encoding="utf-8")),
    }


def run_code(model: dict[str, Any], package: Path = PACKAGE) -> dict[str, str]:
    """Return the modules that a run with these model settings reaches: module name -> hash of its code."""
    reached: dict[str, str] = {}
    pending = {ROOT}
    while pending:
        name = pending.pop()
        if name in reached:
            continue
        module = _read(name, package)
        reached[name] = module.hash
        pending |= module.imports
        for table, entries in module.tables.items():
            choice = _value(model, CHOICES.get(table, ""))
            # "auto", or a table that no setting chooses from: any entry may run
            pending |= {entries[choice]} if choice in entries else set(entries.values()) if _is_open(choice) else set()
    return {name: reached[name] for name in sorted(reached) if name not in REPORTING}


def module_code(*names: str, package: Path = PACKAGE) -> list[str]:
    """Return the hashes of the code of these modules alone, without what they import."""
    return [_read(name, package).hash for name in names]


def _value(settings: Any, key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _is_open(choice: str | None) -> bool:
    return choice is None or choice == "auto"


class _Module:
    """What the fingerprint reads from one module's source."""

    def __init__(self, name: str, package: Path) -> None:
        tree = ast.parse(module_path(name, package).read_text(encoding="utf-8"))
        self.tables = dict(_tables(tree))
        self.imports = set(_imports(tree, package))
        text = "\n".join(_serialised(_without_words(tree, fields=name not in SCHEMA)))
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _read(name: str, package: Path) -> _Module:
    return _Module(name, package)


def module_path(name: str, package: Path = PACKAGE) -> Path:
    """Return the file of a module of this package."""
    path = package.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(tree: ast.AST, package: Path) -> Iterator[str]:
    """Yield the modules of this package that the tree imports, with the packages around them."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == package.name:
                around = [".".join(parts[: k + 1]) for k in range(len(parts))]
                yield from (module for module in around if module_path(module, package).is_file())


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under `if TYPE_CHECKING`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _executed(child)


def _tables(tree: ast.Module) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the dispatch tables of a module: name, and key -> module name."""
    for node in tree.body:
        if _is_table(node):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target  # type: ignore[attr-defined]
            yield ast.unparse(target), ast.literal_eval(node.value)  # type: ignore[attr-defined]


def _is_table(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
        return False
    values = [value.value if isinstance(value, ast.Constant) else None for value in node.value.values]
    return bool(values) and all(isinstance(value, str) and value.startswith("wimfris.") for value in values)


def _without_words(tree: ast.Module, *, fields: bool) -> ast.Module:
    """Drop, in place, what cannot change a result: docstrings, texts of UserError, dispatch tables; without `fields`
    also the field declarations and validators of classes.
    """
    tree.body = [node for node in tree.body if not _is_table(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # a string that stands alone is a docstring, or documents the constant before it
            node.body = [child for child in node.body if not _is_string(child)]
        if isinstance(node, ast.ClassDef) and not fields:
            node.body = [child for child in node.body if not (isinstance(child, ast.AnnAssign) or _validates(child))]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
            node.args, node.keywords = [], []
    return tree


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _validates(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(d) for d in node.decorator_list)


def _serialised(node: ast.AST) -> Iterator[str]:
    """Yield a tree as lines that are the same in every version of Python: empty fields are left out."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        children: Iterable[Any] = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                if not isinstance(child, ast.expr_context):
                    yield f".{name}"
                    yield from _serialised(child)
            elif child is not None and name not in ("kind", "type_comment"):
                yield f".{name}={child!r}"
    yield "/"
