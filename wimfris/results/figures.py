"""Figures of finished runs: learning curves, the learned emphasis, a gallery of predictions.

The same input gives the same bytes on one installation of matplotlib: style and font are set here, and the files hold
no version.
"""

import hashlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wimfris.errors import UserError
from wimfris.files import replacing
from wimfris.results.scores import run_scores
from wimfris.runs.log import Event
from wimfris.settings.run import Run

Logs = Mapping[str, Sequence[Event]]
"""The name of a run, "<variant>-<seed>" -> the events of its log."""

LOSSES = {"loss": "Total loss", "contrast": "Text-to-pixel contrast", "dice": "Dice", "align": "Window alignment"}
"""Loss in a log's events -> its title."""

PUBLISHED_EMPHASIS = {(1, 5): (0.6, 0.8), (9, 11): (0.2, 0.4)}
"""First and last vision layer -> the range of alpha that the paper reports for ViT-B (F6 in reports/published.csv)."""

QUANTILES = {"90th percentile": 0.9, "median": 0.5, "10th percentile": 0.1, "lowest": 0.0}
"""The rows of the gallery, from top to bottom -> the quantile of the sentences' IoU that a row shows."""

_PUBLISHED_SCALE = "base"
_MARKERS = "os^DvPX"  # distinguish runs without colour
_CONTENT = "Content"  # the name of the PNG text chunk with the content's hash
_STYLE = {"font.family": "DejaVu Sans", "axes.titleweight": "bold", "legend.frameon": False, "grid.color": "0.9"}
_POINTS = 200  # of a loss curve: more are indistinguishable on the page
_PREDICTION = (0.8, 0.0, 0.55)  # a magenta that is rare in photographs and in the built-in scenes
_TINT = 0.4  # the opacity of a prediction: the object's own colour, which the sentence may name, stays recognisable
_DRAWN_COLOURS = 2**16  # a picture with more shows photos, which 256 colours would posterise
_PANEL = 1.9  # inches, the width of an example in the gallery
_LINE = 27  # characters of a sentence that fit above a panel


@dataclass(frozen=True)
class Example:
    """One prediction to show."""

    image: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H, W) bool
    prediction: np.ndarray  # (H, W) bool
    sentence: str
    iou: float  # a fraction
    label: str  # one of QUANTILES


def learning_curves(logs: Logs, path: Path, images: int | None = None) -> None:
    """Draw the losses by step and the validation mIoU by epoch to a PNG, one line per run.

    images: `train.validation_images` of the runs.

    Colours distinguish variants, or the seeds of a single variant. Losses are means over at most 200 stretches of
    steps, or those of the epochs if a run logged no step. A dot marks the best epoch of a run. Raises `UserError` if
    the logs hold no epoch.
    """
    epochs = _frame(logs, "epoch")
    if epochs.empty:
        raise UserError("no learning curves: the logs hold no finished epoch; train a run first with `dvc repro`")
    steps = pd.concat([_thinned(_frame({run: logs[run]}, "step", "epoch")) for run in logs], ignore_index=True)
    hue = "variant" if epochs["variant"].nunique() > 1 else "run"
    names = list(dict.fromkeys(epochs[hue]))
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    with saved_figure(path, (7.2, 4.6)) as figure:
        axes = figure.subplot_mosaic("aaabbb;ccddee")
        line: dict[str, Any] = {
            "hue": hue,
            "units": "run",
            "estimator": None,
            "palette": colours,
            "legend": False,
            "linewidth": 1.2,
        }
        for key, (loss, title) in zip("acde", LOSSES.items(), strict=True):
            if steps[loss].notna().any():
                sns.lineplot(steps, x="step", y=loss, ax=axes[key], **line)
                axes[key].set_yscale("log")  # the first steps would flatten the rest
            axes[key].set(title=title, xlabel="step", ylabel="")
            axes[key].xaxis.set_major_locator(MaxNLocator(4 if key in "cde" else 6, integer=True))
        epochs = epochs.assign(percent=100 * epochs["val_miou"])
        best = epochs.loc[epochs.groupby("run", sort=False)["percent"].idxmax()]
        sns.lineplot(epochs, x="epoch", y="percent", ax=axes["b"], **line)
        sns.scatterplot(
            best, x="epoch", y="percent", hue=hue, palette=colours, legend=False, s=34, zorder=3, ax=axes["b"]
        )
        of = "val" if images is None else f"the first {images} images of val"
        axes["b"].set(title=f"mIoU on {of} (%)", xlabel="epoch", ylabel="")
        axes["b"].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
        handles.append(Line2D([], [], color="0.3", marker="o", linestyle="", markersize=5, label="best epoch"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))


