"""Results by stratum: does the window help more, or less, where a target is large, crosses windows, or is named by far
context?

`wimfris.measure.strata_labels` labels every evaluated sentence. `strata_table` compares systems within each stratum,
and their differences between strata, by the machinery of `wimfris.results.statistics`.

The gain of a system within a stratum is its difference with the baseline over the sentences of that stratum. The
change is the gain of a stratum minus that of the first one (a difference of differences): with z^A and z^B the
linearised values of the two strata over the images of both (an image that has no sentence of a stratum adds nothing to
its sums), the values z^A - z^B of the two systems are compared as any others. Images are resampled once for both
strata, so that an image with sentences of both is counted as what it is.
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
from wimfris.results.figures import saved_figure
from wimfris.results.statistics import (
    _PR_THRESHOLD,
    METRICS,
    _read,
    any_seed,
    between_seeds,
    compare,
    holm,
    linearise,
    power_line,
    resample,
)
from wimfris.results.tables import METRICS as VALUES
from wimfris.results.tables import Section, built_in_note, by_seed, interval, p_value, percent
from wimfris.runs.records import CONDITIONS, SPLITS

LARGE = (0.025, 0.065)  # shares of the image where medium and large begin: between the built-in set's three sizes
CASE = ["split", "ref_id", "sent_id"]


@dataclass(frozen=True)
class Stratum:
    """A way to part the sentences: a column of labels or records, the upper edges of its levels, and their names."""

    title: str
    column: str
    edges: tuple[float, ...]  # inclusive
    levels: tuple[str, ...]

    def __call__(self, labels: pd.DataFrame) -> "pd.Series[str]":
        """Return the level of every sentence, an ordered categorical; missing where the sentence has none."""
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
"""How sentences are parted; the last two for sentences that name a landmark alone."""


# --- results by stratum -----------------------------------------------------------------------------------------------


def strata_table(
    records: pd.DataFrame, labels: pd.DataFrame, systems: Sequence[str], baseline: str, *, resamples: int = 10_000
) -> pd.DataFrame:
    """Compare the systems with the baseline in every stratum of every split: a row a split, stratum, level and system.

    `labels` has the columns of `measure.strata_labels.strata_labels`, for at least the records' sentences. Columns, all
    values fractions:

    * dataset, scale, protocol, split, stratum, level, system, baseline; seeds, images, sentences, seed_list;
    * miou, oiou, pr50 .. pr90, and baseline_miou .. of the baseline, means over the common seeds;
    * for each of `statistics.METRICS` gain_<metric> with its interval for these seeds (gain_<metric>_these_low,
      _these_high) and any seed (_any_low, _any_high), _p, and _p_holm: one family is all gains within a split's strata;
    * change_<metric> likewise: the gain minus that of the stratum's first level, missing for that one;
    * detectable, of the gain in mIoU, see `compare`.

    Strata of a single level are left out.

    Raises `UserError` as `compare`, and where a sentence of the records has no labels.
    """
    joined = records.merge(labels.assign(everything="all"), on=CASE, how="left", validate="many_to_one")
    if joined["windows"].isna().any():
        case = joined[joined["windows"].isna()].iloc[0]
        raise UserError(
            f"{case['split']}: sentence {case['sent_id']} of run {case['run']} has no labels; "
            "label the sentences again with `wimfris measure strata`"
        )
    rows: list[dict[str, object]] = []
    for split in [name for name in SPLITS if (records["split"] == name).any()]:
        part = joined[(joined["split"] == split) & joined["variant"].isin([*systems, baseline])]
        for name, stratum in STRATA.items():
            levels = stratum(part)
            there = [level for level in stratum.levels if (levels == level).any()]
            if len(there) < 2 and name != "all":
                continue
            for level in there:
                rows += _of_level(part[levels == level], name, level, systems, baseline, split, resamples)
                if level != there[0]:
                    changes = _changes(part, (levels == level, levels == there[0]), systems, baseline, split, resamples)
                    for row, change in zip(rows[-len(systems) :], changes, strict=True):
                        row |= change
    table = pd.DataFrame(rows)
    for _, family in table[table["stratum"] != "all"].groupby("split"):
        for what in (f"{kind}_{metric}_p" for kind in ("gain", "change") for metric in METRICS):
            table.loc[family.index, f"{what}_holm"] = holm(family[what])
    for column in ("protocol", "scale", "dataset"):
        table.insert(0, column, records[column].iloc[0])
    return table


def _of_level(
    part: pd.DataFrame, stratum: str, level: str, systems: Sequence[str], baseline: str, split: str, resamples: int
) -> list[dict[str, object]]:
    compared = compare(part, systems, baseline, split=split, resamples=resamples)
    told = part[part["condition"] == CONDITIONS[0]]
    rows = []
    for system in systems:
        seeds = set(told[told["variant"] == system]["seed"]) & set(told[told["variant"] == baseline]["seed"])
        common = told[told["seed"].isin(seeds)]
        means = [by_seed(common[common["variant"] == name])[list(VALUES)].mean() for name in (system, baseline)]
        of_metric = compared[compared["variant"] == system].set_index("metric")
        row: dict[str, object] = {
            "split": split,
            "stratum": stratum,
            "level": level,
            "system": system,
            "baseline": baseline,
            **{key: int(of_metric[key].iloc[0]) for key in ("seeds", "images", "sentences")},
            "seed_list": " ".join(map(str, sorted(seeds))),
            "detectable": of_metric["detectable"].iloc[0],
            **{name: means[0][name] for name in VALUES},
            **{f"baseline_{name}": means[1][name] for name in VALUES},
        }
        for metric in METRICS:
            found = of_metric.loc[metric]
            row[f"gain_{metric}"] = found["difference"]
            for name in ("these_low", "these_high", "any_low", "any_high", "p"):
                row[f"gain_{metric}_{name}"] = found[name]
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
    """For each system: its gain in the first of the levels minus that in the second, with both intervals."""
    both = part.assign(here=levels[0], there=levels[1])[levels[0] | levels[1]]
    cube = _read(both, [baseline, *systems], split)
    # the sentences of any run, in the cube's order
    run = both[(both["condition"] == CONDITIONS[0]) & (both["run"] == both["run"].iloc[0])]
    cases = run.sort_values(["image_id", "ref_id", "sent_id"])
    ratios = {}
    for level in ("here", "there"):
        held = cases[level].to_numpy().astype(np.float64)
        for metric, (above, below) in {
            "miou": (cube.iou * held, held),
            "oiou": (cube.intersection * held, cube.union * held),
            "pr70": ((cube.iou > _PR_THRESHOLD) * held, held),
        }.items():
            sums = (np.add.reduceat(scores, cube.starts, axis=-1) for scores in (above, below))
            ratios[f"{level} {metric}"] = (next(sums), next(sums))
    drawn = resample(ratios, resamples)
    found = []
    for number in range(1, len(systems) + 1):
        common = cube.present[0] & cube.present[number]
        row: dict[str, object] = {}
        for metric in METRICS:
            here, there = (linearise(*ratios[f"{level} {metric}"]) for level in ("here", "there"))
            between = here - there
            variance, df = between_seeds(between.mean(axis=-1), cube.present)
            of_seeds = 2 * variance / common.sum(), df
            estimate = any_seed(between[number, common] - between[0, common], of_seeds=of_seeds)
            draws = drawn[f"here {metric}"] - drawn[f"there {metric}"]
            low, high = np.percentile((draws[number, common] - draws[0, common]).mean(axis=0), [2.5, 97.5])
            row |= {
                f"change_{metric}": float(estimate.difference),
                f"change_{metric}_these_low": float(low),
                f"change_{metric}_these_high": float(high),
                f"change_{metric}_any_low": float(estimate.low),
                f"change_{metric}_any_high": float(estimate.high),
                f"change_{metric}_p": float(estimate.p),
            }
        found.append(row)
    return found


# --- as it is shown ---------------------------------------------------------------------------------------------------


def sections(table: pd.DataFrame, names: Mapping[str, str]) -> list[Section]:
    """Show `strata_table`: a section for every split and system; `names` says how a variant is called."""
    shown: list[Section] = []
    for (split, system), part in table.groupby(["split", "system"], sort=False):
        first = part.iloc[0]
        baseline, seeds = names[first["baseline"]], "seeds " + first["seed_list"].replace(" ", ", ")
        title = f"{names[str(system)]} against {baseline}: {first['dataset']}, scale {first['scale']}, "
        title += f"protocol {first['protocol']}, split {split}, {seeds}"
        note = built_in_note(str(first["dataset"]), str(first["scale"]))
        if not shown:
            note = (
                "mIoU in percent, mean over seeds; the gain over "
                f"{baseline} in points of mIoU with two 95% intervals (these seeds: the very same networks on other "
                "images; any seed: networks trained anew as well); the change is the gain less that of the stratum's "
                "first row. Holm p is for any seed, corrected over the gains, or the changes, of a split's strata. "
                "Windows are those of full." + note
            )
        cells = pd.DataFrame({"stratum": [STRATA[name].title for name in part["stratum"]], "level": part["level"]})
        cells["stratum"] = cells["stratum"].where(~cells["stratum"].duplicated(), "")
        cells[["sentences", "images"]] = part[["sentences", "images"]].astype(str).to_numpy()
        cells["mIoU"], cells[baseline] = percent(part["miou"]), percent(part["baseline_miou"])
        for kind in ("gain", "change"):
            of = f"{kind}_{METRICS[0]}"
            cells[kind] = percent(part[of], "+")
            for name, end in ((" these seeds", "_these"), (" any seed", "_any")):
                ends = zip(100 * part[f"{of}{end}_low"], 100 * part[f"{of}{end}_high"], strict=True)
                cells[kind + name] = [interval(*pair) for pair in ends]
            cells[f"{kind} Holm p"] = [p_value(p) for p in part[f"{of}_p_holm"]]
        within = part[part["stratum"] != "all"].assign(metric=METRICS[0])
        foot = power_line(within) if len(within) else ""
        shown.append(Section(title, note.strip(), cells, foot, ("stratum", "level")))
    return shown


def draw(table: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw the gains within the strata to a PNG, a panel a stratum, a row a level, a colour a split, for each system a
    column: thick the interval for these seeds, thin that for any seed.
    """
    strata = [name for name in STRATA if (table["stratum"] == name).any()]
    systems, splits = list(dict.fromkeys(table["system"])), list(dict.fromkeys(table["split"]))
    levels = {
        name: [x for x in STRATA[name].levels if x in set(table[table["stratum"] == name]["level"])] for name in strata
    }
    colours = dict(zip(splits, sns.color_palette("colorblind", len(splits)), strict=True))
    heights = [len(levels[name]) + 0.3 for name in strata]
    ends = table[["gain_miou_these_low", "gain_miou_these_high"]].abs().to_numpy()
    reach = 250 * float(np.nanmax(ends))  # points; any-seed intervals of two or three seeds would hide all else
    with saved_figure(path, (7.2, 1.0 + 0.33 * sum(heights) + 0.25 * len(strata))) as figure:
        axes = figure.subplots(len(strata), len(systems), sharex=True, squeeze=False, height_ratios=heights)
        for row, name in zip(axes, strata, strict=True):
            for axis, system in zip(row, systems, strict=True):
                part = table[(table["stratum"] == name) & (table["system"] == system)]
                for one in part.to_dict("records"):
                    at = levels[name].index(one["level"]) + 0.22 * (splits.index(one["split"]) - (len(splits) - 1) / 2)
                    colour = colours[one["split"]]
                    for end, width in (("any", 0.8), ("these", 2.6)):
                        low, high = (100 * one[f"gain_miou_{end}_{side}"] for side in ("low", "high"))
                        axis.plot(np.clip([low, high], -reach, reach), [at, at], color=colour, linewidth=width)
                        for beyond, marker in ((low < -reach, "<"), (high > reach, ">")):
                            if beyond:  # it goes on
                                axis.plot(reach if marker == ">" else -reach, at, marker, color=colour, markersize=3)
                    axis.plot(100 * one["gain_miou"], at, "o", color=colour, markersize=3.5, markeredgecolor="white")
                axis.axvline(0, color="0.5", linewidth=0.8, zorder=1)
                axis.set(ylim=(len(levels[name]) - 0.5, -0.5), xlim=(-1.02 * reach, 1.02 * reach))
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
            for width, label in ((2.6, "these seeds"), (0.8, "any seed"))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
