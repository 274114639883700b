"""Markdown tables of the generated blocks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from wimfris.results.scores import LABELS

METRICS = {name: LABELS[name] for name in ("miou", "miou_sd", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90")}
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