def draw_all_runs(records: pd.DataFrame, path: Path) -> None:
    """Draw the mIoU on val of every run to a PNG: a row a variant, best first, a colour a seed."""
    scores = (100 * run_scores(records, "val")).rename("percent").reset_index()
    order = scores.groupby("variant", observed=True)["percent"].mean().sort_values(ascending=False).index
    seeds = sorted(scores["seed"].unique())
    colours = dict(zip(seeds, sns.color_palette("colorblind", len(seeds)), strict=True))
    with saved_figure(path, (7.2, 1 + 0.16 * len(order))) as figure:
        axis = figure.subplots()
        style: dict[str, Any] = {"hue": "seed", "palette": colours, "legend": False, "jitter": False, "size": 5}
        sns.stripplot(scores, x="percent", y="variant", order=order, ax=axis, **style)
        axis.axvline(scores.loc[scores["variant"] == "full", "percent"].mean(), color="0.3", linewidth=1)
        axis.set(xlabel="mIoU on val, %", ylabel="")
        axis.tick_params(labelsize=7)
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=f"seed {seed}")
            for seed, colour in colours.items()
        ]
        handles.append(Line2D([], [], color="0.3", linewidth=1, label="mean of full"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def emphasis(learned: pd.DataFrame, path: Path, scale: str = "") -> None:
    """Draw the emphasis alpha that runs of one variant learned (f = x + alpha MSA(x)) to a PNG.

    On the left is alpha by layer after the last epoch, one point per run and their mean. On the right is alpha over
    epochs, one line per run and layer, coloured by depth. The paper's ranges are drawn only at scale `base`, for which
    it reports them. `learned` has the columns of `evidence.EMPHASIS_COLUMNS`. Raises `UserError` if it is empty.
    """
    if learned.empty:
        raise UserError(
            "no emphasis to draw: none of these runs learned it; select runs of a variant with emphasis, such as full"
        )
    course = learned.sort_values(["layer", "epoch", "run"], kind="stable")
    last = course[course["epoch"] == course.groupby("run")["epoch"].transform("max")]
    layers = sorted(set(course["layer"]))
    runs = sorted(course["run"].unique(), key=lambda run: (len(run), run))
    with saved_figure(path, (7.2, 3.2)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        handles: list[Artist] = []
        if scale == _PUBLISHED_SCALE:
            for (first, final), (low, high) in PUBLISHED_EMPHASIS.items():
                left.fill_between([first - 0.4, final + 0.4], low, high, color="0.85", zorder=0, linewidth=0)
            handles.append(Patch(color="0.85", label="paper, ViT-B"))
        means = last.groupby("layer")["alpha"].mean()
        left.plot(means.index, means.to_numpy(), color="0.3", linewidth=1.4, zorder=2)
        shifts = np.linspace(-1, 1, len(runs) + 2)[1:-1] * 0.2 * max(layers[-1] - layers[0], 1) / len(layers)
        for index, (run, colour) in enumerate(zip(runs, sns.color_palette("colorblind", len(runs)), strict=True)):
            points, marker = last[last["run"] == run], _MARKERS[index % len(_MARKERS)]
            x = points["layer"] + shifts[index]
            left.scatter(
                x, points["alpha"], color=[colour], marker=marker, s=30, edgecolor="white", linewidth=0.5, zorder=3
            )
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=run))
        handles.append(Line2D([], [], color="0.3", label="mean"))
        left.set(
            title="After the last epoch", xlabel="vision layer", ylabel=r"emphasis $\alpha$", xticks=layers, ylim=(0, 1)
        )
        left.margins(x=0.1)
        depth = dict(zip(layers, sns.color_palette("viridis", len(layers)), strict=True))
        for (layer, _), line in course.groupby(["layer", "run"]):
            right.plot(
                line["epoch"], line["alpha"], color=depth[layer], linewidth=1.4, marker="o" if len(line) == 1 else None
            )
        right.set(title="Over training", xlabel="epoch")
        right.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        by_layer = [Line2D([], [], color=colour, label=str(layer)) for layer, colour in depth.items()]
        right.legend(handles=by_layer, title="layer", loc="center left", bbox_to_anchor=(1, 0.5))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))


