"""From a trial to a variant of its scale: `wimfris promote TRIAL --as NAME` adds its settings to params.yaml."""

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
    """Add the settings of a finished trial to `scales.<scale>.variants` under this name; return the new parameters.

    They are of this scale alone, because a learning rate that suits one scale says nothing of another. The variant is
    trained as long as any other. Raises UserError, and leaves the file unchanged, if there is no such trial, if it did
    not finish, or if a variant has this name or these settings.
    """
    params = read_params()
    source = _find(trial, FOLDER / params.settings().folder.name)
    if source["state"] != "complete":
        raise UserError(f"{trial}: {source['state']}; only a finished trial can be promoted")
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"--as {name}: use only letters, digits and _")
    if name in params.all_variants:
        raise UserError(f"--as {name}: params.yaml has a variant of this name; use another one")
    path = Path("params.yaml")
    before = path.read_text(encoding="utf-8")
    write_text(path, _with_variant(before, params.scale, name, source["overrides"], trial))
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


def _with_variant(text: str, scale: str, name: str, overrides: Mapping[str, Any], trial: str) -> str:
    """Return the file with one more line at the end of `scales.<scale>.variants`; every other byte stays."""
    lines = (text if text.endswith("\n") else f"{text}\n").splitlines(keepends=True)
    key = f"scales.{scale}.variants"
    own = _block(lines, range(len(lines)), 0, "scales")
    own = own and _block(lines, own, 2, scale)
    if not own:
        raise UserError(f"params.yaml: no section scales.{scale} of indented lines; add the variant to {key} by hand")
    variants = _block(lines, own, 4, "variants")
    if not variants and any(lines[n].startswith("    variants:") for n in own):
        raise UserError(f"params.yaml: {key} has no variant on a line of its own; add the variant by hand")
    content = yaml.safe_dump(overrides, default_flow_style=True, sort_keys=False, width=10**6).strip()
    added = f"      {name}: {content}  # promoted from trial {trial}\n"
    end = (variants or own).stop
    return "".join([*lines[:end], "" if variants else "    variants:\n", added, *lines[end:]])


def _block(lines: Sequence[str], within: range, indent: int, key: str) -> range | None:
    """Return the lines below a key, from the first to the last that is indented further; None without them."""
    heads = (n for n in within if re.match(rf" {{{indent}}}{re.escape(key)}:\s*(&\w+\s*)?(#.*)?$", lines[n]))
    start = end = next(heads, within.stop) + 1
    for n in range(start, within.stop):
        depth = len(lines[n]) - len(lines[n].lstrip(" "))
        if not lines[n].strip() or lines[n].lstrip().startswith("#"):
            continue
        if depth <= indent:
            break
        end = n + 1
    return range(start, end) if end > start else None
