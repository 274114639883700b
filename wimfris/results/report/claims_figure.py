"""Forest plot of the claims: every primary comparison with the interval that decides it, and the claim's margin."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wimfris.results.claims import Verdict
from wimfris.results.comparisons import ALPHA
from wimfris.results.figures import saved_figure
from wimfris.results.intervals import draw_interval, padded, reach
from wimfris.results.plan import Plan
from wimfris.results.report.claims_tables import METRICS

_PALETTE = sns.color_palette("colorblind")
_COLOURS: dict[str, Any] = {
    "reproduced": _PALETTE[2],
    "reproduced, but smaller than the paper's": _PALETTE[9],
    "contradicted": _PALETTE[3],
    "no effect of the paper's size": _PALETTE[0],
    "undecided": "0.45",
}
_ROW, _MARGINS = 0.27, 1.5  # inches
_WIDTH = 42  # characters of a line of a claim's name, of which a row holds two


def claim_rows(verdicts: Sequence[Verdict], plan: Plan) -> pd.DataFrame:
    """Return one row per primary comparison of the claims, in points of its metric, or in alpha for the emphasis.

    Columns: claim, decision, comparison, metric, tier, look, difference, low, high, margin.
    """
    rows = []
    for verdict in verdicts:
        for row in verdict.rows:
            unit = 1 if row["metric"] == ALPHA else 100
            against = "first minus last layer" if row["metric"] == ALPHA else f"against {plan.label(row['rival'])}"
            rows.append(
                {"claim": verdict.claim.claim, "decision": verdict.decision, "comparison": against}
                | {name: row[name] for name in ("metric", "tier", "look")}
                | {name: unit * row[name] for name in ("difference", "low", "high")}
                | {"margin": unit * verdict.margin}
            )
    columns = ["claim", "decision", "comparison", "metric", "tier", "look", "difference", "low", "high", "margin"]
    return pd.DataFrame(rows, columns=columns)


def draw_claims(rows: pd.DataFrame, path: Path) -> None:
    """Draw `claim_rows` to a PNG: a panel per metric, a line per comparison below the claim's name.

    A line is the interval that decides, an arrow marks one that goes on beyond the axis, and a band is the margin. The
    colour is that of the claim's decision. A hollow square is of seeds that decide nothing, before the first look.
    """
    metrics = list(dict.fromkeys(rows["metric"]))
    parts = [rows[rows["metric"] == metric] for metric in metrics]
    sizes = [len(part) + part["claim"].nunique() for part in parts]
    with saved_figure(path, (7.2, _MARGINS + _ROW * sum(sizes))) as figure:
        axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=sizes)[:, 0]
        for axis, metric, part in zip(axes, metrics, parts, strict=True):
            _draw_panel(axis, part)
            points = f"points of {METRICS.get(metric, metric)}, the claim's system minus the rival"
            axis.set_xlabel("alpha" if metric == ALPHA else points)
        tiers = " and ".join(dict.fromkeys(rows["tier"]))
        decide = "the intervals that decide" if (rows["look"] > 0).all() else "intervals of the seeds so far"
        figure.suptitle(f"The paper's claims: {tiers} tier, {decide}", fontsize=10)
        figure.legend(handles=_legend(rows), loc="outside lower center", ncols=2, fontsize=8, handlelength=1.6)


def _draw_panel(axis: Axes, part: pd.DataFrame) -> None:
    ends = reach(part[["difference", "margin"]].to_numpy(dtype=float), part[["low", "high"]].to_numpy(dtype=float))
    heights, names, height = [], [], 0
    for claim, rows in part.groupby("claim", sort=False):
        heading = axis.annotate(
            fill(str(claim).removesuffix("."), _WIDTH),
            (0.01, height),
            xycoords=("figure fraction", "data"),
            va="center",
            fontsize=7.6,
            linespacing=0.95,
            fontweight="bold",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        heading.set_in_layout(False)  # it may stretch over the panel
        margin, last = rows["margin"].iloc[0], height + len(rows)
        axis.fill_between([-margin, margin], height + 0.5, last + 0.5, color="0.88", zorder=0, linewidth=0)
        for row in rows.to_dict("records"):
            height += 1
            colour, filled = _COLOURS[row["decision"]], row["look"] > 0
            draw_interval(axis, height, row["low"], row["high"], ends, color=colour, linewidth=1.8, zorder=3)
            face = colour if filled else "white"
            axis.plot(row["difference"], height, "s", color=colour, markerfacecolor=face, markersize=4.5, zorder=4)
            heights.append(height)
            names.append(row["comparison"])
        height += 1
    axis.axvline(0, color="0.3", linewidth=1, zorder=1)
    axis.set(ylim=(height - 0.4, -0.6), xlim=padded(*ends))
    axis.set_yticks(heights, names)
    axis.grid(visible=False, axis="y")


def _legend(rows: pd.DataFrame) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, marker="s", markersize=4.5, linewidth=1.8, label=decision)
        for decision, colour in _COLOURS.items()
        if (rows["decision"] == decision).any()
    ]
    if (rows["look"] == 0).any():
        style: dict[str, Any] = {"linestyle": "", "color": "0.3", "markerfacecolor": "white", "markersize": 4.5}
        handles.append(Line2D([], [], marker="s", label="no look yet: these seeds decide nothing", **style))
    if np.isfinite(rows["margin"]).any():
        handles.append(Patch(color="0.88", label="within the margin of the claim"))
    return handles
