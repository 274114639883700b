"""Comparison tables (`wimfris.results.comparison`) as they are shown: results, and beside them the paper's figures.

Percent and points with one decimal, a dash for an unknown value, `?` after a figure of low trust.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from wimfris.results.comparison import Study
from wimfris.results.comparisons import CONTROL, EXPLORATORY, PRIMARY
from wimfris.results.formats import DASH, Section, interval, level_text, percent
from wimfris.results.published import BUILT_IN, PAPERS_SET, built_in_note
from wimfris.results.releases import Origin
from wimfris.results.scores import LABELS
from wimfris.results.statistics import POWER

_LEFT = ("block", "row", "verdict", "tier", "trust")
_POWER = f"{POWER:.0%}"
_SEEDS = (
    "After a look, diff, its intervals and P(improvement) are of the compared seeds. Other numbers are of the seeds in "
    "the title."
)
MOST_NAMED = 4  # rows without a verdict that a sentence names
_CHANGES = "An exploratory verdict may change when seeds or rows are added."


def sections(study: Study, tables: Sequence[pd.DataFrame], origin: Origin = Origin()) -> list[Section]:  # noqa: B008
    """Format tables of a study (`Study.tables`): for each its results, then the paper's if any source states them.

    origin: where the runs came from; titles name its release, and the foot what was trained elsewhere than most rows.
    """
    shown: list[Section] = []
    for number, table in enumerate(tables):
        if number and table["miou"].isna().all():
            continue  # a further part of the study, of which nothing is trained yet
        first = table.iloc[0]
        lists = set(table["seed_list"].str.replace(" ", ", ")) - {""}
        most, *fewer = sorted(lists, key=lambda seeds: (-len(seeds), seeds))
        seeds = most + (f" (some rows {' or '.join(fewer)})" if fewer else "")
        place = f"{first['dataset']}, scale {first['scale']}, protocol {first['protocol']}, split {first['split']}"
        place += f", seeds {seeds}" + (f", evidence {origin.release}" if origin.release else "")
        caveat = built_in_note(first["dataset"], first["scale"])
        baselines = sorted(set(table["baseline"]))
        note = (
            f"Baseline: {baselines[0] if len(baselines) == 1 else 'full, or the one that the row or its block names'}."
        )
        own = next((one for one in study.further if one.title == first["family"]), study)
        if own.note and (own is not study or not shown):
            note += f" {own.note}"
        title = f"{first['family']}: {place}"
        blocks = [f" ({block})" if block else "" for block in table["block"]]
        names: dict[str, str] = {}
        for variant, label in zip(table["variant"], table["label"] + blocks, strict=True):
            names.setdefault(variant, label)
        foot = " ".join(filter(None, [_levels(table), origin.note(names), _variants(names)]))
        shown.append(Section(title, note + caveat, _cells(table), foot, _LEFT, guide=True))
        if first["family"] == study.title and study.grid:
            title = f"{study.title}, mIoU by block: {place}"
            shown.append(Section(title, caveat.strip(), _grid(table), left=("block of rows",), guide=True))
        if table["published"].notna().any():
            shown.append(_beside_paper(table, place, caveat))
    return shown


def _variants(labels: Mapping[str, str]) -> str:
    """Return the variants behind the rows that are named otherwise; labels: variant -> its name in the table."""
    renamed = "; ".join(f"{label}: `{variant}`" for variant, label in labels.items() if label != variant)
    return f"Variants of the rows: {renamed}." if renamed else ""


def _levels(table: pd.DataFrame) -> str:
    """Return what the intervals and verdicts of a table mean, and which differences they detect."""
    compared = table.dropna(subset=["low"]).drop_duplicates(["variant", "baseline"])
    if compared.empty:
        one = table["difference"].notna().any()
        return "A system has one seed, so there is no interval for any seed and no verdict." if one else ""
    tier, early = compared["tier"], compared["look"] == 0
    groups = (  # name, rows, whether to state the power, the end of the sentence
        ("Primary intervals before the first look", (tier == PRIMARY) & early, False, "; they decide nothing."),
        ("Primary intervals after a look", (tier == PRIMARY) & ~early, True, f". {_SEEDS}"),
        ("Exploratory intervals", tier == EXPLORATORY, True, f". {_CHANGES}"),
        ("Control intervals", tier == CONTROL, True, "."),
    )
    sentences = [
        f"{name}: {tier_levels(compared[rows], power=power)}{end}" for name, rows, power, end in groups if rows.any()
    ]
    if not sentences:
        return "Intervals for any seed have the level 95%, uncorrected; this table has no verdicts."
    return " ".join(sentences)


def tier_levels(rows: pd.DataFrame, *, power: bool = True) -> str:
    """Return the levels of intervals; power: also the differences that they separate from 0 in 80% of experiments."""
    if rows["low"].isna().all():
        return "none, because a system has one seed"
    low, high = (level_text(error) for error in (rows["error"].max(), rows["error"].min()))
    points = 100 * rows.loc[rows["detectable"] < 1, "detectable"]
    text = f"level {low}" if low == high else f"levels {low} to {high}"
    if not power:
        return text
    if points.empty:
        return f"{text}, which separate no difference in {_POWER} of experiments"
    span = f"{points.min():.1f}" if len(points) == 1 else f"{points.min():.1f} to {points.max():.1f}"
    some = "which" if len(points) == len(rows) else f"of which {len(points)} of {len(rows)}"
    return f"{text}, {some} separate a true difference of {span} points in {_POWER} of experiments"


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of a table: the verdict beside the name, then what it rests on, then the metrics."""
    cells = _names(table)
    if (table["tier"] != "").any():
        cells["verdict"] = table["verdict"].replace("", DASH)
        cells["tier"] = table["tier"].replace("", DASH)
    cells["diff"] = percent(table["difference"], "+")
    cells["any seed"] = _intervals(table["low"], table["high"])
    cells["these seeds"] = _intervals(table["these_low"], table["these_high"])
    cells["compared seeds"] = table["compared_seeds"].replace("", DASH)
    for name, column in (("mIoU", "miou"), ("SD", "miou_sd"), ("oIoU", "oiou")):
        cells[name] = percent(table[column])
    for threshold in (50, 70, 90):
        cells[LABELS[f"pr{threshold}"]] = percent(table[f"pr{threshold}"])
    cells["P(improvement)"] = percent(table["improvement"])
    if "parameters" in table:
        cells["trained"] = [DASH if pd.isna(number) else f"{number:,}" for number in table["parameters"]]
    for name, column, form in (("minutes", "minutes", ".1f"), ("GiB", "memory_gib", ".2f")):
        if column in table:
            cells[name] = [DASH if pd.isna(number) else f"{number:{form}}" for number in table[column]]
    for name in ("seeds", "n"):
        cells[name] = [DASH if pd.isna(number) else str(number) for number in table[name]]
    return cells


