"""The tables of a search: its best settings beside `full`, its cost, the importances, the front, and all trials.

They are made from the search's evidence, reports/search/<data set>-<scale>/<label>.json, and from the records of the
runs that confirm a trial. The search selects a trial by its mIoU on val, so this number is optimistic. The trial's
mIoU on the test splits is not, nor are whole trainings from fresh seeds.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.results.comparison import Row, Study
from wimfris.results.comparisons import Comparisons
from wimfris.results.formats import DASH, Section
from wimfris.results.published import built_in_note
from wimfris.results.report.comparison_tables import sections
from wimfris.results.scores import LABELS, METRICS

Evidence = dict[str, Any]
"""A search, as `wimfris.search.evidence` writes it."""

Trial = dict[str, Any]
"""One of an evidence's trials."""

FOLDER = Path("reports") / "search"
SAMPLERS = {"tpe": "TPE", "random": "random"}
_LABELS = {name: LABELS[name] for name in ("miou", "oiou", "pr50", "pr70", "pr90")}
_OBJECTIVES = {None: "", "parameters": ", against trained parameters", "latency": ", against latency"}
_NUMBERS = (("trained", "trained parameters", ","), ("latency_ms", "ms", ".1f"), ("seconds", "seconds", ".0f"))
_RATIO = "step / full's"
_STATES = {"complete": "finished", "pruned": "pruned", "fail": "failed"}


def evidence_path(folder: str, label: str) -> Path:
    """Return the path of a search's evidence; its label is <space>-<sampler> or <space>-<sampler>-<against>."""
    return FOLDER / folder / f"{label}.json"


def load_evidence(path: Path) -> Evidence:
    """Read the evidence of one search. Raises UserError if the file holds none."""
    try:
        content: Evidence = json.loads(path.read_text(encoding="utf-8"))
        if {"space", "trials"} <= content.keys():
            return content
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not the evidence of a search; delete it and run `python studies/search.py`")


def read_searches(folder: str, space: str) -> list[Evidence]:
    """Read all searches of a space at one data set and scale, TPE's first.

    Raises UserError if there is none, or if a file is not the evidence of a search.
    """
    paths = sorted((FOLDER / folder).glob(f"{space}-*.json"))
    searches = [search for search in map(load_evidence, paths) if search["space"] == space]
    if not searches:
        raise UserError(f"{FOLDER / folder}: no search of space {space}; run `python studies/search.py`")
    return sorted(searches, key=lambda search: (search["against"] is not None, [*SAMPLERS].index(search["sampler"])))


def method(search: Evidence) -> str:
    """Return the sampler and the second objective in words."""
    return SAMPLERS[search["sampler"]] + _OBJECTIVES[search["against"]]


def finished(search: Evidence) -> list[Trial]:
    """Return the trials that were trained to their end."""
    return [trial for trial in search["trials"] if trial["state"] == "complete"]


def best(search: Evidence) -> Trial | None:
    """Return the finished trial with the highest mIoU on val, the first of equals; None if none has finished."""
    return max(finished(search), key=lambda trial: (trial["values"][0], -trial["number"]), default=None)


def front(search: Evidence) -> list[Trial]:
    """Return the finished trials that no other one dominates, the highest mIoU last.

    A trial dominates another if it is at least as good in both objectives, and better in one.
    """
    trials = finished(search)

    def dominated(trial: Trial) -> bool:
        score, cost = trial["values"]
        rivals = [other["values"] for other in trials if other["values"] != trial["values"]]
        return any(other[0] >= score and other[1] <= cost for other in rivals)

    return sorted((trial for trial in trials if not dominated(trial)), key=lambda trial: trial["values"])


