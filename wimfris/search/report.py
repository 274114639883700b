"""The report of a search: best settings beside the full model's, history, importances, slices, front, all trials.

Made from the evidence that a search leaves, reports/search/<data set>-<scale>/<space>-<sampler>.json, and from the
records of the runs that confirmed what it found. A trial is chosen by its mIoU on val, so that this figure flatters it;
its own mIoU on the test splits, and what fresh seeds of the whole training make of it, do not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wimfris.errors import UserError
from wimfris.results.comparison import Row, Study
from wimfris.results.comparison_tables import sections
from wimfris.results.figures import saved_figure
from wimfris.results.formats import DASH, Section
from wimfris.results.published import built_in_note
from wimfris.results.scores import METRICS

Evidence = dict[str, Any]
"""What `wimfris.search.loop.evidence` makes of a search."""

FOLDER = "search"
SHORT = {"miou": "mIoU", "oiou": "oIoU", "pr50": "P@50", "pr70": "P@70", "pr90": "P@90"}
SAMPLERS = {"tpe": "TPE", "random": "random"}
_STATES = ("complete", "pruned", "fail")
_PANELS = 3  # beside each other


def evidence_path(folder: str, label: str, reports: Path = Path("reports")) -> Path:
    """Where the evidence of a search lies; its label is <space>-<sampler> or <space>-<sampler>-<against>."""
    return reports / FOLDER / folder / f"{label}.json"


def load_evidence(path: Path) -> Evidence:
    """One search's evidence. Raises UserError where the file holds none."""
    try:
        content: Evidence = json.loads(path.read_text(encoding="utf-8"))
        if {"space", "trials"} <= content.keys():
            return content
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not a search's evidence; delete it and run `python studies/search.py`")


def read_searches(folder: str, space: str, reports: Path = Path("reports")) -> list[Evidence]:
    """The searches of a space at one data set and scale, TPE's first. Raises UserError where there is none, or one is
    garbled.
    """
    paths = sorted((reports / FOLDER / folder).glob(f"{space}-*.json"))
    found = [search for search in map(load_evidence, paths) if search["space"] == space]
    if not found:
        raise UserError(f"{reports / FOLDER / folder}: no search of space {space}; run `python studies/search.py`")
    return sorted(found, key=lambda of: (of["against"] is not None, list(SAMPLERS).index(of["sampler"])))


def method(search: Evidence) -> str:
    """The sampler, and what is weighed against mIoU, in words."""
    against = {"parameters": ", against trained parameters", "latency": ", against latency"}
    return SAMPLERS[search["sampler"]] + against.get(search["against"], "")


# --- tables -----------------------------------------------------------------------------------------------------------


def trials_frame(searches: Sequence[Evidence]) -> pd.DataFrame:
    """Every trial of the searches, a row each: space, sampler, against, number, name, state, the epochs it was trained,
    the metrics on every split (fractions; empty where it did not end), trained parameters, milliseconds, seconds,
    failure, and its settings, a column each; `full` at the same length is the row `reference`.
    """
    rows = []
    for search in searches:
        of = {"space": search["space"], "sampler": search["sampler"], "against": search["against"] or ""}
        reference = {"name": "reference", "state": "complete", "epochs": search["train"]["epochs"]}
        rows.append(of | reference | _metrics(search["reference"]) | _costs(search["reference"]))
        for trial in search["trials"]:
            told = {"number": trial["number"], "name": trial["name"], "state": trial["state"]}
            told |= {"epochs": len(trial["epochs"])} | _metrics(trial) | _costs(trial)
            rows.append(of | told | {"failure": trial["failure"] or ""} | _settings(trial))
    frame = pd.DataFrame(rows)
    frame["number"] = frame["number"].astype("Int64")
    return frame


def _metrics(trial: Evidence) -> dict[str, float]:
    return {f"{split}_{name}": of[name] for split, of in trial["metrics"].items() for name in METRICS}