def answer(table: pd.DataFrame) -> str:
    """Return the verdicts of a `Study.table` in words, and the rows without one; empty if it compares nothing."""
    names = table["label"] + [f" ({block})" if block else "" for block in table["block"]]
    names += np.where(table["tier"] == PRIMARY, " [primary]", "")
    listed = {verdict: "; ".join(names[table["verdict"] == verdict]) for verdict in ("higher", "lower", "undecided")}
    listed = {verdict: rows for verdict, rows in listed.items() if rows}
    single = names[(table["verdict"] == "") & (table["tier"] != "") & table["difference"].notna()]
    if not listed and single.empty:
        return ""
    baselines = sorted(set(table["baseline"]))
    other = baselines[0] if len(baselines) == 1 else "the baseline of its row"
    sentences = [f"{verdict.capitalize()}: {rows}." for verdict, rows in listed.items()]
    if len(single) > MOST_NAMED:
        sentences.append(f"No verdict for {len(single)} rows, because a system has one seed.")
    elif len(single):
        sentences.append(f"No verdict, because a system has one seed: {'; '.join(single)}.")
    first = table.iloc[0]
    where = f"At scale {first['scale']}, mIoU on {first['split']} compared with {other}"
    return f"{where}; exploratory unless marked primary. {' '.join(sentences)}"


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    return [interval(*ends) for ends in zip(100 * low, 100 * high, strict=True)]


def _names(table: pd.DataFrame) -> pd.DataFrame:
    cells = pd.DataFrame({"block": table["block"], "row": table["label"]})
    return cells if cells["block"].any() else cells.drop(columns="block")


def _beside_paper(table: pd.DataFrame, place: str, caveat: str) -> Section:
    # A block without any published figure has nothing to compare.
    table = table[table["published"].notna().groupby(table["block"]).transform("any")]
    first, low = table.iloc[0], table["trust"] == "low"
    note = f"The paper's figures are of {PAPERS_SET} {first['split']}." if first["dataset"] == BUILT_IN else ""
    cells = _names(table).assign(verdict=table["verdict"].replace("", DASH), tier=table["tier"].replace("", DASH))
    for name, column, sign in (
        ("paper's gain", "published_gain", "+"),
        ("our gain", "difference", "+"),
        ("any seed", "", ""),
        ("excess", "difference_of_differences", "+"),
        ("paper", "published", "-"),
        ("ours", "miou", "-"),
    ):
        cells[name] = percent(table[column], sign) if column else _intervals(table["low"], table["high"])
        if name.startswith("paper"):
            cells[name] += np.where(low & table[column].notna(), "?", "")
    cells["trust"] = table["trust"].replace("", DASH)
    return Section(f"{first['family']}, against the paper: {place}", note + caveat, cells, left=_LEFT, guide=True)


def _grid(table: pd.DataFrame) -> pd.DataFrame:
    """Return mIoU ± SD by block and label, a dash where there is no such row."""
    values = [
        mean if spread == DASH else f"{mean} ± {spread}"
        for mean, spread in zip(percent(table["miou"]), percent(table["miou_sd"]), strict=True)
    ]
    wide = table.assign(value=values).pivot(index="block", columns="label", values="value").fillna(DASH)
    wide = wide.loc[list(dict.fromkeys(table["block"])), list(dict.fromkeys(table["label"]))]
    return wide.rename_axis(columns=None, index="block of rows").reset_index()
