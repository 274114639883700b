"""A study: the rows of one table of the paper (or of its reviewers), each a variant that was trained, compared with one
baseline and put beside the published figures.

`studies/*.py` declare them; this module makes their tables from records alone. Every split is a table and a family of
comparisons of its own: `Study.table` is one, `sections` shows several.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.results.published import Figure, read_published
from wimfris.results.statistics import METRICS as COMPARED
from wimfris.results.statistics import SIGNIFICANCE, compare, holm, power_line
from wimfris.results.tables import (
    BUILT_IN,
    DASH,
    METRICS,
    Section,
    built_in_note,
    by_seed,
    check_comparable,
    interval,
    p_value,
    percent,
)
from wimfris.runs.records import CONDITIONS, SPLITS

Published = Mapping[tuple[str, ...], Figure]
"""`wimfris.results.published.read_published`'s."""

LEFT = ("block", "row", "verdict", "trust")
"""The columns of words in a study's tables."""

PAPERS_SET = "refcoco"
"""The set that the paper's ablations are of, which the built-in set's val stands beside."""

_TRUST = ("low", "medium", "high")
_INTERVALS = ("difference", "these_low", "these_high", "any_low", "any_high", "p", "p_holm")
_COUNTS = ("seeds", "n", "common_seeds", "images", "parameters")


@dataclass(frozen=True)
class Row:
    """A row of a study's table: how it is called there, and the variant of params.yaml that it shows."""

    label: str
    variant: str
    published: tuple[str, str] | None = None  # its (table, variant) in published.csv; None where nothing is known
    block: str = ""  # rows of one block stand together under its name
    system: str = "WIMFRIS-B"  # in published.csv; at scale `large` its -L
    against: "Row | None" = None  # what it is compared with; None: the study's baseline
    grids: range = range(1, 1000)  # the sides of the encoder's grid at which the row says something