def flat(overrides: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every setting."""
    for key, value in overrides.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def text(value: Any) -> str:
    """Return a setting's value as the tables show it."""
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_frame(searches: Sequence[Evidence]) -> pd.DataFrame:
    """Return one row for each trial, and one row `reference` (`full`, trained as long) for each search.

    Columns: space, sampler, against, number, name, state, epochs, the metrics of every split (fractions; empty unless
    the trial finished), trained parameters, latency_ms, seconds, failure, and one column for each setting.
    """
    rows = []
    for search in searches:
        common = {"space": search["space"], "sampler": search["sampler"], "against": search["against"] or ""}
        reference = {"name": "reference", "state": "complete", "epochs": search["train"]["epochs"]}
        rows.append(common | reference | _measurements(search["reference"]))
        for trial in search["trials"]:
            row = {"number": trial["number"], "name": trial["name"], "state": trial["state"]}
            row |= {"epochs": len(trial["epochs"])} | _measurements(trial) | {"failure": trial["failure"] or ""}
            rows.append(common | row | {path: text(value) for path, value in flat(trial["overrides"])})
    frame = pd.DataFrame(rows)
    frame["number"] = frame["number"].astype("Int64")
    return frame


def _measurements(trial: Trial) -> dict[str, Any]:
    metrics = {f"{split}_{name}": of_split[name] for split, of_split in trial["metrics"].items() for name in METRICS}
    return metrics | {name: trial.get(name) for name in ("trained", "latency_ms", "seconds")}


def report_sections(searches: Sequence[Evidence], confirmed: Sequence[Section] = ()) -> list[Section]:
    """Return the tables of a space's searches; those of the confirmed trials follow the best trials."""
    first = searches[0]
    where = f"{first['dataset']}, scale {first['scale']}, protocol {first['protocol']}"
    length = f"{first['train']['epochs']} epochs of {first['train']['epoch_steps'] or 'all'} steps"
    note = (
        f"A trial is trained for {length} from seed {first['seed']}; percent. The reference is full, trained as "
        f"long. The search selects by mIoU on val only. {_trained_at(searches)}"
        + built_in_note(first["dataset"], first["scale"])
    )
    metrics = [*_percents(first["reference"])]
    reference = {"trial": "full (reference)", "settings": "as params.yaml"} | _percents(first["reference"])
    pairs = [(search, trial) for search in searches if (trial := best(search))]
    winners = _table([reference, *(_row(*pair) for pair in pairs)], ["method", "trial", "settings", *metrics])
    shown = [
        Section(f"Best trials, {where}", note, winners, left=("method", "trial", "settings")),
        Section("Selected on val, measured on test", _OPTIMISM, _optimism_cells(pairs), left=("method", "trial")),
        *confirmed,
        Section("Cost of the searches", _COST, _table(map(_cost, searches)), left=("method",)),
    ]
    importances = {method(search): search["importances"] for search in searches if search.get("importances")}
    if importances:
        settings = dict.fromkeys(name for shares in importances.values() for name in shares)
        cells = pd.DataFrame(importances, index=pd.Index([*settings], name="setting"))
        cells = cells.map(lambda share: DASH if np.isnan(share) else f"{share:.2f}").reset_index()
        shown.append(Section("Importances", _IMPORTANCE, cells, left=("setting",)))
    for search in searches:
        if search["against"]:
            costs = ["trained parameters", *(["ms"] if search["against"] == "latency" else [])]
            cells = _table([_row(search, trial) for trial in front(search)], ["trial", *costs, *metrics, "settings"])
            shown.append(Section(f"Front, {method(search)}", _FRONT, cells, left=("trial", "settings")))
    for search in searches:
        rows = [_row(search, trial) for trial in search["trials"]]
        limited = ["trained parameters", _RATIO] if any(trial.get("time_ratio") for trial in search["trials"]) else []
        cells = _table(rows, ["trial", "result", *metrics, *limited, "seconds", "settings"])
        shown.append(Section(f"All trials, {method(search)}", "", cells, left=("trial", "result", "settings")))
    return shown


_OPTIMISM = (
    "Points of mIoU over full at the same length, one seed each. Optimism is the gain on val, by which the trial was "
    "selected, minus the mean gain on the test splits. Both contain the chance of one seed."
)
_COST = (
    "Seconds are summed over all trials. The saving is the time that pruned trials would have needed to finish at "
    "their own pace. A draw with the settings of a finished trial is not trained again: it is repeated. A refused draw "
    "is no trial."
)
_IMPORTANCE = (
    "Share of the variance of mIoU among the better trials that a setting explains (PED-ANOVA); summed over layers."
)
_FRONT = "Trials that no other trial beats in both objectives."


def _trained_at(searches: Sequence[Evidence]) -> str:
    """Return at which commits the trials were trained, and how many sentences val had then."""
    commits = dict.fromkeys((search["code"]["commit"] or "unknown")[:7] for search in searches)
    sentences = dict.fromkeys(str(search["reference"]["metrics"]["val"]["n"]) for search in searches)
    return f"Trained at commit {' and '.join(commits)}; val had {' and '.join(sentences)} sentences."


def _table(rows: Iterable[dict[str, str]], columns: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).fillna(DASH)


def _row(search: Evidence, trial: Trial) -> dict[str, str]:
    """Return the cells of a trial, in all tables."""
    results = {"complete": "finished", "pruned": f"pruned after epoch {len(trial['epochs'])}"}
    result = results.get(trial["state"], f"failed: {trial['failure']}")
    row = {"method": method(search), "trial": trial["name"], "settings": _summary(trial["overrides"])}
    if trial.get("refused"):
        result = f"refused: {trial['refused']}"
    row["result"] = f"as {trial['same_as']}" if trial["same_as"] else result
    for key, column, form in _NUMBERS:
        if trial[key]:
            row[column] = f"{trial[key]:{form}}"
    if trial.get("time_ratio"):
        row[_RATIO] = f"{trial['time_ratio']:.2f}"
    if trial["metrics"]:
        row |= _percents(trial)
    elif trial["epochs"]:
        row["mIoU"] = f"{100 * [*trial['epochs'].values()][-1]:.1f}"
    return row


def _percents(trial: Trial) -> dict[str, str]:
    """Return all metrics on val, and mIoU on the test splits."""
    on_val = {label: f"{100 * trial['metrics']['val'][name]:.1f}" for name, label in _LABELS.items()}
    tests = {split: metrics["miou"] for split, metrics in trial["metrics"].items() if split != "val"}
    return on_val | {f"{split} mIoU": f"{100 * miou:.1f}" for split, miou in tests.items()}


def _summary(overrides: Mapping[str, Any]) -> str:
    """Return settings by the last part of their keys; by the last two where the last is ambiguous."""
    pairs = [(path.split("."), text(value)) for path, value in flat(overrides)]
    ends = [parts[-1] for parts, _ in pairs]
    return ", ".join(f"{'.'.join(parts[-1 if ends.count(parts[-1]) == 1 else -2 :])} {value}" for parts, value in pairs)


def _optimism_cells(pairs: Sequence[tuple[Evidence, Trial]]) -> pd.DataFrame:
    rows = []
    for search, trial in pairs:
        reference = search["reference"]["metrics"]
        gains = {split: 100 * (m["miou"] - reference[split]["miou"]) for split, m in trial["metrics"].items()}
        row = {"method": method(search), "trial": trial["name"]}
        row |= {f"gain on {split}": f"{gain:+.1f}" for split, gain in gains.items()}
        tests = [gain for split, gain in gains.items() if split != "val"]
        if tests:
            row["optimism"] = f"{gains['val'] - float(np.mean(tests)):+.1f}"
        rows.append(row)
    return _table(rows)


def _cost(search: Evidence) -> dict[str, str]:
    kinds = [
        "refused" if trial.get("refused") else "repeated" if trial["same_as"] else trial["state"]
        for trial in search["trials"]
    ]
    trained = [trial for trial in search["trials"] if not trial["same_as"]]
    timed = [trial for trial in trained if trial["seconds"]]
    total = sum(trial["seconds"] for trial in timed)
    cut = [trial for trial in timed if trial["state"] == "pruned" and trial["epochs"]]
    saved = sum(trial["seconds"] * (search["train"]["epochs"] / len(trial["epochs"]) - 1) for trial in cut)
    whole = [trial["seconds"] for trial in timed if trial["state"] == "complete"]
    return {
        "method": method(search),
        "drawn": str(len(kinds)),
        **{name: str(kinds.count(kind)) for kind, name in _STATES.items()},
        **({"refused": str(kinds.count("refused"))} if "refused" in kinds else {}),
        "repeated": str(kinds.count("repeated")),
        "seconds": f"{total:.0f}",
        "saved by pruning": f"{saved:.0f} ({saved / (total + saved):.0%})" if saved else DASH,
        "median of finished": f"{np.median(whole):.0f}" if whole else DASH,
    }


def confirmed_sections(
    searches: Sequence[Evidence],
    promoted: Mapping[str, str],
    records: pd.DataFrame,
    comparisons: Comparisons | None = None,
) -> list[Section]:
    """Return the tables of promoted trials (variant -> trial), trained whole from fresh seeds, beside `full`.

    comparisons: which the tables quote; pairs that they lack have no verdict. Empty if no variant has records.
    """
    variants = set() if records.empty else set(records["variant"])
    methods = {trial["name"]: method(search) for search in searches for trial in search["trials"]}
    rows = [
        Row(f"{variant} ({trial}, {methods[trial]})", variant)
        for variant, trial in promoted.items()
        if variant in variants
    ]
    if not rows:
        return []
    study = Study(
        name="search",
        title="Trained again at full length, from fresh seeds",
        question="",
        paper="",
        rows=(Row("full", "full"), *rows),
        note="Variants with the settings of a trial, trained as long as any run, from seeds that no search has used.",
    )
    return sections(
        study,
        study.tables(records, (comparisons or Comparisons.of_pairs(records, ())).with_pairs(records, study.pairs), {}),
    )
