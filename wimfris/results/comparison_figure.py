"""The picture of a study: every run's mIoU, and the differences with both of their intervals."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from wimfris.metrics import ious
from wimfris.results.comparison import PAPERS_SET
from wimfris.results.figures import saved_figure
from wimfris.results.tables import BUILT_IN
from wimfris.runs.records import CONDITIONS

_FOUND, _OPEN, _PAPER = sns.color_palette("colorblind")[0], "0.45", sns.color_palette("colorblind")[1]
_ROW, _MARGINS = 0.3, 1.5  # inches
_REACH = 2.5  # how far an any-seed interval is drawn, in the widest of what else there is; beyond, an arrow


def draw(table: pd.DataFrame, records: pd.DataFrame, path: Path) -> None:
    """Draw a table of `Study.table` to a PNG, a line a row.

    Left the mIoU of every run and their mean. Right the differences in mIoU, in points: thick the interval for these
    seeds, thin that for any seed, an arrow where it goes on; in colour where the difference is separated from zero
    after correction, grey where it is undecided; a diamond is the paper's gain.
    """
    heights, names, blocks = _places(table)
    with saved_figure(path, (7.2, _MARGINS + _ROW * (max(heights) + 1))) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 3])
        scores = _scores(table, records)
        for height, row in zip(heights, table.to_dict("records"), strict=True):
            of_row = scores.get(row["variant"], [])
            left.scatter(of_row, [height] * len(of_row), s=16, color="0.3", zorder=3, linewidth=0)
            if of_row:
                left.plot([np.mean(of_row)] * 2, [height - 0.3, height + 0.3], color="0.3", linewidth=1.2)
        limit = _limit(table)
        for height, row in zip(heights, table.to_dict("records"), strict=True):
            _draw_difference(right, height, row, limit)
        right.axvline(0, color="0.3", linewidth=1, zorder=1)
        right.set_xlim(-1.05 * limit, 1.05 * limit)
        left.set_yticks(heights, names)
        for height, name in blocks:
            left.annotate(
                name,
                (0, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold",
            )
        left.set_ylim(max(heights) + 0.6, -0.6)
        left.set(title=f"mIoU, {table['split'].iloc[0]} (%)", xlabel="")
        others = sorted(set(table["baseline"]))
        right.set(title=f"Difference with {others[0]}" if len(others) == 1 else "Difference", xlabel="points of mIoU")
        first = table.iloc[0]
        figure.suptitle(f"{first['family']}: {first['dataset']}, scale {first['scale']}", fontsize=10)
        figure.legend(handles=_legend(table), loc="outside lower center", ncols=4, fontsize=8, handlelength=1.6)


def _places(table: pd.DataFrame) -> tuple[list[int], list[str], list[tuple[int, str]]]:
    """For every row its height and name, and the heights and names of the blocks above them."""
    heights, blocks, at, before = [], [], 0, ""
    for block in table["block"]:
        if block and block != before:
            blocks.append((at, block))
            at += 1
        heights.append(at)
        at, before = at + 1, block
    return heights, list(table["label"]), blocks


def _scores(table: pd.DataFrame, records: pd.DataFrame) -> dict[str, list[float]]:
    """Variant -> mIoU of each of its runs on the table's split, percent."""
    told = records[(records["split"] == table["split"].iloc[0]) & (records["condition"] == CONDITIONS[0])]
    told = told[told["variant"].isin(table["variant"])]
    told = told.assign(iou=ious(told["intersection"], told["union"]))
    means = told.groupby(["variant", "seed"], observed=True)["iou"].mean()
    return {str(variant): list(100 * of) for variant, of in means.groupby("variant", observed=True)}


def _limit(table: pd.DataFrame) -> float:
    """Points left and right of zero: all but the any-seed intervals fits, and these where they are not far longer."""
    core = table[["difference", "these_low", "these_high", "published_gain"]].abs().max().max()
    wide = table[["any_low", "any_high"]].abs().max().max()
    core, wide = (100 * (value if np.isfinite(value) else 0.0) for value in (core, wide))
    return max(min(wide, _REACH * core), core, 1.0)


def _draw_difference(axes: Axes, height: int, row: dict[Hashable, Any], limit: float) -> None:
    values = {name: 100 * row[name] for name in ("difference", "these_low", "these_high")}
    low, high = 100 * row["any_low"], 100 * row["any_high"]
    if np.isfinite(values["difference"]):
        colour = _OPEN if row["verdict"] == "undecided" else _FOUND
        if np.isfinite(low):
            axes.plot([max(low, -limit), min(high, limit)], [height] * 2, color=colour, linewidth=1, zorder=2)
            for end, marker in ((low, "<"), (high, ">")):
                if abs(end) > limit:
                    axes.plot(np.sign(end) * limit, height, marker=marker, color=colour, markersize=5, zorder=2)
        these = [values["these_low"], values["these_high"]]
        axes.plot(these, [height] * 2, color=colour, linewidth=3.5, solid_capstyle="butt", zorder=3)
        axes.plot(values["difference"], height, marker="o", color=colour, markersize=4.5, zorder=4)
    gain = 100 * row["published_gain"]
    if np.isfinite(gain):
        axes.plot(gain, height, marker="D", markersize=5, color="white", markeredgecolor=_PAPER, zorder=5)


def _set(table: pd.DataFrame) -> str:
    return f" ({PAPERS_SET})" if (table["dataset"] == BUILT_IN).any() else ""


def _legend(table: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=_OPEN, linewidth=3.5, label="these seeds, 95%"),
        Line2D([], [], color=_OPEN, linewidth=1, label="any seed, 95%"),
    ]
    if table["verdict"].isin(("higher", "lower")).any():
        handles.append(Line2D([], [], color=_FOUND, marker="o", label="separated from 0"))
    if (table["verdict"] == "undecided").any():
        handles.append(Line2D([], [], color=_OPEN, marker="o", label="undecided"))
    if table["published_gain"].notna().any():
        style = {"marker": "D", "linestyle": "", "color": "white", "markeredgecolor": _PAPER, "markersize": 5}
        handles.append(Line2D([], [], label=f"the paper's gain{_set(table)}", **style))  # type: ignore[arg-type]
    return handles
