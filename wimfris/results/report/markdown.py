"""Markdown tables of the generated blocks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

METRICS = {
    "miou": "mIoU",
    "miou_sd": "SD",
    "oiou": "oIoU",
    "pr50": "Pr@0.5",
    "pr60": "Pr@0.6",
    "pr70": "Pr@0.7",
    "pr80": "Pr@0.8",
    "pr90": "Pr@0.9",
}
"""The columns of a table of results, and their names."""

SHORT = ("miou", "oiou", "pr50", "pr70", "pr90")
"""The columns of a short table."""


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table whose first columns are of words and whose others are of numbers."""
    align = ["left" if column < words else "right" for column in range(len(header))]
    text = tabulate(list(rows), headers=header, tablefmt="pipe", disable_numparse=True, colalign=align)
    return re.sub(r" {2,}", " ", re.sub(r"-{4,}", "---", text))


def numbers(row: Mapping[Any, Any], metrics: Iterable[str]) -> list[str]:
    """Return these metrics of a row in percent, and an empty cell for a missing one."""
    return ["" if pd.isna(row[metric]) else f"{100 * row[metric]:.1f}" for metric in metrics]
