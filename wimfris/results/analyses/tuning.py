"""What tuning measured: reports/tuning/<set>-<scale>.csv, one row per run on split `tune`, its tables and picture.

Rows accumulate over machines and days: a run that is measured again replaces its row.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from wimfris.files import write_text
from wimfris.results.csv_files import read_csv
from wimfris.results.figures import saved_figure
from wimfris.results.formats import DASH, Section, interval, percent
from wimfris.results.published import built_in_note
from wimfris.results.scores import METRICS
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import digest
from wimfris.runs.manifest import read_manifest
from wimfris.settings.params import Params
from wimfris.settings.run import Run
from wimfris.settings.tuning import WHOLE, Tuning, flat

SPLIT = "tune"
COLUMNS = (
    "run",
    "seed",
    "kind",
    "name",
    "values",
    "settings",
    *METRICS,
    "n",
    "minutes",
    "commit",
    "fingerprint",
    "device",
)
TRIAL, RECIPE = "trial", "recipe"  # kinds of rows
PANELS = 4  # side by side in the picture
FEWEST = 3  # seeds from which a cost is stated


def tuning_file(params: Params, reports: Path) -> Path:
    """Return the file of the measurements at the data set and scale of `params`."""
    return reports / "tuning" / f"{params.settings().folder.name}.csv"


def trial_runs(tuning: Tuning, families: Sequence[str]) -> list[Run]:
    """Return the first runs of these families: every trial from the first seed."""
    return [Run(name, tuning.seeds[0]) for family in families for name in tuning.trial_names(family)]


def whole_runs(params: Params, families: Sequence[str], frame: pd.DataFrame) -> list[Run]:
    """Return the runs at full length of these families: their best trials, from all seeds. None before all ran."""
    tuning, runs = params.tuning, []
    for family in families:
        names = tuning.trial_names(family)
        first = frame[frame["run"].isin([f"{name}-{tuning.seeds[0]}" for name in names])]
        if len(first) == len(names):
            best = first.sort_values("miou", ascending=False, kind="stable")["run"].head(tuning.best)
            wholes = [tuning.whole_name(Run.parse(run).variant, params.scale) for run in best]
            runs += [Run(name, seed) for name in wholes for seed in tuning.seeds]
    return runs


def recipe_runs(tuning: Tuning) -> list[Run]:
    """Return the runs of the candidates for a recipe, seed by seed."""
    names = [
        f"recipe_{candidate}_{variant}" for candidate in tuning.recipe.candidates for variant in tuning.recipe.variants
    ]
    return [Run(name, seed) for seed in tuning.recipe.seeds for name in names]


def measured_row(params: Params, run: Run, folder: Path) -> dict[str, Any]:
    """Return the row of a finished run whose files lie in `folder`."""
    files = RunFiles(folder)
    manifest = read_manifest(files.manifest)
    scores = json.loads(files.metrics.read_text(encoding="utf-8"))[SPLIT]["sentence"]
    families = {name: family for family in params.tuning.families for name in params.tuning.trial_names(family)}
    trial = run.variant.removesuffix(WHOLE)
    kind = TRIAL if trial in families else RECIPE
    return {
        "run": str(run),
        "seed": run.seed,
        "kind": kind,
        "name": families.get(trial, run.variant.removeprefix("recipe_")),
        "values": json.dumps(params.tuned[run.variant][1], sort_keys=True),
        "settings": settings_digest(params, run.variant),
        **{name: round(scores[name], 6) for name in METRICS},
        "n": scores["n"],
        "minutes": round(manifest["wall_seconds"] / 60, 2),
        "commit": manifest["code"]["commit"],
        "fingerprint": manifest["fingerprint"],
        "device": manifest["device"],
    }


def settings_digest(params: Params, variant: str) -> str:
    """Return a hash of the settings that decide a tuning run: another recipe makes its rows out of date.

    Left out are the scenes of other splits, the images of the controls, the sizes of adapters that the family does not
    have, and every setting at its default, so that one which a later version adds does not count.
    """
    content = params.settings(variant).model_dump(mode="json", exclude_defaults=True)
    scenes = content["data"].get("scenes")
    if scenes:
        content["data"]["scenes"] = {split: scenes[split] for split in ("train", SPLIT) if split in scenes}
    content["evaluate"].pop("control_images", None)
    for part in ("mta", "msa"):
        layers = content["model"][part]["layers"]
        if not layers or content["model"].get("adapters", "wimfris") != "wimfris":
            content["model"][part] = {"layers": layers}
    return digest(content)


def read_tuning(params: Params, path: Path) -> pd.DataFrame:
    """Return the rows of runs whose settings are the present ones; an empty frame where there is no file."""
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    frame = read_csv(path, COLUMNS)
    variants = [Run.parse(run).variant for run in frame["run"]]
    present = {name: settings_digest(params, name) for name in set(variants) & params.tuned.keys()}
    current = [present.get(name) == made for name, made in zip(variants, frame["settings"], strict=True)]
    return frame[current].reset_index(drop=True)


def add_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to the file, in place of those of the same runs."""
    new = pd.DataFrame(rows, columns=list(COLUMNS))
    old = read_csv(path, COLUMNS) if path.is_file() else new.head(0)
    frame = pd.concat([old[~old["run"].isin(new["run"])], new]).sort_values("run", kind="stable")
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def whole_trainings(params: Params, family: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a family's trials at full length, of those that ran from all seeds."""
    names = [params.tuning.whole_name(name, params.scale) for name in params.tuning.trial_names(family)]
    own = frame[[Run.parse(run).variant in names for run in frame["run"]]]
    return own[own.groupby("values")["run"].transform("size") == len(params.tuning.seeds)]


def best_trial(params: Params, family: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a family's best trial at full length, by the mean over all seeds; empty before any ran."""
    whole = whole_trainings(params, family, frame)
    return whole[whole["values"] == whole.groupby("values")["miou"].mean().idxmax()] if len(whole) else whole


def variant_with(params: Params, family: str, values: dict[str, float]) -> str | None:
    """Return the variant of params.yaml that has these values (dotted keys): the family's, or the one whose name ends
    with `_tuned`. None if neither has them.
    """
    declared = params.tuning.families[family]
    for name in (declared.variant, declared.tuned_variant):
        if name in params.variants | params.extended:
            settings = flat(params.settings(name).model_dump(mode="json"))
            if all(settings[key] == value for key, value in values.items()):
                return name
    return None


def families_section(params: Params, frame: pd.DataFrame) -> Section:
    """Return the table of each family's best trial, and the variant of params.yaml that has its settings."""
    tuning, rows = params.tuning, []
    for family in tuning.families:
        trials = frame["run"].isin([str(run) for run in trial_runs(tuning, [family])])
        best = best_trial(params, family, frame)
        values = flat(json.loads(best["values"].iloc[0])) if len(best) else {}
        rows.append(
            {
                "family": family,
                "trials": str(trials.sum()),
                "best": Run.parse(best["run"].iloc[0]).variant if len(best) else DASH,
                "settings": ", ".join(f"{key} {value:g}" for key, value in values.items()) or DASH,
                "in params.yaml": (variant_with(params, family, values) or "no") if values else DASH,
                "seeds": str(len(best)),
                "mIoU": percent(pd.Series([best["miou"].mean()]))[0],
                "SD": percent(pd.Series([best["miou"].std()]))[0],
                "oIoU": percent(pd.Series([best["oiou"].mean()]))[0],
            }
        )
    seeds = "one seed" if len(tuning.seeds) == 1 else f"{len(tuning.seeds)} seeds"
    note = f"Split {SPLIT}. A family gets {tuning.trials} trials from one seed"
    if params.scale in tuning.short:
        epochs = [params.settings(name).train.epochs for name in (tuning.trial_names("full")[0], "full")]
        note += f", of {epochs[0]} of the {epochs[1]} epochs of a run"
    note += (
        f". Its {tuning.best} best trials are trained at full length from {seeds}; the best of them by mean mIoU is "
        "listed. It is tuned to this split, so that its score here is no result."
    )
    if missing := [row["family"] for row in rows if row["best"] == DASH]:
        note += f" Not tuned yet: {', '.join(missing)}."
    note += built_in_note(params.settings().data.name, params.scale)
    return Section("Tuned families", note, pd.DataFrame(rows), left=("family", "best", "settings", "in params.yaml"))


def recipe_section(params: Params, frame: pd.DataFrame) -> Section:
    """Return the table of the candidates for a recipe: what each costs to settle a comparison, beside the first one.

    The cost is variance over seeds times training images: so many images give a mean of a fixed precision. Minutes
    would depend on what else the machine did.
    """
    own, recipe = frame[frame["kind"] == RECIPE], params.tuning.recipe
    names = [f"{candidate}_{variant}" for candidate in recipe.candidates for variant in recipe.variants]
    scores = {name: own.loc[own["name"] == name, "miou"] for name in names}
    work = {name: params.settings(f"recipe_{name}").train.epochs for name in names}
    rows, first = [], scores[names[0]]
    for name, miou in scores.items():
        row = {"candidate": name, "seeds": str(len(miou)), "images, of the first": f"{work[name] / work[names[0]]:.2f}"}
        if len(miou):
            row["mIoU"] = percent(pd.Series([miou.mean()]))[0]
        if len(miou) > 1:
            low, high = deviation_interval(miou.std(), len(miou))
            row |= {"SD": percent(pd.Series([miou.std()]))[0], "SD, 95%": interval(100 * low, 100 * high, ".1f")}
        if min(len(miou), len(first)) >= FEWEST:
            row["cost, of the first"] = f"{miou.var() * work[name] / (first.var() * work[names[0]]):.2f}"
        rows.append(row)
    note = (
        f"Split {SPLIT}; {len(recipe.seeds)} seeds are planned. Cost: variance over seeds times training images, "
        f"stated from {FEWEST} seeds on."
    )
    columns = ["candidate", "seeds", "mIoU", "SD", "SD, 95%", "images, of the first", "cost, of the first"]
    cells = pd.DataFrame(rows, columns=columns).fillna(DASH)
    return Section("Candidates for the recipe", note, cells, left=("candidate",))


def deviation_interval(sd: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a standard deviation of n normal values, by chi-squared."""
    quantiles = stats.chi2.ppf(np.array([(1 + level) / 2, (1 - level) / 2]), n - 1)
    low, high = sd * np.sqrt((n - 1) / quantiles)
    return float(low), float(high)


def draw_tuning(params: Params, frame: pd.DataFrame, path: Path) -> None:
    """Draw mIoU by candidate for the recipe, and against the learning rate for each family that has trials."""
    frame = frame.assign(percent=100 * frame["miou"])
    recipe, trials = frame[frame["kind"] == RECIPE], frame[frame["kind"] == TRIAL]
    families = [family for family in params.tuning.families if family in set(trials["name"])]
    heights = [0.8 + 0.3 * recipe["name"].nunique()] * (len(recipe) > 0)
    heights += [0.8 + 2.0 * -(-len(families) // PANELS)] * (len(families) > 0)
    with saved_figure(path, (7.2, sum(heights))) as figure:
        parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)
        if len(recipe):
            _draw_recipe(recipe, parts[0])
        if families:
            _draw_families(params, families, trials, parts[-1])


def _draw_recipe(recipe: pd.DataFrame, figure: SubFigure) -> None:
    axis = figure.subplots()
    names = list(recipe.groupby("name")["percent"].mean().sort_values().index)
    axis.scatter(recipe["percent"], recipe["name"].map(names.index), s=14, color="0.45", label="a seed")
    means = recipe.groupby("name")["percent"].mean()[names]
    axis.scatter(means, range(len(names)), s=40, marker="|", color="C0", label="mean")
    axis.set(title="Candidates for the recipe", xlabel=f"mIoU on {SPLIT}, %", yticks=range(len(names)))
    axis.set_yticklabels([name.replace("_", " ") for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.legend(loc="lower right")


def _draw_families(params: Params, families: Sequence[str], trials: pd.DataFrame, figure: SubFigure) -> None:
    tuning = params.tuning
    trials = trials.assign(rate=[json.loads(values)["train"]["learning_rate"] for values in trials["values"]])
    columns = min(PANELS, len(families))
    axes = list(figure.subplots(-(-len(families) // columns), columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis, family in zip(axes, families, strict=False):
        first = trials[trials["run"].isin([str(run) for run in trial_runs(tuning, [family])])]
        whole = whole_trainings(params, family, trials)
        means = whole.groupby("values").agg(rate=("rate", "first"), percent=("percent", "mean"))
        length = "a shortened trial" if params.scale in tuning.short else "a trial"
        axis.scatter(first["rate"], first["percent"], s=12, color="0.55", label=f"{length}, one seed")
        label = f"the best {tuning.best} at full length, mean over seeds"
        axis.scatter(means["rate"], means["percent"], s=34, marker="D", color="none", edgecolors="C0", label=label)
        in_use = params.settings(tuning.families[family].variant).train.learning_rate
        axis.axvline(in_use, color="C1", linestyle=":", zorder=0, label="in params.yaml")
        axis.set(title=family, xlabel="learning rate", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelbottom=True)  # above an empty place, too
    for axis in axes[len(families) :]:
        axis.remove()
    figure.supylabel(f"mIoU on {SPLIT}, %", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
