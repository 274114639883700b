"""Copies of the shipped params.yaml with other values, by libyaml: the file is read and written hundreds of times."""

from pathlib import Path
from typing import Any

import yaml

from wimfris.settings.params import merge

ROOT = Path(__file__).parents[2]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), LOADER)


def write_yaml(content: Any, path: Path) -> None:
    path.write_text(yaml.dump(content, Dumper=DUMPER, sort_keys=False), encoding="utf-8")


SHIPPED = read_yaml(ROOT / "params.yaml") | {"extra_seeds": {}}  # which grow with the evidence


def edit_yaml(path: Path, **values: Any) -> None:
    """Set keys of a file; `__` stands for the dot: edit_yaml(path, scales__smoke__train__epochs=3)."""
    content = read_yaml(path)
    for key, value in values.items():
        *parents, last = key.split("__")
        section = content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    write_yaml(content, path)


def write_params(folder: Path, changes: dict[str, Any] | None = None, *, only_full: bool = True, **values: Any) -> Path:
    """Write the shipped file at scale smoke with these changes merged into it, and return its path.

    values: as in `edit_yaml`. only_full: leave out every variant but `full`, which could have settings equal to those
    of `full` after a change.
    """
    content = SHIPPED | {"scale": "smoke"}
    if only_full:
        content |= {"variants": {"full": {}}, "extended": {}, "controls": {}, "explorer": []}
    path = folder / "params.yaml"
    write_yaml(merge(content, changes or {}), path)
    edit_yaml(path, **values)
    return path