def _costs(trial: Evidence) -> dict[str, Any]:
    return {name: trial.get(name) for name in ("trained", "latency_ms", "seconds")}


def _settings(trial: Evidence) -> dict[str, str]:
    return {path: _shown(value) for path, value in flat(trial["overrides"])}


def flat(overrides: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting."""
    for key, value in overrides.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best(search: Evidence) -> Evidence | None:
    """The finished trial of the highest mIoU on val, the first of equals; None where none has finished."""
    done = [trial for trial in search["trials"] if trial["state"] == "complete"]
    return max(done, key=lambda trial: (trial["values"][0], -trial["number"]), default=None)


def report_sections(searches: Sequence[Evidence], confirmed: Sequence[Section] = ()) -> list[Section]:
    """Best settings, what was chosen by chance, cost, importances; the front of several objectives; all trials."""
    first = searches[0]
    length = f"{first['train']['epochs']} epochs of {first['train']['epoch_steps'] or 'all'} steps"
    note = (
        f"A trial is trained for {length}, from seed {first['seed']}; percent. `full` at the same length is what "
        f"trials are measured by. The search chose by mIoU on val alone."
        + built_in_note(first["dataset"], first["scale"])
    )
    shown = [
        Section(f"Best trials, {_where(first)}", note, _best_cells(searches), left=("by", "trial", "settings")),
        _optimism(searches),
        *confirmed,
        Section("What the searches cost", _COST, _cost_cells(searches), left=("by",)),
    ]
    weights = _importance_cells(searches)
    if not weights.empty:
        shown.append(Section("Importances", _IMPORTANCE, weights, left=("setting",)))
    shown += [
        Section(f"Front, {method(search)}", _FRONT, _front_cells(search), left=("trial", "settings"))
        for search in searches
        if search["against"]
    ]
    shown += [
        Section(f"All trials, {method(search)}", "", _trial_cells(search), left=("trial", "came to", "settings"))
        for search in searches
    ]
    return shown


_COST = (
    "Seconds are those of all trials together, one after the other; `saved` is what pruned trials would have taken "
    "beyond that, at their own pace. Trials whose settings had been tried were not trained again: "
    "repeated."
)
_IMPORTANCE = (
    "Share of the variance of mIoU among the better trials that a setting explains (PED-ANOVA); layers summed."
)
_FRONT = "Trials that no other beats in both objectives."


def _where(search: Evidence) -> str:
    return f"{search['dataset']}, scale {search['scale']}, protocol {search['protocol']}"


def _best_cells(searches: Sequence[Evidence]) -> pd.DataFrame:
    rows = [{"by": "", "trial": "full (reference)", "settings": "as params.yaml"} | _percents(searches[0]["reference"])]
    for search in searches:
        found = best(search)
        if found is not None:
            told = {"by": method(search), "trial": found["name"], "settings": _told(found)}
            rows.append(told | _percents(found))
    return pd.DataFrame(rows).fillna(DASH)


def _percents(trial: Evidence) -> dict[str, str]:
    """All metrics on val, and mIoU on the test splits."""
    found = {name: f"{100 * trial['metrics']['val'][key]:.1f}" for key, name in SHORT.items()}
    return found | {
        f"{split} mIoU": f"{100 * of['miou']:.1f}" for split, of in trial["metrics"].items() if split != "val"
    }


def _told(trial: Evidence) -> str:
    """Settings in short: the last part of each key, with as much before it as tells it from others."""
    pairs = list(flat(trial["overrides"]))
    ends = [path.split(".")[-1] for path, _ in pairs]
    names = [
        ".".join(p.split(".")[-2:]) if ends.count(end) > 1 else end for (p, _), end in zip(pairs, ends, strict=True)
    ]
    return ", ".join(f"{name} {_shown(value)}" for name, (_, value) in zip(names, pairs, strict=True))


def _optimism(searches: Sequence[Evidence]) -> Section:
    """The best trial's gain over `full` where it was chosen, and where it was not."""
    rows = []
    for search in searches:
        found = best(search)
        if found is None:
            continue
        gains = {
            split: of["miou"] - search["reference"]["metrics"][split]["miou"] for split, of in found["metrics"].items()
        }
        tests = [gain for split, gain in gains.items() if split != "val"]
        row = {"by": method(search), "trial": found["name"], "gain on val": f"{100 * gains['val']:+.1f}"}
        row |= {f"gain on {split}": f"{100 * gain:+.1f}" for split, gain in gains.items() if split != "val"}
        if tests:
            row["optimism"] = f"{100 * (gains['val'] - float(np.mean(tests))):+.1f}"
        rows.append(row)
    note = (
        "Points of mIoU over `full` at the same length, one seed each. Optimism is the gain on val, by which the trial "
        "was chosen, less the mean gain on the test splits, which it never saw; one seed's chance is in both."
    )
    return Section("Chosen on val, seen on test", note, pd.DataFrame(rows).fillna(DASH), left=("by", "trial"))


def _cost_cells(searches: Sequence[Evidence]) -> pd.DataFrame:
    rows = []
    for search in searches:
        states = [trial["state"] for trial in search["trials"]]
        trained = [trial for trial in search["trials"] if not trial["same_as"]]
        seconds = {s: [t["seconds"] for t in trained if t["state"] == s and t["seconds"]] for s in _STATES}
        whole = float(np.median(seconds["complete"])) if seconds["complete"] else np.nan
        epochs = search["train"]["epochs"]
        cut = [trial for trial in trained if trial["state"] == "pruned" and trial["seconds"] and trial["epochs"]]
        saved = sum(trial["seconds"] * (epochs / len(trial["epochs"]) - 1) for trial in cut)  # at its own pace
        total = sum(map(sum, seconds.values()))
        rows.append(
            {
                "by": method(search),
                "trials": str(len(states)),
                **{
                    name: str(states.count(state))
                    for name, state in zip(("finished", "pruned", "failed"), _STATES, strict=True)
                },
                "repeated": str(len(states) - len(trained)),
                "seconds": f"{total:.0f}",
                "saved by pruning": f"{saved:.0f} ({saved / (total + saved):.0%})" if saved else DASH,
                "of a finished trial": f"{whole:.0f}",
            }
        )
    return pd.DataFrame(rows)


def _importance_cells(searches: Sequence[Evidence]) -> pd.DataFrame:
    shares = {method(search): search.get("importances", {}) for search in searches if search.get("importances")}
    names = list(dict.fromkeys(path for of in shares.values() for path in of))
    cells = pd.DataFrame({"setting": names})
    for name, of in shares.items():
        cells[name] = [f"{of[path]:.2f}" if path in of else DASH for path in names]
    return cells if shares else pd.DataFrame()


def front(search: Evidence) -> list[Evidence]:
    """The finished trials that no other is at least as good as in both objectives and better in one, best mIoU last."""
    done = [trial for trial in search["trials"] if trial["state"] == "complete"]

    def beaten(one: Evidence) -> bool:
        score, cost = one["values"]
        return any(
            other["values"][0] >= score and other["values"][1] <= cost and other["values"] != one["values"]
            for other in done
        )

    return sorted((trial for trial in done if not beaten(trial)), key=lambda trial: trial["values"])


def _front_cells(search: Evidence) -> pd.DataFrame:
    rows = [
        {
            "trial": trial["name"],
            "trained parameters": f"{trial['trained']:,}",
            **({"ms": f"{trial['latency_ms']:.1f}"} if trial["latency_ms"] else {}),
            **_percents(trial),
            "settings": _told(trial),
        }
        for trial in front(search)
    ]
    return pd.DataFrame(rows)


def _trial_cells(search: Evidence) -> pd.DataFrame:
    rows = []
    for trial in search["trials"]:
        came = {"complete": "finished", "pruned": f"pruned after epoch {len(trial['epochs'])}"}
        told = came.get(trial["state"], f"failed: {trial['failure']}")
        row = {"trial": trial["name"], "came to": f"as {trial['same_as']}" if trial["same_as"] else told}
        if trial["metrics"]:
            row |= _percents(trial)
        elif trial["epochs"]:
            row["mIoU"] = f"{100 * list(trial['epochs'].values())[-1]:.1f}"
        row |= {"seconds": f"{trial['seconds']:.0f}" if trial["seconds"] else DASH, "settings": _told(trial)}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    ordered = [*(name for name in names if name not in ("seconds", "settings")), "seconds", "settings"]
    return pd.DataFrame(rows, columns=ordered).fillna(DASH)


def confirmed_sections(
    searches: Sequence[Evidence], promoted: Mapping[str, str], records: pd.DataFrame
) -> list[Section]:
    """The trials whose settings are a variant's (variant -> the trial's name), trained whole with fresh seeds, beside
    `full`: with intervals, on every split. Empty where none has records.
    """
    there = {
        variant: trial
        for variant, trial in promoted.items()
        if not records.empty and variant in set(records["variant"])
    }
    if not there:
        return []
    named = {trial["name"]: method(search) for search in searches for trial in search["trials"]}
    rows = tuple(Row(f"{variant} ({trial}, {named[trial]})", variant) for variant, trial in there.items())
    study = Study(
        name="search",
        title="Confirmed: trained whole, from fresh seeds",
        question="",
        paper="",
        rows=(Row("full", "full"), *rows),
        note="Trials whose settings are a variant's, trained as long as any run, from seeds that no search has seen.",
    )
    return sections(study, study.tables(records, {}))


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(searches: Sequence[Evidence], path: Path) -> None:
    """Draw to a PNG: the course of each search and its best so far, importances, mIoU by each setting, and the front
    where there are two objectives.
    """
    single = [search for search in searches if not search["against"]]
    shown = single or list(searches)
    settings = list(dict.fromkeys(p for of in shown for t in of["trials"] for p, _ in flat(t["overrides"])))
    settings = [
        p
        for p in settings
        if len({_shown(dict(flat(t["overrides"])).get(p)) for of in shown for t in of["trials"]}) > 1
    ]
    weighed = [search for search in searches if search["against"]]
    panels = ["history", *(["importances"] if any(of.get("importances") for of in shown) else [])]
    panels += [*settings, *(f"front {k}" for k in range(len(weighed)))]
    rows = -(-len(panels) // _PANELS)
    colours = {name: sns.color_palette("colorblind")[k] for k, name in enumerate(SAMPLERS)}
    with saved_figure(path, (7.2, 0.5 + 2.1 * rows)) as figure:
        axes = figure.subplots(rows, _PANELS, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, panels, strict=False):
            if panel == "history":
                _draw_history(axis, shown, colours)
            elif panel == "importances":
                _draw_importances(axis, shown, colours)
            elif panel in settings:
                _draw_slice(axis, shown, panel, colours)
            else:
                _draw_front(axis, weighed[int(panel.split()[1])])
        handles = [
            Line2D([], [], color=colours[of["sampler"]], marker="o", linestyle="", label=method(of)) for of in shown
        ]
        handles.append(Line2D([], [], color="0.3", linewidth=1, label="full, as long trained"))
        if any(trial["state"] == "pruned" for of in shown for trial in of["trials"]):
            handles.append(Line2D([], [], color="0.5", marker="x", linestyle="", label="pruned"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _points(search: Evidence) -> Iterator[tuple[Evidence, float, bool]]:
    """Every trial that was scored: its mIoU in percent, its last epoch's where it was pruned; whether it finished."""
    for trial in search["trials"]:
        if trial["state"] == "complete":
            yield trial, 100 * trial["values"][0], True
        elif trial["state"] == "pruned" and trial["epochs"]:
            yield trial, 100 * list(trial["epochs"].values())[-1], False


def _scatter(axis: Axes, xs: Sequence[float], search: Evidence, colour: Any) -> None:
    for x, (_, score, whole) in zip(xs, _points(search), strict=True):
        axis.plot([x], [score], "o" if whole else "x", color=colour, markersize=4, alpha=0.8, clip_on=False)


def _draw_history(axis: Axes, searches: Sequence[Evidence], colours: Mapping[str, Any]) -> None:
    for search in searches:
        colour = colours[search["sampler"]]
        points = list(_points(search))
        order = [search["trials"].index(trial) for trial, _, _ in points]
        _scatter(axis, order, search, colour)
        whole = [(k, score) for k, (_, score, done) in zip(order, points, strict=True) if done]
        if whole:
            axis.step([k for k, _ in whole], np.maximum.accumulate([s for _, s in whole]), where="post", color=colour)
    axis.axhline(100 * searches[0]["reference"]["metrics"]["val"]["miou"], color="0.3", linewidth=1)
    axis.set(title="Course, and best so far", xlabel="trial", ylabel="mIoU on val (%)")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _draw_importances(axis: Axes, searches: Sequence[Evidence], colours: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(path for of in searches for path in of.get("importances", {})))
    for k, search in enumerate(searches):
        heights = np.arange(len(names)) + 0.35 * k
        values = [search.get("importances", {}).get(name, 0) for name in names]
        axis.barh(heights, values, height=0.35, color=colours[search["sampler"]])
    axis.set_yticks(np.arange(len(names)), [name.split(".", 1)[1] for name in names], fontsize=6)
    axis.invert_yaxis()
    axis.set(title="Importances", xlabel="share")


def _draw_slice(axis: Axes, searches: Sequence[Evidence], setting: str, colours: Mapping[str, Any]) -> None:
    values = [dict(flat(trial["overrides"])).get(setting) for of in searches for trial in of["trials"]]
    sets, real = any(isinstance(v, list) for v in values), any(isinstance(v, float) for v in values)
    names = sorted({_shown(v) for v in values if v is not None}, key=lambda v: (not v.isdigit(), v.zfill(9)))
    for k, search in enumerate(searches):
        colour, shift = colours[search["sampler"]], 0.16 * (k - (len(searches) - 1) / 2)
        for trial, score, whole in _points(search):
            value = dict(flat(trial["overrides"])).get(setting)
            if value is None:
                continue
            xs = value if sets else [value] if real else [names.index(_shown(value))]
            marker = "o" if whole else "x"
            axis.plot(
                [x if real else x + shift for x in xs],
                [score] * len(xs),
                marker,
                color=colour,
                markersize=3.5,
                alpha=0.7,
            )
    if _is_log(searches[0], setting):
        axis.set_xscale("log")
    if not sets and not real:
        axis.set_xticks(range(len(names)), names)
    axis.axhline(100 * searches[0]["reference"]["metrics"]["val"]["miou"], color="0.3", linewidth=1)
    axis.set(title=setting.split(".", 1)[1], xlabel="layer that holds one" if sets else "", ylabel="mIoU on val (%)")


def _is_log(search: Evidence, setting: str) -> bool:
    """Whether the space draws a setting on a logarithmic scale."""
    declared = search["declared"]
    for key in setting.split("."):
        declared = declared.get(key, {})
    return bool(isinstance(declared, dict) and declared.get("log"))


def _draw_front(axis: Axes, search: Evidence) -> None:
    unit = {"parameters": 1e3, "latency": 1.0}[search["against"]]
    points = [t["values"] for t in search["trials"] if t["state"] == "complete"]
    axis.plot([cost / unit for _, cost in points], [100 * score for score, _ in points], "o", color="0.6", markersize=4)
    best_of = [trial["values"] for trial in front(search)]
    xs = [cost / unit for _, cost in best_of]
    axis.plot(xs, [100 * score for score, _ in best_of], "o-", color=sns.color_palette("colorblind")[3], markersize=4)
    axis.set(
        title=f"Front, {SAMPLERS[search['sampler']]}",
        xlabel={"parameters": "trained, thousands", "latency": "ms for one image"}[search["against"]],
        ylabel="mIoU on val (%)",
    )