@dataclass(frozen=True)
class Study:
    """One experiment. `rows` may name a variant more than once: its runs exist once."""

    name: str  # of its files
    title: str
    question: str
    paper: str  # the paper's answer, and where it gives it
    rows: tuple[Row, ...]
    baseline: str = "full"
    note: str = ""  # what a reader must know of these rows
    further: tuple["Study", ...] = ()  # further families of comparisons over the same runs
    grid: bool = False  # show mIoU also as a grid, block by label
    parameters: bool = False  # show the trained parameters of each row
    emphasis: bool = False  # draw the emphasis that the baseline learned, as a second picture
    extra: Callable[[pd.DataFrame, Published], Section] | None = None  # from records of all sets and scales there are

    @property
    def variants(self) -> list[str]:
        """The variants that it needs, each once, the baseline first."""
        against = [row.against.variant for row in self.rows if row.against]
        return list(dict.fromkeys([self.baseline, *(row.variant for row in self.rows), *against]))

    def at_grid(self, side: int) -> "Study":
        """The study with the rows that say something where the encoder's grid has this side; its note names the others.

        The sides are 8 at scale tiny, 16 at small, 32 at base and large.
        """
        kept = tuple(row for row in self.rows if side in row.grids)
        if len(kept) == len(self.rows):
            return self
        out = ", ".join(dict.fromkeys(row.label for row in self.rows if side not in row.grids))
        return replace(self, rows=kept, note=f"{self.note} Left out at a grid of {side} x {side}: {out}.".strip())

    def table(self, records: pd.DataFrame, split: str = "val", published: Published | None = None) -> pd.DataFrame:
        """Compare every row with its baseline on one split: a row a `Row`, all shares and differences as fractions.

        `records` has the columns of `wimfris.runs.records.SCHEMA` and may hold more runs than the study's. Columns:

        * family, block, label, variant, baseline, dataset, scale, protocol, split;
        * seeds (how many), seed_list, n (sentences a seed), miou, miou_sd (over seeds, ddof 1), oiou, pr50 .. pr90;
        * difference, these_low .. any_high, p, p_holm of mIoU, and the same with oiou_ and pr70_ before them, over the
          common_seeds of both systems, see `statistics.compare`; the Holm family is all comparisons of this table;
          improvement, images, detectable, verdict: higher, lower or undecided (by p_holm), empty without comparison;
        * published, published_gain (less the baseline's), difference_of_differences (ours less that), and trust, the
          lowest of the figures in use. The built-in set's val stands beside RefCOCO's, its other splits beside nothing.

        A row without records, or a figure that nobody states, is empty there. Raises `UserError` where the records hold
        nothing of the baseline or the split, or mix data sets, scales, protocols or sentences.
        """
        published = read_published() if published is None else published
        part = records[(records["split"] == split) & records["variant"].isin(self.variants)]
        of_baseline = part[(part["variant"] == self.baseline) & (part["condition"] == CONDITIONS[0])]
        if of_baseline.empty:
            raise UserError(f"study {self.name}, split {split}: no records of {self.baseline}; train it first")
        of = {column: str(of_baseline[column].iloc[0]) for column in ("dataset", "scale", "protocol", "split")}
        check_comparable(part, f"study {self.name}: {of['dataset']}, scale {of['scale']}, split {split}")
        compared = self._compare(part, split)
        rows = []
        for row in self.rows:
            against = self._against(row)
            cells: dict[str, Any] = {"family": self.title, "block": row.block, "label": row.label}
            cells |= {"variant": row.variant, "baseline": against, **of}
            cells |= _values(part[part["variant"] == row.variant])
            cells |= compared.get((row.variant, against), {})
            rows.append(cells | self._beside(row, of, cells.get("difference", np.nan), published))
        return _ordered(pd.DataFrame(rows))

    def tables(self, records: pd.DataFrame, published: Published | None = None) -> list[pd.DataFrame]:
        """The tables of all splits that the records hold, `val` first, the further families' after the study's own."""
        splits = [split for split in SPLITS[1:] if (records["split"] == split).any()]
        return [study.table(records, split, published) for split in splits for study in (self, *self.further)]

    def figure(self, records: pd.DataFrame, path: Path, split: str = "val") -> None:
        """Draw the split's table to a PNG, see `study_figure.draw`."""
        from wimfris.results.comparison_figure import draw

        draw(self.table(records, split), records, path)

    def _against(self, row: Row) -> str:
        return row.against.variant if row.against else self.baseline

    def _compare(self, part: pd.DataFrame, split: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The comparisons of the table by (variant, baseline), corrected as one family."""
        there = set(part["variant"].unique())
        pairs = dict.fromkeys((row.variant, self._against(row)) for row in self.rows)
        pairs = {pair: None for pair in pairs if pair[0] != pair[1] and there.issuperset(pair)}
        frames = [
            compare(
                part,
                [variant for variant, other in pairs if other == baseline],
                baseline,
                split=split,
                pool=sorted(there),
            )
            for baseline in dict.fromkeys(baseline for _, baseline in pairs)
        ]
        if not frames:
            return {}
        rows = pd.concat(frames, ignore_index=True)
        for _, of_metric in rows.groupby("metric"):
            rows.loc[of_metric.index, "p_holm"] = holm(of_metric["p"])
        found: dict[tuple[str, str], dict[str, Any]] = {pair: {} for pair in pairs}
        for row in rows.to_dict("records"):
            cells, metric = found[row["variant"], row["baseline"]], row["metric"]
            prefix = "" if metric == COMPARED[0] else f"{metric}_"
            cells |= {prefix + name: row[name] for name in _INTERVALS}
            if not prefix:
                cells |= {"common_seeds": row["seeds"], "verdict": _verdict(row)}
                cells |= {name: row[name] for name in ("improvement", "images", "detectable")}
        return found

    def _beside(self, row: Row, of: Mapping[str, str], ours: float, published: Published) -> dict[str, Any]:
        """The published figure and its gain beside ours; None and NaN where there is none."""
        other = row.against or next((one for one in self.rows if one.variant == self.baseline and one.published), None)
        figure = _published(row, of, published)
        reference = _published(other, of, published) if other and self._against(row) != row.variant else None
        if figure is None:
            return {}
        cells: dict[str, Any] = {"published": figure.value / 100, "trust": figure.trust}
        if reference is not None:
            gain = (figure.value - reference.value) / 100
            cells |= {"published_gain": gain, "difference_of_differences": ours - gain}
            cells["trust"] = min(figure.trust, reference.trust, key=_TRUST.index)
        return cells


def _published(row: Row, of: Mapping[str, str], published: Published) -> Figure | None:
    dataset = of["dataset"]
    if row.published is None or (dataset == BUILT_IN and of["split"] != "val"):
        return None
    table, variant = row.published
    system = row.system.removesuffix("-B") + "-L" if of["scale"] == "large" else row.system
    return published.get((table, system, variant, PAPERS_SET if dataset == BUILT_IN else dataset, of["split"], "miou"))


def _values(runs: pd.DataFrame) -> dict[str, Any]:
    if runs.empty:
        return {}
    seeds, numbers = by_seed(runs), sorted(runs["seed"].unique())
    cells = {"seeds": len(numbers), "seed_list": " ".join(map(str, numbers)), "n": int(seeds["n"].iloc[0])}
    return cells | {metric: seeds[metric].mean() for metric in METRICS} | {"miou_sd": seeds["miou"].std(ddof=1)}


def _verdict(row: Mapping[Hashable, Any]) -> str:
    if not row["p_holm"] < SIGNIFICANCE:  # NaN too
        return "undecided"
    return "higher" if row["difference"] > 0 else "lower"


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """All columns in their order, those of which nothing is known empty."""
    columns = ["family", "block", "label", "variant", "baseline", "dataset", "scale", "protocol", "split"]
    columns += ["seeds", "seed_list", "n", "miou", "miou_sd", *METRICS[1:], *_INTERVALS]
    columns += ["improvement", "common_seeds", "images", "detectable", "verdict"]
    columns += [f"{metric}_{name}" for metric in COMPARED[1:] for name in _INTERVALS]
    columns += ["published", "published_gain", "difference_of_differences", "trust"]
    table = table.reindex(columns=columns)
    words = ("block", "seed_list", "verdict", "trust")
    table = table.assign(**{name: table[name].astype(object).fillna("") for name in words})
    return table.astype({name: "Int64" for name in _COUNTS if name in table})


# --- as it is shown ---------------------------------------------------------------------------------------------------


def sections(study: Study, tables: Sequence[pd.DataFrame]) -> list[Section]:
    """Show tables of a study (`Study.tables`): for each its results, and beside them the paper's where it has any.

    Percent and points, one decimal; a dash where nothing is known; `?` after a figure of low trust. The first section's
    note tells how to read all of them.
    """
    shown: list[Section] = []
    for table in tables:
        first = table.iloc[0]
        main = first["family"] == study.title
        most, *fewer = sorted(
            set(table["seed_list"].str.replace(" ", ", ")) - {""}, key=lambda told: (-len(told), told)
        )
        seeds = most + (f" (some rows {' or '.join(fewer)})" if fewer else "")
        of = f"{first['dataset']}, scale {first['scale']}, protocol {first['protocol']}, split {first['split']}"
        of += f", seeds {seeds}"
        caveat = built_in_note(first["dataset"], first["scale"])
        note = (_key(table) if not shown else "") + (f" {study.note}" if not shown and study.note else "") + caveat
        shown.append(Section(f"{first['family']}: {of}", note.strip(), _cells(table), _power(table), LEFT))
        if main and study.grid:
            shown.append(Section(f"{study.title}, mIoU by block: {of}", caveat.strip(), _grid(table), left=("",)))
        if table["published"].notna().any():
            shown.append(_beside_paper(table, of, caveat))
    return shown


def _key(table: pd.DataFrame) -> str:
    others = sorted(set(table["baseline"]))
    against = others[0] if len(others) == 1 else "what the row names"
    return (
        "Percent, means over seeds; SD is that of mIoU over seeds. Diff: the difference in points of mIoU with "
        f"{against}, over the seeds that both have, with two 95% intervals: these seeds, the same networks on other "
        "images; any seed, networks trained anew from other seeds as well, where the variance between seeds is pooled "
        "over the systems of the table. Holm p is for any seed, corrected over the comparisons of one table: each "
        "split is a family of its own. A difference that this leaves open is called undecided. Better in: the chance "
        "that a row's run has the higher IoU on a sentence."
    )


def _power(table: pd.DataFrame) -> str:
    compared = table.dropna(subset=["difference"]).drop_duplicates(["variant", "baseline"])
    if compared.empty:
        return ""
    frame = compared[["images", "detectable"]].assign(metric=COMPARED[0], seeds=compared["common_seeds"])
    return f"{len(compared)} comparison{'s' * (len(compared) != 1)} in this family. {power_line(frame)}"


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    cells = _names(table)
    if "parameters" in table:
        cells["trained"] = [DASH if pd.isna(number) else f"{number:,}" for number in table["parameters"]]
    cells["seeds"] = [DASH if pd.isna(number) else str(number) for number in table["seeds"]]
    cells["n"] = [DASH if pd.isna(number) else str(number) for number in table["n"]]
    for name, column in (("mIoU", "miou"), ("SD", "miou_sd"), ("oIoU", "oiou")):
        cells[name] = percent(table[column])
    for threshold in (50, 70, 90):
        cells[f"P@{threshold}"] = percent(table[f"pr{threshold}"])
    cells["diff"] = percent(table["difference"], "+")
    for name, low, high in (("these seeds", "these_low", "these_high"), ("any seed", "any_low", "any_high")):
        cells[name] = _intervals(table[low], table[high])
    cells["Holm p"] = [p_value(p) for p in table["p_holm"]]
    cells["verdict"] = table["verdict"].replace("", DASH)
    cells["better in"] = percent(table["improvement"])
    return cells


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    return [interval(*bounds) for bounds in zip(100 * low, 100 * high, strict=True)]


def _names(table: pd.DataFrame) -> pd.DataFrame:
    cells = pd.DataFrame({"block": table["block"], "row": table["label"]})
    return cells if cells["block"].any() else cells.drop(columns="block")


def _beside_paper(table: pd.DataFrame, of: str, caveat: str) -> Section:
    known = table["published"].notna().groupby(table["block"]).transform("any")
    table = table[known]  # a block of which the paper says nothing has nothing to stand beside
    first, low = table.iloc[0], table["trust"] == "low"
    note = (
        "mIoU in percent, gains over the baseline in points; any seed: our gain's interval; excess: our gain less the "
    )
    note += f"paper's. {DASH}: nothing trustworthy is known; ?: of low trust."
    if first["dataset"] == BUILT_IN:
        note += f" The paper's figures are of {PAPERS_SET} {first['split']}, ours are not."
    cells = _names(table)
    for name, column, sign in (
        ("paper", "published", "-"),
        ("ours", "miou", "-"),
        ("paper's gain", "published_gain", "+"),
        ("our gain", "difference", "+"),
    ):
        cells[name] = percent(table[column], sign)
        if name.startswith("paper"):
            cells[name] += np.where(low & table[column].notna(), "?", "")
    cells["any seed"] = _intervals(table["any_low"], table["any_high"])
    cells["excess"] = percent(table["difference_of_differences"], "+")
    cells["trust"] = table["trust"].replace("", DASH)
    return Section(f"{first['family']}, against the paper: {of}", note + caveat, cells, left=LEFT)


def _grid(table: pd.DataFrame) -> pd.DataFrame:
    """mIoU ± SD by block and label; a dash where there is no such row."""
    shown = [
        mean if spread == DASH else f"{mean} ± {spread}"
        for mean, spread in zip(percent(table["miou"]), percent(table["miou_sd"]), strict=True)
    ]
    wide = table.assign(shown=shown).pivot(index="block", columns="label", values="shown").fillna(DASH)
    wide = wide.loc[list(dict.fromkeys(table["block"])), list(dict.fromkeys(table["label"]))]
    return wide.rename_axis(columns=None, index="").reset_index()


def csv_frame(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All tables of a study one below the other: a bare frame for the CSV."""
    return pd.concat(tables, ignore_index=True)


def markdown_intro(study: Study, pictures: Iterator[str] | Sequence[str]) -> str:
    """What stands before the tables: the question, the paper's answer, the pictures (paths from the Markdown file)."""
    drawn = "".join(f"\n\n![{study.title}]({picture})" for picture in pictures)
    return f"**Question.** {study.question}\n\n**The paper.** {study.paper}{drawn}\n"
