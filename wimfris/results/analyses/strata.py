"""Results by stratum: does the window help more or less where a target is large, crosses windows, or has far context?

`wimfris.measure.strata_labels` labels every evaluated sentence. `strata_table` compares systems within each stratum,
and their gains between strata, with the estimators of `wimfris.results.statistics`.

The gain of a system in a stratum is its difference from the baseline over the sentences of that stratum. The change is
the gain of a stratum minus that of the first one (a difference of differences). Let z^A and z^B be the linearised
values of the two strata over the images of both, where an image without a sentence of a stratum adds nothing to its
sums. Then the values z^A - z^B of the two systems are compared like any others. Both strata use the same resampled
images, so sentences of one image stay paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from wimfris.errors import UserError
from wimfris.results.comparisons import UNADJUSTED
from wimfris.results.differences import compare
from wimfris.results.figures import saved_figure
from wimfris.results.formats import Section, interval, percent, seeds_text
from wimfris.results.intervals import draw_interval, padded, reach
from wimfris.results.published import built_in_note
from wimfris.results.scores import COMPARED, METRICS, by_seed, own_sentences, read_scores
from wimfris.results.statistics import Estimate, estimate, linearise, resample
from wimfris.runs.records import CASE, SPLITS

FOOT = (
    "All intervals have the level 95%, uncorrected. Strata are exploratory and have no verdicts. The row of all "
    "sentences has no interval for any seed, because studies decide such comparisons, from seeds of their own."
)
LARGE = (0.025, 0.065)  # shares of the image where medium and large begin: between the built-in set's three sizes


@dataclass(frozen=True)
class Stratum:
    """A partition of the sentences: a column of labels or records, the upper edges of its levels, and their names."""

    title: str
    column: str
    edges: tuple[float, ...]  # inclusive
    levels: tuple[str, ...]

    def __call__(self, labels: pd.DataFrame) -> "pd.Series[str]":
        """Return the level of every sentence, an ordered categorical; NaN if the sentence has none."""
        if not self.edges:
            return pd.Series(pd.Categorical(labels[self.column], self.levels, ordered=True), labels.index)
        return pd.cut(labels[self.column], [-np.inf, *self.edges, np.inf], labels=list(self.levels))


STRATA: Mapping[str, Stratum] = {
    "all": Stratum("all sentences", "everything", (), ("all",)),
    "size": Stratum("target's share of the image", "share", LARGE, ("under 2.5%", "2.5 to 6.5%", "over 6.5%")),
    "windows": Stratum("windows that the target touches", "windows", (1, 2, 4), ("1", "2", "3 or 4", "5 or more")),
    "kind": Stratum("kind of sentence", "kind", (), ("attribute", "superlative", "relation")),
    "context": Stratum(
        "nearest window with the context",
        "context_windows",
        (0, 1),
        ("a window of the target's", "the next", "further"),
    ),
    "distance": Stratum(
        "distance to the context, in windows", "context_distance", (0.7, 1.0), ("under 0.7", "0.7 to 1", "over 1")
    ),
}
"""The partitions by name; the last two apply only to sentences that name a landmark."""


# --- results by stratum -----------------------------------------------------------------------------------------------


def strata_table(
    records: pd.DataFrame, labels: pd.DataFrame, systems: Sequence[str], baseline: str, *, resamples: int = 10_000
) -> pd.DataFrame:
    """Compare the systems with the baseline in every stratum: one row per split, stratum, level and system.

    `labels` has the columns of `measure.strata_labels.strata_labels`, for at least the records' sentences. Columns, all
    values fractions:

    * dataset, scale, protocol, split, stratum, level, system, baseline; seeds, images, sentences; seed_list and
      baseline_seed_list;
    * miou, oiou, pr50 .. pr90, and baseline_miou .. of the baseline, each a mean over its own seeds;
    * for each of `COMPARED` gain_<metric> with its 95% interval for these seeds (gain_<metric>_these_low, _these_high)
      and any seed (_any_low, _any_high), neither of them corrected: strata have no verdicts. The stratum of all
      sentences has none for any seed, because reports/comparisons has it;
    * change_<metric> likewise: the gain minus that of the stratum's first level, NaN for the first level.

    Strata with a single level are left out. Raises `UserError` as `compare`, or if a sentence of the records has no
    labels.
    """
    if "dataset" not in labels:  # those of one data set may have been written without its name
        labels = labels.assign(dataset=records["dataset"].iloc[0])
    if labels.duplicated(CASE).any():
        case = labels[labels.duplicated(CASE)].iloc[0]
        raise UserError(
            f"{case['split']}: sentence {case['sent_id']} of object {case['ref_id']} has two labels; "
            "label the sentences again with `wimfris measure failure_modes`"
        )
    joined = records.merge(labels.assign(everything="all"), on=CASE, how="left", validate="many_to_one")
    if joined["windows"].isna().any():
        case = joined[joined["windows"].isna()].iloc[0]
        raise UserError(
            f"{case['split']}: sentence {case['sent_id']} of run {case['run']} has no labels; "
            "label the sentences again with `wimfris measure failure_modes`"
        )
    rows: list[dict[str, object]] = []
    for split in [name for name in SPLITS if (records["split"] == name).any()]:
        part = joined[(joined["split"] == split) & joined["variant"].isin([*systems, baseline])]
        for name, stratum in STRATA.items():
            column = stratum(part)
            levels = [level for level in stratum.levels if (column == level).any()]
            if len(levels) < 2 and name != "all":
                continue
            for level in levels:
                rows += _level_rows(part[column == level], name, level, systems, baseline, split, resamples)
                if level != levels[0]:
                    masks = (column == level, column == levels[0])
                    changes = _changes(part, masks, systems, baseline, split, resamples)
                    for row, change in zip(rows[-len(systems) :], changes, strict=True):
                        row |= change
    table = pd.DataFrame(rows)
    whole = [f"gain_{metric}_any_{end}" for metric in COMPARED for end in ("low", "high")]
    table.loc[table["stratum"] == "all", whole] = np.nan
    for name in ("protocol", "scale", "dataset"):
        table.insert(0, name, records[name].iloc[0])
    return table


def _level_rows(
    part: pd.DataFrame, stratum: str, level: str, systems: Sequence[str], baseline: str, split: str, resamples: int
) -> list[dict[str, object]]:
    """Return a row for each system: its values, those of the baseline, and the gain, on the records of one level."""
    compared = compare(part, [(system, baseline) for system in systems], split, resamples=resamples)
    sentences = own_sentences(part)
    rows = []
    for system in systems:
        gains = [one for one in compared if one.pair[0] == system]
        means = [by_seed(sentences[sentences["variant"] == name])[list(METRICS)].mean() for name in (system, baseline)]
        row: dict[str, object] = {
            "split": split,
            "stratum": stratum,
            "level": level,
            "system": system,
            "baseline": baseline,
            "seeds": len(gains[0].seeds.split()),
            "images": gains[0].images,
            "sentences": gains[0].sentences,
            "seed_list": gains[0].seeds,
            "baseline_seed_list": gains[0].rival_seeds,
            **{name: means[0][name] for name in METRICS},
            **{f"baseline_{name}": means[1][name] for name in METRICS},
        }
        for gain in gains:
            row |= _cells(f"gain_{gain.metric}", gain.any_seed, gain.these_low, gain.these_high)
        rows.append(row)
    return rows


def _cells(name: str, any_seed: Estimate, these_low: float, these_high: float) -> dict[str, object]:
    half = any_seed.half_width(UNADJUSTED)
    return {
        name: any_seed.difference,
        f"{name}_these_low": these_low,
        f"{name}_these_high": these_high,
        f"{name}_any_low": any_seed.difference - half,
        f"{name}_any_high": any_seed.difference + half,
    }


def _changes(
    part: pd.DataFrame,
    levels: "tuple[pd.Series[bool], pd.Series[bool]]",
    systems: Sequence[str],
    baseline: str,
    split: str,
    resamples: int,
) -> list[dict[str, object]]:
    """Return for each system its gain in the first of the levels minus that in the second, with both intervals."""
    both = part.assign(first=levels[0], second=levels[1])[levels[0] | levels[1]]
    scores = read_scores(both, [baseline, *systems], split)
    # Every run has the same sentences: those of one run, in the order of the arrays, mark the levels.
    run = own_sentences(both[both["run"] == both["run"].iloc[0]])
    cases = run.sort_values(["image_id", "ref_id", "sent_id"])
    ratios = {
        f"{level} {metric}": sums
        for level in ("first", "second")
        for metric, sums in scores.ratios(cases[level].to_numpy().astype(np.float64)).items()
    }
    draws = resample(ratios, resamples)
    rows = []
    for index in range(1, len(systems) + 1):
        ours, theirs = scores.present[index], scores.present[0]
        row: dict[str, object] = {}
        for metric in COMPARED:
            first, second = (linearise(*ratios[f"{level} {metric}"]) for level in ("first", "second"))
            change = first - second
            resampled = draws[f"first {metric}"] - draws[f"second {metric}"]
            both_means = resampled[index, ours].mean(axis=0) - resampled[0, theirs].mean(axis=0)
            low, high = np.percentile(both_means, [2.5, 97.5])
            row |= _cells(f"change_{metric}", estimate(change[index, ours], change[0, theirs]), float(low), float(high))
        rows.append(row)
    return rows


# --- as it is shown ---------------------------------------------------------------------------------------------------


def sections(table: pd.DataFrame, names: Mapping[str, str]) -> list[Section]:
    """Format `strata_table`: one section per split and system. `names` maps variants to display names."""
    shown: list[Section] = []
    for (split, system), part in table.groupby(["split", "system"], sort=False):
        first = part.iloc[0]
        baseline, seeds = names[first["baseline"]], seeds_text(first["seed_list"], first["baseline_seed_list"])
        title = f"{names[str(system)]} against {baseline}: {first['dataset']}, scale {first['scale']}, "
        title += f"protocol {first['protocol']}, split {split}, {seeds}"
        note = "Windows are those of full." + built_in_note(str(first["dataset"]), str(first["scale"]))
        cells = pd.DataFrame({"stratum": [STRATA[name].title for name in part["stratum"]], "level": part["level"]})
        cells["stratum"] = cells["stratum"].where(~cells["stratum"].duplicated(), "")
        for kind in ("gain", "change"):
            column = f"{kind}_{COMPARED[0]}"
            cells[kind] = percent(part[column], "+")
            for name, end in ((" any seed", "_any"), (" these seeds", "_these")):
                ends = zip(100 * part[f"{column}{end}_low"], 100 * part[f"{column}{end}_high"], strict=True)
                cells[kind + name] = [interval(*pair) for pair in ends]
        cells["mIoU"], cells[baseline] = percent(part["miou"]), percent(part["baseline_miou"])
        cells[["sentences", "images"]] = part[["sentences", "images"]].astype(str).to_numpy()
        shown.append(Section(title, note, cells, FOOT, ("stratum", "level"), guide=True))
    return shown


def draw(table: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw the gains within the strata to a PNG: a panel per stratum and system, a row per level, a colour per split.

    A thick line is the interval for these seeds, a thin one that for any seed, a dot the gain.
    """
    strata = [name for name in STRATA if (table["stratum"] == name).any()]
    systems, splits = list(dict.fromkeys(table["system"])), list(dict.fromkeys(table["split"]))
    levels = {
        name: [x for x in STRATA[name].levels if x in set(table[table["stratum"] == name]["level"])] for name in strata
    }
    colours = dict(zip(splits, sns.color_palette("colorblind", len(splits)), strict=True))
    heights = [len(levels[name]) + 0.3 for name in strata]
    gains = table[["gain_miou", "gain_miou_these_low", "gain_miou_these_high"]]
    start, stop = reach(100 * gains.to_numpy(), 100 * table[["gain_miou_any_low", "gain_miou_any_high"]].to_numpy())
    with saved_figure(path, (7.2, 1.0 + 0.33 * sum(heights) + 0.25 * len(strata))) as figure:
        axes = figure.subplots(len(strata), len(systems), sharex=True, squeeze=False, height_ratios=heights)
        for row, name in zip(axes, strata, strict=True):
            for axis, system in zip(row, systems, strict=True):
                part = table[(table["stratum"] == name) & (table["system"] == system)]
                for one in part.to_dict("records"):
                    shift = 0.22 * (splits.index(one["split"]) - (len(splits) - 1) / 2)
                    height = levels[name].index(one["level"]) + shift
                    colour = colours[one["split"]]
                    for end, width in (("any", 0.8), ("these", 2.6)):
                        low, high = (100 * one[f"gain_miou_{end}_{side}"] for side in ("low", "high"))
                        draw_interval(axis, height, low, high, (start, stop), color=colour, linewidth=width)
                    axis.plot(
                        100 * one["gain_miou"], height, "o", color=colour, markersize=3.5, markeredgecolor="white"
                    )
                axis.axvline(0, color="0.5", linewidth=0.8, zorder=1)
                axis.set(ylim=(len(levels[name]) - 0.5, -0.5), xlim=padded(start, stop))
                axis.set_yticks(range(len(levels[name])), levels[name] if axis is row[0] else [""] * len(levels[name]))
                axis.grid(visible=False, axis="y")
            row[0].set_title(STRATA[name].title, loc="left", fontsize=8)
        for axis, system in zip(axes[0], systems, strict=True):
            axis.set_title(names[system], loc="right", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel(f"gain over {names[table['baseline'].iloc[0]]}, points of mIoU")
        handles: list[Artist] = [Line2D([], [], color=colours[name], marker="o", label=name) for name in splits]
        handles += [
            Line2D([], [], color="0.3", linewidth=width, label=label)
            for width, label in ((2.6, "95% interval, these seeds"), (0.8, "95% interval, any seed"))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        figure.suptitle("95% intervals, not corrected; strata have no verdicts", fontsize=8)