def gallery(examples: Sequence[Example], path: Path) -> None:
    """Draw predictions to a PNG, a row for each of `QUANTILES` in use: target outlined, prediction tinted.

    The sentence is above each image and its IoU below. Images may have any size; small ones are enlarged without
    smoothing. Raises `UserError` if there is no example, `ValueError` for an unknown label or a mask that has not the
    image's size.
    """
    if not examples:
        raise UserError("no gallery: there is no example to show; evaluate a run first with `dvc repro`")
    for example in examples:
        shapes = {example.image.shape[:2], example.target.shape, example.prediction.shape}
        if len(shapes) > 1 or example.label not in QUANTILES:
            raise ValueError(f"example '{example.sentence}': label '{example.label}', sizes {sorted(shapes)}")
    rows = [[example for example in examples if example.label == label] for label in QUANTILES]
    rows = [row for row in rows if row]
    columns = max(map(len, rows))
    heights = [
        max(
            _PANEL * min(example.image.shape[0] / example.image.shape[1], 1) + 0.14 * len(_lines(example.sentence))
            for example in row
        )
        for row in rows
    ]
    with saved_figure(path, (0.4 + _PANEL * columns, 0.5 + sum(heights) + 0.4 * len(rows)), colours=256) as figure:
        figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.05)
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for row, drawn in zip(axes, rows, strict=True):
            for axis in row[len(drawn) :]:
                axis.axis("off")
            for axis, example in zip(row, drawn, strict=False):
                _draw_example(axis, example)
            row[0].set_ylabel(drawn[0].label, fontsize=9, fontweight="bold")
        handles = [
            Line2D([], [], color="black", linewidth=1.6, label="target"),
            Patch(facecolor=(*_PREDICTION, _TINT), edgecolor=_PREDICTION, label="prediction"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.4)


@contextmanager
def saved_figure(path: Path, inches: tuple[float, float], *, colours: int = 64) -> Iterator[Figure]:
    """Yield a figure in this module's style, independent of pyplot, and save it to `path` when the block ends.

    The PNG has a palette of so many colours, which takes a quarter of the bytes, unless it shows photos. It names the
    hash of its content. A picture with the same content is left alone: another machine's font renderer would change its
    bytes and nothing that a reader sees.
    """
    with matplotlib.style.context(
        ["default", sns.plotting_context("paper"), sns.axes_style("whitegrid"), _STYLE], after_reset=True
    ):
        figure = Figure(figsize=inches, dpi=160, layout="constrained")
        yield figure
        content = _content_hash(figure)
        if _content_of(path) == content:
            return
        drawn = BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    if picture.getcolors(_DRAWN_COLOURS) is not None:
        picture = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    chunks = PngInfo()
    chunks.add_text(_CONTENT, content)
    with replacing(path) as temporary:
        picture.save(temporary, format="png", optimize=True, pnginfo=chunks)


def _content_hash(figure: Figure) -> str:
    """Return a hash of the figure's texts, shapes and positions to a tenth of a point: its SVG, with text as text."""
    drawn = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wimfris"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", drawn.getvalue().decode("utf-8"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content_of(path: Path) -> str | None:
    """Return the content hash that a PNG names, or None."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            content: str | None = picture.info.get(_CONTENT)
            return content
    except OSError:
        return None


def _frame(logs: Logs, *kinds: str) -> pd.DataFrame:
    """Return the events of the first of these kinds that each run has, one a row, with run, variant and all columns."""
    rows = []
    for run, events in logs.items():
        candidates = ([event for event in events if event["event"] == kind] for kind in kinds)
        first = next(filter(None, candidates), [])
        rows += [{"run": run, "variant": Run.parse(run).variant, **event} for event in first]
    columns = ["run", "variant", "epoch", "step", *LOSSES, "val_miou", "emphasis"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _thinned(steps: pd.DataFrame) -> pd.DataFrame:
    """Average one run's events over at most `_POINTS` stretches of equal length."""
    stretch = np.arange(len(steps)) // max(1, ceil(len(steps) / _POINTS))
    means = steps[["step", *LOSSES]].astype(float).groupby(stretch).mean()
    return means.assign(run=steps["run"].iloc[0], variant=steps["variant"].iloc[0]) if len(steps) else means


def _draw_example(axis: Axes, example: Example) -> None:
    image = example.image.astype(float) / 255
    image[example.prediction] = (1 - _TINT) * image[example.prediction] + _TINT * np.array(_PREDICTION)
    axis.imshow(image, interpolation="nearest")
    _outline(axis, example.prediction, [(_PREDICTION, 1.6)])
    _outline(axis, example.target, [("white", 2.8), ("black", 1.3)])
    axis.set(xticks=[], yticks=[])
    # A dollar sign in a sentence does not start a formula.
    axis.set_title("\n".join(_lines(example.sentence)), fontsize=8, fontweight="normal", parse_math=False)
    axis.set_xlabel(f"IoU {100 * example.iou:.1f}%", fontsize=8)


def _lines(sentence: str) -> list[str]:
    return textwrap.wrap(" ".join(sentence.split()), _LINE, max_lines=4, placeholder=" …") or ["(no sentence)"]


def _outline(axis: Axes, mask: np.ndarray, strokes: Sequence[tuple[Any, float]]) -> None:
    """Draw the outline of a mask along the edges of its pixels, including those at the image's border."""
    padded = np.pad(mask, 1)
    # Padded pixel (row, column) is centred at (column - 1, row - 1); its lower and right edges are half a pixel away.
    row, column = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([np.stack([column - 1.5, row - 0.5], 1), np.stack([column - 0.5, row - 0.5], 1)], 1)
    row, column = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([np.stack([column - 0.5, row - 1.5], 1), np.stack([column - 0.5, row - 0.5], 1)], 1)
    edges = np.concatenate([level, upright])
    for colour, linewidth in strokes:
        axis.add_collection(
            LineCollection(list(edges), colors=[colour], linewidths=linewidth, capstyle="projecting", clip_on=False)
        )
