"""The decay of the text token in tables and a picture, as `wimfris.measure.decay` measured it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wimfris.results.figures import saved_figure
from wimfris.results.formats import Section
from wimfris.results.measured import Inputs, Report
from wimfris.results.published import built_in_note


def decay_report(inputs: Inputs, labels: Mapping[str, str]) -> Report:
    """Show decay.csv, and draw decay-curves.csv with it; labels: variant -> its name in table and picture."""
    summary, curves = inputs.measures["decay.csv"], inputs.measures["decay-curves.csv"]
    data, scale = inputs.settings.data.name, inputs.settings.scale
    kernel = int(summary["fitted_from"].iloc[0])
    note = (
        "Means over seeds, in brackets the range of seeds. last / first: the norm at the window's last token over that "
        f"at its first. The rate is fitted to log norm from position {kernel} to the last, where the text is in the "
        "state alone; half after: tokens over which that rate halves the norm. The bound's rate is lambda = max "
        f"exp(Delta A), the median over sequences.{built_in_note(data, scale)}"
    )
    title = f"Decay of the text token: {data}, scale {scale}, split val"
    section = Section(title, note, cells(summary, labels), left=("window", "scan"))
    return Report([section], summary, partial(draw, curves, labels, kernel))


def cells(summary: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """Return the cells of the table: means over seeds, their range in brackets."""
    rows = []
    for (variant, scan), part in summary.groupby(["variant", "scan"], sort=False):
        rows.append(
            {
                "window": labels[str(variant)],
                "scan": str(scan),
                "seeds": ", ".join(map(str, part["seed"])),
                "sequences": str(part["sequences"].iloc[0]),
                "tokens": str(part["tokens"].iloc[0]),
                "last / first": _mean_and_range(100 * part["last_share"], "{:.3g}%"),
                "rate a token": _mean_and_range(part["rate"], "{:.3f}"),
                "5 to 95% of sequences": " to ".join(filter(None, map(_mean, (part["rate_low"], part["rate_high"])))),
                "R²": _mean(part["explained"], "{:.2f}"),
                "half after": _mean_and_range(part["half"], "{:.1f}"),
                "bound's rate": _mean_and_range(part["bound_rate"], "{:.4f}"),
                "bound / measured, last": _mean(part["bound_over_last"], "{:.2g}"),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: pd.Series, form: str = "{:.3f}") -> str:
    """Return the mean over seeds in this form; empty where nothing could be fitted."""
    return "" if values.isna().all() else form.format(values.mean())


def _mean_and_range(values: pd.Series, form: str) -> str:
    mean = _mean(values, form)
    return f"{mean} [{form.format(values.min())}, {form.format(values.max())}]" if mean and len(values) > 1 else mean


def draw(curves: pd.DataFrame, labels: Mapping[str, str], kernel: int, path: Path) -> None:
    """Draw the norms against t to a PNG, a panel a scan, a colour a window size, all relative to the norm at t = 1.

    A line is a seed, the band the 5 to 95% range of sequences, the dashed line the bound. Shaded are the positions that
    a convolution of this kernel sees.
    """
    scans = list(dict.fromkeys(curves["scan"]))
    colours = dict(zip(labels, sns.color_palette("colorblind", len(labels)), strict=True))
    with saved_figure(path, (7.2, 3.6)) as figure:
        axes = figure.subplots(1, len(scans), sharey=True, sharex=True, squeeze=False)[0]
        for axis, scan in zip(axes, scans, strict=True):
            axis.axvspan(0.5, kernel - 0.5, color="0.9", zorder=0, linewidth=0)
            for variant in reversed(list(labels)):  # short curves lie above long ones
                part = curves[(curves["variant"] == variant) & (curves["scan"] == scan)]
                mean = np.exp(np.log(part.set_index("t")[["low", "high", "bound"]]).groupby("t").mean())
                style = {"color": colours[variant], "marker": "o" if len(mean) < 5 else None, "markersize": 3}
                axis.fill_between(
                    mean.index, mean["low"], mean["high"], color=colours[variant], alpha=0.15, linewidth=0
                )
                for _, seed in part.groupby("seed"):
                    axis.plot(seed["t"], seed["share"], linewidth=1.2, **style)
                axis.plot(mean.index, mean["bound"], color=colours[variant], linewidth=1, linestyle="--")
            axis.set(yscale="log", title=scan, xlabel="position t after the text token")
        axes[0].set_ylabel(r"$\|\partial y_t / \partial\,\mathrm{text}\|$, relative to t = 1")
        axes[0].set_ylim(curves["low"].min() / 2, curves[["bound", "high"]].max().max() * 2)
        lengths = curves.groupby("variant")["t"].nunique()
        handles: list[Artist] = [
            Line2D([], [], color=colours[name], marker="o" if lengths[name] < 5 else None, markersize=3, label=label)
            for name, label in labels.items()
            if name in lengths
        ]
        handles.append(Line2D([], [], color="0.3", linestyle="--", label="the bound"))
        band = "5 to 95% of sequences, in the window's colour"
        handles.append(Patch(color=colours[list(labels)[-1]], alpha=0.25, label=band))
        handles.append(Patch(color="0.9", label="seen by the convolution"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1)
