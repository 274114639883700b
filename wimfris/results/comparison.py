"""Comparison tables: every row is a trained variant, compared with one baseline and set beside a published figure.

`studies/*.py` declare the rows. `Study.table` computes their metrics from records, and quotes their differences from
reports/comparisons. Each split has a table of its own. `wimfris.results.report.comparison_tables` formats the tables,
`wimfris.results.report.comparison_figure` draws them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.results.comparisons import Comparisons
from wimfris.results.differences import Pair
from wimfris.results.formats import Section
from wimfris.results.published import BUILT_IN, PAPERS_SET, TRUST, Figure, Published, read_published
from wimfris.results.scores import COMPARED, METRICS, by_seed, check_comparable, own_sentences
from wimfris.runs.records import SPLITS
from wimfris.settings.params import Params

_QUOTED = ("difference", "these_low", "these_high", "low", "high", "error")
_COUNTS = ("seeds", "n", "images", "look", "parameters")
_WORDS = ("block", "seed_list", "compared_seeds", "tier", "claim", "verdict", "trust")


@dataclass(frozen=True)
class Row:
    """A row of a comparison table: its label, and the variant of params.yaml that it shows."""

    label: str
    variant: str
    published: tuple[str, str] | None = None  # its (table, variant) in published.csv, if any source states it
    block: str = ""  # rows of one block are shown together under its name
    system: str = "WIMFRIS-B"  # in published.csv; at scale `large` its -L
    against: "Row | None" = None  # the baseline of this row; by default the study's
    grids: range = range(1, 1000)  # the sides of the encoder's grid at which the row is meaningful


@dataclass(frozen=True)
class Study:
    """One experiment. `rows` may name a variant more than once: they share its runs."""

    name: str  # the stem of its files
    title: str
    question: str
    paper: str  # the paper's answer, and where it gives it
    rows: tuple[Row, ...]
    baseline: str = "full"
    note: str = ""  # what a reader must know about these rows
    further: tuple["Study", ...] = ()  # more tables, with the same baseline or among the same runs
    grid: bool = False  # also show mIoU as a grid, block by label
    parameters: bool = False  # show the trained parameters of each row
    costs: bool = False  # show the minutes and the memory of each row's runs
    pictures: tuple[str, ...] = ()  # further figures that its report shows, by name
    extra: Callable[[pd.DataFrame, Published], Section] | None = None  # a table from records of all sets and scales
    scales: tuple[str, ...] = ()  # that have its variants; by default all

    @property
    def variants(self) -> list[str]:
        """The variants of its rows, their baselines and its further families, each once, the study's baseline first."""
        return list(dict.fromkeys(name for study in (self, *self.further) for name in study._own))

    @property
    def _own(self) -> list[str]:
        """The variants of its own family."""
        baselines = [row.against.variant for row in self.rows if row.against]
        return list(dict.fromkeys([self.baseline, *(row.variant for row in self.rows), *baselines]))

    @property
    def pairs(self) -> list[Pair]:
        """The comparisons of its rows and of its further tables, each once: a variant and its baseline."""
        own = [(row.variant, self._baseline_of(row)) for row in self.rows]
        return [pair for pair in dict.fromkeys([*own, *(pair for one in self.further for pair in one.pairs)])
                if pair[0] != pair[1]]  # fmt: skip

    def is_at(self, scale: str) -> bool:
        """Return whether the scale has the variants of the study."""
        return not self.scales or scale in self.scales

    def at(self, params: Params) -> "Study":
        """Return the study with the rows of the scale of these params; a note names the rest.

        A scale has no row whose variant belongs to other scales, nor one that means nothing on its grid. The side of
        the encoder's grid is 8 at scale tiny, 16 at small, and 32 at base and large.
        """
        elsewhere = params.of_other_scales()
        side = params.settings().grid
        of_grid = [row for row in self.rows if side not in row.grids]
        of_scale = [row for row in self.rows if row.variant in elsewhere]
        if not of_grid and not of_scale:
            return self
        rows = tuple(row for row in self.rows if row not in of_grid and row not in of_scale)
        omitted = [(f"A grid of {side} x {side}", of_grid), (f"Scale {params.scale}", of_scale)]
        notes = [f"{place} has no row {_listed(part, rows)}." for place, part in omitted if part]
        return replace(self, rows=rows, note=" ".join([self.note, *notes]).strip())

    def table(
        self, records: pd.DataFrame, comparisons: Comparisons, split: str = "val", published: Published | None = None
    ) -> pd.DataFrame:
        """Show every row beside its baseline on one split: a row a `Row`, metrics and differences as fractions.

        `records` has the columns of `wimfris.runs.records.SCHEMA` and may hold more runs than the study's. Columns:

        * family, block, label, variant, baseline, dataset, scale, protocol, split;
        * seeds (how many), seed_list, n (sentences per seed), miou, miou_sd (over seeds, ddof 1), oiou, pr50 .. pr90;
        * difference, these_low, these_high, low, high and error (the interval's level is 1 - error) of mIoU, as
          `comparisons` holds them, and the same with the prefixes oiou_ and pr70_; a pair that it lacks has none;
        * compared_seeds, improvement, images, detectable; tier, claim, look, and verdict: higher, lower or undecided;
        * published, published_gain (less the baseline's), difference_of_differences (our gain less that one), and
          trust, the lowest of the figures used. The val split of the built-in set is shown beside RefCOCO's; its other
          splits have no counterpart.

        Cells without records or without a published figure are empty. Raises `UserError` if the records lack the
        baseline or the split, or mix data sets, scales, protocols or sentences.
        """
        published = read_published() if published is None else published
        part = records[(records["split"] == split) & records["variant"].isin(self._own)]
        baseline = own_sentences(part[part["variant"] == self.baseline])
        if baseline.empty:
            raise UserError(
                f"study {self.name}, split {split}: no evidence of {self.baseline} with the present settings; restore "
                f"params.yaml, or train it with `python studies/{self.name}.py`"
            )
        place = {column: str(baseline[column].iloc[0]) for column in ("dataset", "scale", "protocol", "split")}
        check_comparable(part, f"study {self.name}: {place['dataset']}, scale {place['scale']}, split {split}")
        rows = []
        for row in self.rows:
            against = self._baseline_of(row)
            cells: dict[str, Any] = {"family": self.title, "block": row.block, "label": row.label}
            cells |= {"variant": row.variant, "baseline": against, **place}
            cells |= _values(part[part["variant"] == row.variant])
            cells |= _quoted(comparisons, row.variant, against, split)
            rows.append(cells | self._published_cells(row, place, cells.get("difference", np.nan), published))
        return _ordered(pd.DataFrame(rows))

    def tables(
        self, records: pd.DataFrame, comparisons: Comparisons, published: Published | None = None
    ) -> list[pd.DataFrame]:
        """Return the tables of all splits in the records, `val` first; further tables follow the study's own."""
        splits = [split for split in SPLITS[1:] if (records["split"] == split).any()]
        if not splits:
            raise UserError(
                f"study {self.name}: no evidence with the present settings; restore params.yaml, or train with "
                f"`python studies/{self.name}.py`"
            )
        return [
            study.table(records, comparisons, split, published) for split in splits for study in (self, *self.further)
        ]

    def _baseline_of(self, row: Row) -> str:
        return row.against.variant if row.against else self.baseline

    def _published_cells(
        self, row: Row, place: Mapping[str, str], difference: float, published: Published
    ) -> dict[str, Any]:
        other = row.against or next((one for one in self.rows if one.variant == self.baseline and one.published), None)
        figure = _published_figure(row, place, published)
        has_other = other and self._baseline_of(row) != row.variant
        reference = _published_figure(other, place, published) if other and has_other else None
        if figure is None:
            return {}
        cells: dict[str, Any] = {"published": figure.value / 100, "trust": figure.trust}
        if reference is not None:
            gain = (figure.value - reference.value) / 100
            cells |= {"published_gain": gain, "difference_of_differences": difference - gain}
            cells["trust"] = max(figure.trust, reference.trust, key=TRUST.index)
        return cells


