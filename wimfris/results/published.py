"""Published figures, read from `reports/published.csv`. `reports/published.md` names the sources and defines trust."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from wimfris.errors import UserError

PUBLISHED = Path("reports/published.csv")

Trust = Literal["high", "medium", "low"]
TRUST = get_args(Trust)

BUILT_IN = "scenes"
"""The data set that this package draws itself; its numbers are not comparable with the paper's."""

PAPERS_SET = "refcoco"
"""The data set of the paper's ablations. The val split of the built-in set is shown beside it."""


@dataclass(frozen=True)
class Figure:
    """One published figure: a row of the file."""

    table: str  # of the WIMFRIS paper: T1 .. T5, and F6 for Figure 6
    system: str
    variant: str
    dataset: str
    split: str
    metric: str
    value: float  # percent; parameters in millions; alpha as it is
    source: str
    trust: Trust

    def __str__(self) -> str:
        """Return the value with one decimal, or with as many as the source states."""
        return f"{self.value:.1f}" if round(self.value, 1) == self.value else f"{self.value:g}"


Published = Mapping[tuple[str, ...], Figure]
"""Figures by (table, system, variant, dataset, split, metric)."""

COLUMNS = tuple(Figure.__annotations__)
_KEY = COLUMNS[:6]


def read_published(path: Path = PUBLISHED) -> dict[tuple[str, ...], Figure]:
    """Return all figures, see `Published`, in the file's order.

    Raises `UserError` if the file is missing or has other columns, or if a row is invalid or occurs twice.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or restore it with git") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: not a CSV file; restore it with git") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path}: the columns must be {','.join(COLUMNS)}, got {','.join(rows[0]) if rows else 'none'}")
    figures: dict[tuple[str, ...], Figure] = {}
    for number, row in enumerate(rows[1:], start=2):
        figure = _figure(row, f"{path}: row {number}")
        key = tuple(row[: len(_KEY)])
        if key in figures:
            raise UserError(f"{path}: row {number} repeats {' / '.join(key)}; keep one of them")
        figures[key] = figure
    return figures


def published(
    table: str,
    system: str,
    variant: str,
    dataset: str = "refcoco",
    split: str = "val",
    metric: str = "miou",
    *,
    path: Path = PUBLISHED,
) -> Figure | None:
    """Return the figure of this key, in percent for mIoU and oIoU, or None if no listed source states one.

    Raises `UserError` as `read_published`.
    """
    return read_published(path).get((table, system, variant, dataset, split, metric))


def built_in_note(dataset: str, scale: str) -> str:
    """Return the caveat of a table of the built-in data set, with a space before it; nothing for other data sets."""
    if dataset != BUILT_IN:
        return ""
    return (
        f" These numbers are of the built-in data set ({BUILT_IN}) at scale {scale}; they say nothing about "
        "the figures in the paper, which are of other data and other encoders."
    )


def _figure(row: list[str], where: str) -> Figure:
    if len(row) != len(COLUMNS):
        raise UserError(f"{where} must have {len(COLUMNS)} cells, got {len(row)}; quote a cell that holds a comma")
    cells = dict(zip(COLUMNS, row, strict=True))
    empty = [name for name, cell in cells.items() if not cell.strip()]
    if empty:
        raise UserError(f"{where}: column '{empty[0]}' is empty; fill it, or delete the row")
    try:
        value = float(cells["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: column 'value' must be a number, got '{cells['value']}'")
    if cells["trust"] not in TRUST:
        raise UserError(f"{where}: column 'trust' must be one of {', '.join(TRUST)}, got '{cells['trust']}'")
    return Figure(
        cells["table"],
        cells["system"],
        cells["variant"],
        cells["dataset"],
        cells["split"],
        cells["metric"],
        value,
        cells["source"],
        cast(Trust, cells["trust"]),
    )
