"""The published figures that our results stand beside: `reports/published.csv`, typed. `reports/published.md` names
their sources and what trust means.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from wimfris.errors import UserError

PUBLISHED = Path("reports/published.csv")

Trust = Literal["high", "medium", "low"]
TRUST = get_args(Trust)


@dataclass(frozen=True)
class Figure:
    """One published figure: a row of the file."""

    table: str  # of the WIMFRIS paper, T1 .. T5; F6 is its figure
    system: str
    variant: str
    dataset: str
    split: str
    metric: str
    value: float  # percent; parameters in millions; alpha as it is
    source: str
    trust: Trust

    def __str__(self) -> str:
        """Its value, one decimal or as many as it was stated with."""
        return f"{self.value:.1f}" if round(self.value, 1) == self.value else f"{self.value:g}"


COLUMNS = tuple(Figure.__annotations__)
_KEY = COLUMNS[:6]


def read_published(path: Path = PUBLISHED) -> dict[tuple[str, ...], Figure]:
    """All figures by (table, system, variant, dataset, split, metric), in the file's order.

    Raises `UserError` where the file is missing, has other columns, or a row that is garbled or there twice.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or restore it with git") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: not a CSV file; restore it with git") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path}: the columns must be {','.join(COLUMNS)}, not {','.join(rows[0]) if rows else 'none'}")
    figures: dict[tuple[str, ...], Figure] = {}
    for number, row in enumerate(rows[1:], start=2):
        figure = _figure(row, f"{path}: row {number}")
        key = tuple(row[: len(_KEY)])
        if key in figures:
            raise UserError(f"{path}: row {number} repeats {' / '.join(key)}; keep the one that its source states")
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
    """The figure under this key, value in percent for mIoU and oIoU; None where no source worth naming states one.

    Raises `UserError` as `read_published`.
    """
    return read_published(path).get((table, system, variant, dataset, split, metric))


def _figure(row: list[str], where: str) -> Figure:
    if len(row) != len(COLUMNS):
        raise UserError(f"{where} has {len(row)} cells, not {len(COLUMNS)}; quote a cell that holds a comma")
    cells = dict(zip(COLUMNS, row, strict=True))
    empty = [name for name, cell in cells.items() if not cell.strip()]
    if empty:
        raise UserError(f"{where}: column '{empty[0]}' is empty; leave out a row that is not known")
    try:
        value = float(cells["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: column 'value' has '{cells['value']}', which is no number")
    if cells["trust"] not in TRUST:
        raise UserError(f"{where}: column 'trust' has '{cells['trust']}', none of {', '.join(TRUST)}")
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
