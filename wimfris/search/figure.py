"""The figure of a search: its history, the importances, mIoU by each setting, and the fronts.

Optuna's own plots need a study, not the committed evidence; they make one figure for each panel, and they show a set of
layers as one parameter for each layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wimfris.results.figures import saved_figure
from wimfris.search.report import SAMPLERS, Evidence, finished, flat, front, method, text

_COLUMNS = 3
_PALETTE = sns.color_palette("colorblind")
_MARKERS = {"complete": "o", "pruned": "X"}
_COSTS = {"parameters": ("thousand parameters", 1e3), "latency": ("ms per image", 1.0)}


def draw(searches: Sequence[Evidence], path: Path) -> None:
    """Draw the searches of a space to a PNG: those of one objective, if any, and the fronts of the others."""
    shown = [search for search in searches if not search["against"]] or list(searches)
    scores = _Scores(shown)
    panels: list[Callable[[Axes], None]] = [scores.draw_history]
    if any(search.get("importances") for search in shown):
        panels.append(partial(_draw_importances, shown))
    panels += [partial(scores.draw_setting, name) for name in scores.settings]
    panels += [partial(_draw_front, search) for search in searches if search["against"]]
    rows = -(-len(panels) // _COLUMNS)
    with saved_figure(path, (7.2, 0.5 + 2.1 * rows)) as figure:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis)
        figure.legend(handles=scores.handles(), loc="outside lower center", ncols=len(shown) + 2)


def _colours(searches: Sequence[Evidence]) -> Mapping[str, Any]:
    return dict(zip(map(method, searches), _PALETTE, strict=False))


@dataclass
class _Scores:
    """The scores of all trials that have one. A pruned trial's is that of its last epoch."""

    searches: Sequence[Evidence]

    def __post_init__(self) -> None:
        self.colours = _colours(self.searches)
        self.reference = 100 * self.searches[0]["reference"]["metrics"]["val"]["miou"]
        self.declared = dict(flat(self.searches[0]["declared"]))
        rows = []
        for search in self.searches:
            for number, trial in enumerate(search["trials"]):
                values = trial["values"] or [*trial["epochs"].values()][-1:]
                if trial["state"] in _MARKERS and values:
                    row = {"method": method(search), "trial": number, "state": trial["state"], "score": 100 * values[0]}
                    rows.append(row | dict(flat(trial["overrides"])))
        self.points = pd.DataFrame(rows)
        self.settings = [name for name in self.points.columns[4:] if self.points[name].map(text).nunique() > 1]

    def handles(self) -> list[Line2D]:
        """Return the entries of the legend."""
        handles = [Line2D([], [], color=c, marker="o", linestyle="", label=name) for name, c in self.colours.items()]
        handles.append(Line2D([], [], color="0.3", linewidth=1, label="full, trained as long"))
        if "pruned" in set(self.points["state"]):
            handles.append(Line2D([], [], color="0.5", marker=_MARKERS["pruned"], linestyle="", label="pruned"))
        return handles

    def draw_history(self, axis: Axes) -> None:
        self._scatter(axis, self.points, "trial")
        for name, trials in self.points[self.points["state"] == "complete"].groupby("method", sort=False):
            axis.step(trials["trial"], trials["score"].cummax(), where="post", color=self.colours[str(name)])
        axis.set(title="History, and best so far", xlabel="trial")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    def draw_setting(self, name: str, axis: Axes) -> None:
        """Draw the scores over a setting: a number, or categories. A set of layers has a point for each layer."""
        points = self.points.explode(name)
        if not points[name].map(lambda value: isinstance(value, float)).any():
            names = sorted(set(points[name].map(text)), key=lambda value: (not value.isdigit(), value.zfill(9)))
            shift = {label: 0.16 * k for k, label in enumerate(self.colours)}
            points = points.assign(**{name: points[name].map(text).map(names.index) + points["method"].map(shift)})
            axis.set_xticks(range(len(names)), names)
        self._scatter(axis, points, name)
        if self.declared.get(f"{name}.log"):
            axis.set_xscale("log")
        axis.set(title=_short(name), xlabel="layer with an adapter" if name.endswith(".layers") else "")

    def _scatter(self, axis: Axes, points: pd.DataFrame, x: str) -> None:
        style: dict[str, Any] = {"hue": "method", "palette": self.colours, "style": "state", "markers": _MARKERS}
        sns.scatterplot(points, x=x, y="score", ax=axis, s=16, linewidth=0, alpha=0.7, legend=False, **style)
        axis.axhline(self.reference, color="0.3", linewidth=1)
        axis.set(xlabel="", ylabel="mIoU on val (%)")


def _draw_importances(searches: Sequence[Evidence], axis: Axes) -> None:
    names = list(dict.fromkeys(path for search in searches for path in search.get("importances", {})))
    colours = _colours(searches)
    for k, search in enumerate(searches):
        shares = [search.get("importances", {}).get(name, 0) for name in names]
        axis.barh(np.arange(len(names)) + 0.35 * k, shares, height=0.35, color=colours[method(search)])
    axis.set_yticks(np.arange(len(names)), [_short(name) for name in names], fontsize=6)
    axis.invert_yaxis()
    axis.set(title="Importances", xlabel="share")


def _draw_front(search: Evidence, axis: Axes) -> None:
    label, unit = _COSTS[search["against"]]
    for trials, form, colour in ((finished(search), "o", "0.6"), (front(search), "o-", _PALETTE[3])):
        values = np.array([trial["values"] for trial in trials]).reshape(-1, 2)
        axis.plot(values[:, 1] / unit, 100 * values[:, 0], form, color=colour, markersize=4)
    axis.set(title=f"Front, {SAMPLERS[search['sampler']]}", xlabel=label, ylabel="mIoU on val (%)")


def _short(name: str) -> str:
    return name.split(".", 1)[1]
