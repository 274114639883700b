"""Figure of a comparison table: the mIoU of every run, and the differences with both intervals."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from wimfris.results.comparisons import EXPLORATORY, PRIMARY
from wimfris.results.figures import saved_figure
from wimfris.results.intervals import draw_interval, padded, reach
from wimfris.results.published import BUILT_IN, PAPERS_SET
from wimfris.results.scores import run_scores

_SEPARATED, _OPEN, _PAPER = sns.color_palette("colorblind")[0], "0.45", sns.color_palette("colorblind")[1]
_ROW, _MARGINS = 0.3, 1.8  # inches


def draw(table: pd.DataFrame, records: pd.DataFrame, path: Path) -> None:
    """Draw a table of `Study.table` to a PNG, one line per row.

    On the left are the mIoU of every run (dots) and their mean (a tick). On the right are the differences in mIoU, in
    points: a thick line is the 95% interval for these seeds, a thin line the interval for any seed that decides, and an
    arrow marks an interval that goes on beyond the axes. Primary comparisons are squares, others dots; decided ones are
    coloured, and hollow ones have no verdict (one seed has none). A diamond is the paper's gain.
    """
    heights, names, blocks = _places(table)
    with saved_figure(path, (7.2, _MARGINS + _ROW * (max(heights) + 1))) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 3])
        scores = _scores(table, records)
        for height, row in zip(heights, table.to_dict("records"), strict=True):
            values = scores.get(row["variant"], [])
            left.scatter(values, [height] * len(values), s=16, color="0.3", zorder=3, linewidth=0)
            if values:
                left.plot([np.mean(values)] * 2, [height - 0.3, height + 0.3], color="0.3", linewidth=1.2)
        core = table[["difference", "these_low", "these_high", "published_gain"]].to_numpy(dtype=float)
        ends = reach(100 * core, 100 * table[["low", "high"]].to_numpy(dtype=float))
        for height, row in zip(heights, table.to_dict("records"), strict=True):
            _draw_difference(right, height, row, ends)
        right.axvline(0, color="0.3", linewidth=1, zorder=1)
        right.set_xlim(*padded(*ends))
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
        baselines = sorted(set(table["baseline"]))
        title = f"Row minus {baselines[0]}" if len(baselines) == 1 else "Row minus its baseline"
        right.set(title=title, xlabel="points of mIoU")
        first = table.iloc[0]
        figure.suptitle(f"{first['family']}: {first['dataset']}, scale {first['scale']}", fontsize=10)
        figure.legend(handles=_legend(table), loc="outside lower center", ncols=2, fontsize=8, handlelength=1.6)


def _places(table: pd.DataFrame) -> tuple[list[int], list[str], list[tuple[int, str]]]:
    """Return the height and label of every row, and the height and name of every block's heading."""
    heights, blocks, height, before = [], [], 0, ""
    for block in table["block"]:
        if block and block != before:
            blocks.append((height, block))
            height += 1
        heights.append(height)
        height, before = height + 1, block
    return heights, list(table["label"]), blocks


def _scores(table: pd.DataFrame, records: pd.DataFrame) -> dict[str, list[float]]:
    """Return variant -> mIoU of each of its runs on the table's split, in percent."""
    means = run_scores(records[records["variant"].isin(table["variant"])], table["split"].iloc[0])
    return {str(variant): list(100 * values) for variant, values in means.groupby("variant", observed=True)}


def _draw_difference(axes: Axes, height: int, row: dict[Hashable, Any], ends: tuple[float, float]) -> None:
    points = {name: 100 * row[name] for name in ("difference", "these_low", "these_high", "low", "high")}
    if np.isfinite(points["difference"]):
        colour = _SEPARATED if row["verdict"] in ("higher", "lower") else _OPEN
        for name, width, order in (("", 1, 2), ("these_", 3.5, 3)):
            low, high = points[f"{name}low"], points[f"{name}high"]
            draw_interval(axes, height, low, high, ends, color=colour, linewidth=width, zorder=order)
        marker = "s" if row["tier"] == PRIMARY else "o"
        face = colour if row["verdict"] else "white"
        axes.plot(points["difference"], height, marker=marker, color=colour, mfc=face, markersize=4.5, zorder=4)
    gain = 100 * row["published_gain"]
    if np.isfinite(gain):
        axes.plot(gain, height, marker="D", markersize=5, color="white", markeredgecolor=_PAPER, zorder=5)


def _legend(table: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color="0.3", marker="o", linestyle="", markersize=4, label="a run"),
        Line2D([], [], color="0.3", marker="|", linestyle="", markersize=10, label="mean of the runs"),
    ]
    if table["difference"].notna().any():
        handles.append(Line2D([], [], color="0.3", linewidth=3.5, label="95% interval, these seeds"))
    if table["low"].notna().any():
        handles.append(Line2D([], [], color="0.3", linewidth=1, label="interval for any seed"))
    for tier, marker in ((PRIMARY, "s"), (EXPLORATORY, "o")):
        if (table["tier"] == tier).any():
            handles.append(Line2D([], [], color="0.3", marker=marker, linestyle="", markersize=4.5, label=tier))
    compared = table.loc[table["difference"].notna(), "verdict"]
    for verdicts, colour, face, words in (
        (("higher", "lower"), _SEPARATED, _SEPARATED, "higher or lower"),
        (("undecided",), _OPEN, _OPEN, "undecided"),
        (("",), _OPEN, "white", "no verdict"),
    ):
        if compared.isin(verdicts).any():
            handle = Line2D([], [], color=colour, mfc=face, marker="o", linewidth=3.5, markersize=4.5)
            handle.set_label(words)
            handles.append(handle)
    if table["published_gain"].notna().any():
        data_set = f" ({PAPERS_SET})" if (table["dataset"] == BUILT_IN).any() else ""
        style = {"marker": "D", "linestyle": "", "color": "white", "markeredgecolor": _PAPER, "markersize": 5}
        handles.append(Line2D([], [], label=f"the paper's difference{data_set}", **style))  # type: ignore[arg-type]
    return handles
