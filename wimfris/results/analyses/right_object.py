"""Wrong object, or bad mask: how often a prediction overlaps the right object most, and its IoU where it does.

The records say which annotated object of the image a prediction overlaps most (`best_object`). The share of right
objects leaves out what the mask's quality decides; the IoU where the object is right leaves out the wrong objects.
Systems that were not trained here stand beside ours. All intervals are for these weights: a bootstrap over images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns

from wimfris.results.analyses.strata import STRATA, Stratum
from wimfris.results.figures import saved_figure
from wimfris.results.formats import Section, interval, percent
from wimfris.results.published import built_in_note
from wimfris.results.scores import LABELS, own_sentences, read_scores
from wimfris.results.statistics import resample
from wimfris.runs.records import CASE, SPLITS, holds_objects

DISTRACTORS = Stratum("distractors of the same class", "distractors", (0, 1), ("none", "one", "two or more"))
LEVELS: Mapping[str, Stratum] = {name: STRATA[name] for name in ("all", "kind", "size")} | {"distractors": DISTRACTORS}
"""The partitions by name."""

METRICS = {name: LABELS[name] for name in ("miou", "right", "iou_right")}


def objects_table(
    records: pd.DataFrame, labels: pd.DataFrame, systems: Sequence[str], *, resamples: int = 2000
) -> pd.DataFrame:
    """Return one row per split, stratum of `LEVELS`, level and system, of the systems whose records say the object.

    `labels` has the columns of `measure.strata_labels.strata_labels`. Columns, values fractions: dataset, scale,
    protocol, split, stratum, level, system; sentences, images; and for each of `METRICS` its mean over seeds and its
    interval, <metric>_low and <metric>_high. iou_right is NaN where a run has no right object. Sentences that name
    nothing are left out. The table is empty if no system's records say the object.
    """
    own = own_sentences(records)
    own = own[own["variant"].isin(list(systems)) & (own["target_area"] > 0)]
    parts = {name: own[own["variant"] == name] for name in systems}
    known = [name for name, part in parts.items() if len(part) and holds_objects(part)]
    if not known:
        return pd.DataFrame()
    if "dataset" not in labels:
        labels = labels.assign(dataset=own["dataset"].iloc[0])
    own = own[own["variant"].isin(known)].merge(labels[[*CASE, "share"]], on=CASE, how="left")
    own = own.assign(everything="all", distractors=own["distractors"].astype(float))
    rows = []
    for split in [name for name in SPLITS if (own["split"] == name).any()]:
        part = own[own["split"] == split]
        for name, stratum in LEVELS.items():
            column = stratum(part)
            levels = [level for level in stratum.levels if (column == level).any()]
            for level in levels if len(levels) > 1 or name == "all" else ():
                rows += _level_rows(part[column == level], split, name, level, known, resamples)
    table = pd.DataFrame(rows)
    for name in ("protocol", "scale", "dataset"):
        table.insert(0, name, own[name].iloc[0])
    return table


def _level_rows(
    part: pd.DataFrame, split: str, stratum: str, level: str, systems: Sequence[str], resamples: int
) -> list[dict[str, object]]:
    present = [name for name in systems if (part["variant"] == name).any()]
    scores = read_scores(part, present, split)
    ratios = {name: parts for name, parts in scores.ratios().items() if name in METRICS}
    draws = resample(ratios, resamples)
    rows = []
    for place, system in enumerate(present):
        row: dict[str, object] = {"split": split, "stratum": stratum, "level": level, "system": system}
        row |= {"sentences": scores.iou.shape[-1], "images": scores.starts.size}
        runs = scores.present[place]
        for name, (numerator, denominator) in ratios.items():
            sums = np.broadcast_to(denominator, numerator.shape)[place, runs].sum(axis=-1)
            if (sums == 0).any():  # a run without a right object
                row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
                continue
            low, high = np.percentile(draws[name][place, runs].mean(axis=0), [2.5, 97.5])
            value = float((numerator[place, runs].sum(axis=-1) / sums).mean())
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def sections(table: pd.DataFrame, names: Mapping[str, str]) -> list[Section]:
    """Format `objects_table`: one section per split. `names` maps systems to display names, by default their own."""
    shown = []
    for split, part in table.groupby("split", sort=False):
        first = part.iloc[0]
        cells = pd.DataFrame({"stratum": [LEVELS[name].title for name in part["stratum"]], "level": part["level"]})
        cells["system"] = [names.get(name, name) for name in part["system"]]
        cells.loc[cells.duplicated(["stratum", "level"]), "level"] = ""
        cells["stratum"] = cells["stratum"].where(~cells["stratum"].duplicated(), "")
        for name, title in METRICS.items():
            cells[title] = percent(part[name])
            ends = zip(100 * part[f"{name}_low"], 100 * part[f"{name}_high"], strict=True)
            cells[f"{title}, these weights"] = [interval(*pair, form=".1f") for pair in ends]
        cells[["sentences", "images"]] = part[["sentences", "images"]].astype(str).to_numpy()
        title = f"Right object: {first['dataset']}, scale {first['scale']}, protocol {first['protocol']}, split {split}"
        note = "The object is right if the prediction overlaps it most, by IoU. An empty prediction is wrong. "
        note += "Intervals are over images, for these weights."
        note += built_in_note(str(first["dataset"]), str(first["scale"]))
        shown.append(Section(title, note, cells, left=("stratum", "level", "system"), guide=True))
    return shown


def draw(table: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw the first split's table to a PNG: a panel per metric, a row per level, a colour per system."""
    part = table[table["split"] == table["split"].iloc[0]]
    systems = list(dict.fromkeys(part["system"]))
    levels = list(dict.fromkeys(zip(part["stratum"], part["level"], strict=True)))
    colours = dict(zip(systems, sns.color_palette("colorblind", len(systems)), strict=True))
    with saved_figure(path, (7.2, 1.3 + 0.3 * len(levels))) as figure:
        axes = figure.subplots(1, len(METRICS), sharey=True)
        for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
            for one in part.to_dict("records"):
                shift = 0.5 * ((systems.index(one["system"]) + 0.5) / len(systems) - 0.5)
                height, colour = levels.index((one["stratum"], one["level"])) + shift, colours[one["system"]]
                ends = [100 * one[f"{metric}_low"], 100 * one[f"{metric}_high"]]
                axis.plot(ends, [height] * 2, color=colour, linewidth=1.6)
                axis.plot(100 * one[metric], height, "o", color=colour, markersize=3.5, markeredgecolor="white")
            axis.set(ylim=(len(levels) - 0.5, -0.5), xlabel=f"{title}, %")
            axis.grid(visible=False, axis="y")
        axes[0].set_yticks(range(len(levels)), [_label(*one) for one in levels])
        marks = [axes[0].plot([], [], "o-", color=colours[name], label=names.get(name, name))[0] for name in systems]
        figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 4))
        figure.suptitle(
            f"Split {part['split'].iloc[0]}; lines are 95% intervals over images, for these weights", fontsize=8
        )


def _label(stratum: str, level: str) -> str:
    return "all sentences" if stratum == "all" else f"{level} ({stratum})"
