"""From a trial to a variant: `wimfris promote TRIAL --as NAME` adds its settings to params.yaml's `extended`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.search.report import FOLDER, Evidence, Trial, finished, load_evidence
from wimfris.settings.function import plain
from wimfris.settings.params import Params, read_params


def promoted(params: Params, searches: Sequence[Evidence]) -> dict[str, str]:
    """Map each variant with the settings of a finished trial to that trial, the first of equals. Omit `full`."""
    trials: dict[str, str] = {}
    for trial in (trial for search in searches for trial in finished(search)):
        with suppress(UserError):  # settings that an earlier params.yaml allowed
            trials.setdefault(plain(params.resolve("", trial["overrides"], group="")), trial["name"])
    settings = {name: plain(params.settings(name)) for name in (*params.variants, *params.extended) if name != "full"}
    return {name: trials[content] for name, content in settings.items() if content in trials}


def promote(trial: str, name: str) -> Params:
    """Add the settings of a finished trial to `extended` under this name; return the new parameters.

    The variant is trained as long as any other. Raises UserError, and leaves the file unchanged, if there is no such
    trial, if it did not finish, or if a variant has this name or these settings.
    """
    params = read_params()
    source = _find(trial, FOLDER / params.settings().folder.name)
    if source["state"] != "complete":
        raise UserError(f"{trial}: {source['state']}; only a finished trial can be promoted")
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"--as {name}: use only letters, digits and _")
    if name in params.variants | params.beyond:
        raise UserError(f"--as {name}: params.yaml has a variant of this name; use another one")
    path = Path("params.yaml")
    before = path.read_text(encoding="utf-8")
    write_text(path, _with_variant(before, name, source["overrides"], trial))
    try:
        return read_params()
    except UserError:
        write_text(path, before)
        raise


def _find(name: str, folder: Path) -> Trial:
    trials = {trial["name"]: trial for path in sorted(folder.glob("*.json")) for trial in load_evidence(path)["trials"]}
    if not trials:
        raise UserError(f"{folder}: no search; run `python studies/search.py` first")
    if name not in trials:
        raise UserError(f"{name}: no such trial in {folder}, for example {next(iter(trials))}; see reports/tables")
    return trials[name]


def _with_variant(text: str, name: str, overrides: Mapping[str, Any], trial: str) -> str:
    """Return the file with one more line at the end of `extended`; every other byte stays."""
    block = re.search(r"(?m)^extended:[ \t]*(?:#.*)?\n(?:(?:[ \t]+.*|[ \t]*)\n)*?(?=^\S|\Z)", text)
    if block is None:
        raise UserError("params.yaml: no section `extended` with one variant per line; add the variant by hand")
    line = yaml.safe_dump(overrides, default_flow_style=True, sort_keys=False, width=10**6).strip()
    end = block.start() + len(block.group().rstrip())
    return f"{text[:end]}\n  {name}: {line}  # promoted from trial {trial}{text[end:]}"
