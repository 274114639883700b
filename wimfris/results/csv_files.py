"""Read committed CSV files, and refuse damaged ones in one line."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from wimfris.errors import UserError
from wimfris.files import read_bytes


def read_csv(path: Path, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """Return a CSV file as a frame. Raises UserError where it is missing, damaged, or lacks one of these columns."""
    try:
        text = read_bytes(path).decode("utf-8")
        if "\n<<<<<<< " in f"\n{text}":
            raise UserError(f"{path}: holds git's conflict markers; resolve the conflict")
        frame = pd.read_csv(StringIO(text), **options)
        _refuse_cut(text)
    except (ValueError, csv.Error) as error:  # pandas' own errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a CSV file ({reason}); restore it with `git checkout`") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise UserError(f"{path}: column '{missing[0]}' is missing; restore it with `git checkout`")
    return frame


def _refuse_cut(text: str) -> None:
    """Raise ValueError where the text ends within a line, or a row is shorter than the header: pandas fills it up."""
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    rows = csv.reader(StringIO(text, newline=""))
    columns = len(next(rows))
    for row in rows:
        if row and len(row) < columns:
            raise ValueError(f"line {rows.line_num} has {len(row)} of {columns} cells")
