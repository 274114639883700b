"""From a trial to a variant: `wimfris promote TRIAL --as NAME` writes its settings to params.yaml's `extended`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.search.report import FOLDER, Evidence, load_evidence
from wimfris.settings.params import Params, plain, read_params


def promoted(params: Params, searches: Sequence[Evidence]) -> dict[str, str]:
    """Variant -> the finished trial whose settings it has, however it came to be declared: the first of equals. `full`
    is what trials are measured by, and none of them.
    """
    trials: dict[str, str] = {}
    for trial in (trial for search in searches for trial in search["trials"] if trial["state"] == "complete"):
        with suppress(UserError):  # of another space, or of a params.yaml of before
            trials.setdefault(plain(params.resolve("", trial["overrides"], group="")), trial["name"])
    found = {name: trials.get(plain(params.settings(name))) for name in (*params.variants, *params.extended)}
    return {variant: trial for variant, trial in found.items() if trial is not None and variant != "full"}


def promote(trial: str, name: str, path: Path = Path("params.yaml"), reports: Path = Path("reports")) -> Params:
    """Add the settings of a finished trial to `extended` under this name; the parameters as they are then.

    The shortened training is no part of them: the variant is trained as any other. Raises UserError, and leaves the
    file as it was, where there is no such trial, it did not finish, the name is taken, or the settings are a variant's.
    """
    params = read_params(path)
    found = _find(trial, reports / FOLDER / params.settings().folder.name)
    if found["state"] != "complete":
        raise UserError(f"{trial}: {found['state']}; only a trial that finished can be promoted")
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"--as {name}: letters, digits and _ alone")
    if name in params.variants or name in params.extended:
        raise UserError(f"--as {name}: params.yaml has a variant of this name; take another")
    before = path.read_text(encoding="utf-8")
    write_text(path, _with_variant(before, name, found["overrides"], trial))
    try:
        return read_params(path)
    except UserError:
        write_text(path, before)
        raise


def _find(trial: str, folder: Path) -> Evidence:
    names = []
    for path in sorted(folder.glob("*.json")):
        for one in load_evidence(path)["trials"]:
            if one["name"] == trial:
                return dict(one)
            names.append(one["name"])
    if not names:
        raise UserError(f"{folder}: no search; run `python studies/search.py` first")
    raise UserError(f"{trial}: no such trial in {folder}; they are named as {names[0]}, see reports/tables")


def _with_variant(text: str, name: str, overrides: Mapping[str, Any], trial: str) -> str:
    """The file with one line more, after the last of `extended`; every other byte stays."""
    block = re.search(r"(?m)^extended:[ \t]*(?:#.*)?\n(?:(?:[ \t]+.*|[ \t]*)\n)*?(?=^\S|\Z)", text)
    if block is None:
        raise UserError("params.yaml: no section `extended` of a variant a line; add the variant by hand")
    told = yaml.safe_dump(overrides, default_flow_style=True, sort_keys=False, width=10**6).strip()
    end = block.start() + len(block.group().rstrip())
    return f"{text[:end]}\n  {name}: {told}  # promoted from trial {trial}{text[end:]}"
