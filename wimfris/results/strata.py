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
from wimfris.results.differences import compare, power_line, verdict
from wimfris.results.figures import saved_figure
from wimfris.results.formats import DASH, Section, interval, p_value, percent
from wimfris.results.intervals import draw_interval, padded, reach
from wimfris.results.published import built_in_note
from wimfris.results.scores import COMPARED, METRICS, by_seed, own_sentences, read_scores
from wimfris.results.statistics import any_seed, between_seeds, holm, linearise, resample
from wimfris.runs.records import SPLITS

LARGE = (0.025, 0.065)  # shares of the image where medium and large begin: between the built-in set's three sizes
CASE = ["dataset", "split", "ref_id", "sent_id"]


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

    * dataset, scale, protocol, split, stratum, level, system, baseline; seeds, images, sentences, seed_list;
    * miou, oiou, pr50 .. pr90, and baseline_miou .. of the baseline, means over the common seeds;
    * for each of `COMPARED` gain_<metric> with its interval for these seeds (gain_<metric>_these_low, _these_high) and
      any seed (_any_low, _any_high), _p, and _p_holm, whose family is all gains within the strata of a split;
    * change_<metric> likewise: the gain minus that of the stratum's first level, NaN for the first level;
    * detectable, of the gain in mIoU, see `compare`.

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
    for _, family in table[table["stratum"] != "all"].groupby("split"):
        for name in (f"{kind}_{metric}_p" for kind in ("gain", "change") for metric in COMPARED):
            table.loc[family.index, f"{name}_holm"] = holm(family[name])
    for name in ("protocol", "scale", "dataset"):
        table.insert(0, name, records[name].iloc[0])
    return table


def _level_rows(
    part: pd.DataFrame, stratum: str, level: str, systems: Sequence[str], baseline: str, split: str, resamples: int
) -> list[dict[str, object]]:
    """Return a row for each system: its values, those of the baseline, and the gain, on the records of one level."""
    compared = compare(part, systems, baseline, split=split, resamples=resamples)
    sentences = own_sentences(part)
    rows = []
    for system in systems:
        system_seeds, baseline_seeds = (
            set(sentences[sentences["variant"] == name]["seed"]) for name in (system, baseline)
        )
        seeds = system_seeds & baseline_seeds
        common = sentences[sentences["seed"].isin(seeds)]
        means = [by_seed(common[common["variant"] == name])[list(METRICS)].mean() for name in (system, baseline)]
        gains = compared[compared["variant"] == system].set_index("metric")
        row: dict[str, object] = {
            "split": split,
            "stratum": stratum,
            "level": level,
            "system": system,
            "baseline": baseline,
            **{name: int(gains[name].iloc[0]) for name in ("seeds", "images", "sentences")},
            "seed_list": " ".join(map(str, sorted(seeds))),
            "detectable": gains["detectable"].iloc[0],
            **{name: means[0][name] for name in METRICS},
            **{f"baseline_{name}": means[1][name] for name in METRICS},
        }
        for metric, gain in gains.iterrows():
            row[f"gain_{metric}"] = gain["difference"]
            for name in ("these_low", "these_high", "any_low", "any_high", "p"):
                row[f"gain_{metric}_{name}"] = gain[name]
        rows.append(row)
    return rows


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
        common = scores.present[0] & scores.present[index]
        row: dict[str, object] = {}
        for metric in COMPARED:
            first, second = (linearise(*ratios[f"{level} {metric}"]) for level in ("first", "second"))
            change = first - second
            variance, df = between_seeds(change.mean(axis=-1), scores.present)
            estimate = any_seed(change[index, common] - change[0, common], 2 * variance / common.sum(), df)
            resampled = draws[f"first {metric}"] - draws[f"second {metric}"]
            low, high = np.percentile((resampled[index, common] - resampled[0, common]).mean(axis=0), [2.5, 97.5])
            row |= {
                f"change_{metric}": float(estimate.difference),
                f"change_{metric}_these_low": float(low),
                f"change_{metric}_these_high": float(high),
                f"change_{metric}_any_low": float(estimate.low),
                f"change_{metric}_any_high": float(estimate.high),
                f"change_{metric}_p": float(estimate.p),
            }
        rows.append(row)
    return rows


# --- as it is shown ---------------------------------------------------------------------------------------------------


def sections(table: pd.DataFrame, names: Mapping[str, str]) -> list[Section]:
    """Format `strata_table`: one section per split and system. `names` maps variants to display names."""
    shown: list[Section] = []
    for (split, system), part in table.groupby(["split", "system"], sort=False):
        first = part.iloc[0]
        baseline, seeds = names[first["baseline"]], "seeds " + first["seed_list"].replace(" ", ", ")
        title = f"{names[str(system)]} against {baseline}: {first['dataset']}, scale {first['scale']}, "
        title += f"protocol {first['protocol']}, split {split}, {seeds}"
        note = "Windows are those of full." + built_in_note(str(first["dataset"]), str(first["scale"]))
        cells = pd.DataFrame({"stratum": [STRATA[name].title for name in part["stratum"]], "level": part["level"]})
        cells["stratum"] = cells["stratum"].where(~cells["stratum"].duplicated(), "")
        family = part.rename(columns={"gain_miou": "difference", "gain_miou_p_holm": "p_holm"})
        cells["verdict"] = [verdict(row) or DASH for row in family.to_dict("records")]
        for kind in ("gain", "change"):
            column = f"{kind}_{COMPARED[0]}"
            cells[kind] = percent(part[column], "+")
            for name, end in ((" any seed", "_any"), (" these seeds", "_these")):
                ends = zip(100 * part[f"{column}{end}_low"], 100 * part[f"{column}{end}_high"], strict=True)
                cells[kind + name] = [interval(*pair) for pair in ends]
            cells[f"{kind} Holm p"] = [p_value(p) for p in part[f"{column}_p_holm"]]
        cells["mIoU"], cells[baseline] = percent(part["miou"]), percent(part["baseline_miou"])
        cells[["sentences", "images"]] = part[["sentences", "images"]].astype(str).to_numpy()
        within = part[part["stratum"] != "all"].assign(metric=COMPARED[0])
        foot = power_line(within) if len(within) else ""
        shown.append(Section(title, note, cells, foot, ("stratum", "level", "verdict"), guide=True))
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
        figure.suptitle("Intervals are not corrected; the tables state the corrected verdicts", fontsize=8)