def _listed(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """Return the labels of rows, and the name of a block alone where the others have no row of it."""
    blocks = {row.block for row in others}
    names = [row.label if row.block in blocks else f'of "{row.block}"' for row in rows]
    return "; ".join(dict.fromkeys(names))


def _quoted(comparisons: Comparisons, variant: str, baseline: str, split: str) -> dict[str, Any]:
    """Return the cells of a difference, quoted in all metrics; none for a pair that the comparisons lack."""
    cells: dict[str, Any] = {}
    for metric in COMPARED:
        row = comparisons.quote(variant, baseline, split, metric)
        if row is None:
            return {}
        prefix = "" if metric == COMPARED[0] else f"{metric}_"
        cells |= {prefix + name: row[name] for name in _QUOTED}
        if not prefix:
            own = ("improvement", "images", "detectable", "tier", "claim", "look", "verdict")
            cells |= {name: row[name] for name in own}
            cells["compared_seeds"] = row["seeds"] + (
                "" if row["seeds"] == row["rival_seeds"] else f" / {row['rival_seeds']}"
            )
    return cells


def _published_figure(row: Row, place: Mapping[str, str], published: Published) -> Figure | None:
    dataset, split = place["dataset"], place["split"]
    if row.published is None or (dataset == BUILT_IN and split != "val"):
        return None
    table, variant = row.published
    system = row.system.removesuffix("-B") + "-L" if place["scale"] == "large" else row.system
    return published.get((table, system, variant, PAPERS_SET if dataset == BUILT_IN else dataset, split, "miou"))


def _values(runs: pd.DataFrame) -> dict[str, Any]:
    if runs.empty:
        return {}
    metrics, seeds = by_seed(runs), sorted(runs["seed"].unique())
    cells = {"seeds": len(seeds), "seed_list": " ".join(map(str, seeds)), "n": int(metrics["n"].iloc[0])}
    return cells | {name: metrics[name].mean() for name in METRICS} | {"miou_sd": metrics["miou"].std(ddof=1)}


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all columns in order, unknown ones empty."""
    columns = ["family", "block", "label", "variant", "baseline", "dataset", "scale", "protocol", "split"]
    columns += ["seeds", "seed_list", "n", "miou", "miou_sd", *METRICS[1:], *_QUOTED]
    columns += ["compared_seeds", "improvement", "images", "detectable", "tier", "claim", "look", "verdict"]
    columns += [f"{metric}_{name}" for metric in COMPARED[1:] for name in _QUOTED]
    columns += ["published", "published_gain", "difference_of_differences", "trust"]
    table = table.reindex(columns=columns)
    table = table.assign(**{name: table[name].astype(object).fillna("") for name in _WORDS})
    return table.astype({name: "Int64" for name in _COUNTS if name in table})
