"""Remove files of DVC that a kill has truncated. DVC writes them in place, so a kill can stop it halfway.

Nothing is lost with them: every finished run is in the store, from which `dvc repro` takes it in a second.
"""

import json
import sys
from pathlib import Path

import yaml


def repair(root: Path) -> None:
    """Remove a truncated lock file or list of running processes; DVC makes both again."""
    for path in (root / "dvc.lock", root / "studies" / "dvc.lock"):
        if _is_truncated(path):
            _remove(path)
    running = root / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(running.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        _remove(running)


def _is_truncated(path: Path) -> bool:
    """Return whether the file ends in the middle of a line, or is no YAML map. Git's conflict markers are left to the
    person who made them.
    """
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    if "<<<<<<<" in text:
        return False
    try:
        return not (
            text.endswith("\n") and isinstance(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), dict)
        )
    except yaml.YAMLError:
        return True


def _remove(path: Path) -> None:
    print(f"wimfris: {path}: truncated by a kill; removed, `dvc repro` writes it again", file=sys.stderr, flush=True)
    path.unlink()
