"""What each system costs in tables and a picture, as `wimfris.measure.efficiency` measured it."""

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

PAPERS_SCALE = "base"
"""The scale of the columns that begin with `base_`."""

LEFT_OUT = ("text adapters, k", "vision adapters, k", "in backbones, k", "ms, batch 8", "MB, step")


def efficiency_report(inputs: Inputs, labels: Mapping[str, str]) -> Report:
    """Show and draw efficiency.csv; labels: variant -> its name in tables and picture."""
    frame = inputs.measures["efficiency.csv"]
    frame = frame[frame["variant"].isin(labels)].reset_index(drop=True)
    frame.insert(1, "label", [labels[variant] for variant in frame["variant"]])
    sections = [section_in_use(frame, inputs.settings.data.name), section_of_paper(frame)]
    table = frame.drop(columns=["processes", "step_batch"], errors="ignore")
    return Report(sections, table, partial(draw, frame), columns_left_out=LEFT_OUT)


def section_in_use(frame: pd.DataFrame, data: str) -> Section:
    """Return sizes, operations and, where they were taken, times at the scale in use."""
    first = frame.iloc[0]
    cells = _sizes(frame, "", 1e3, "k", 1e-3, "MFLOPs")
    note = (
        f"At scale {first['scale']}: parameters in thousands, MFLOPs. GFLOPs are those of one image and sentence, two "
        "a multiply-add; elementwise operations are left out, the scan counts B L D (9 N + 2)."
    )
    if "machine" in frame:
        cells["ms, batch 1"] = _spread(frame, "latency_ms_1")
        cells["neck, ms"] = _spread(frame, "neck_ms_1")
        cells["ms, batch 8"] = _spread(frame, "latency_ms_8")
        cells["images/s, batch 8"] = [f"{value:.0f}" for value in frame["images_per_second_8"]]
        cells["MB, batch 8"] = _megabytes(frame["memory_mb_8"])
        cells[f"training step of {first['step_batch']}, ms"] = _spread(frame, "step_ms")
        cells["MB, step"] = _megabytes(frame["memory_mb_step"])
        note += (
            f" Times: medians over {first['repetitions']} repetitions in {first['processes']} processes, quartiles in "
            f"brackets, on {first['machine']}. Times whose quartiles overlap are not ranked. MB: the most held above "
            "what the process held without the model."
        )
    else:
        note += " Times were not taken."
    return Section(f"Efficiency at scale {first['scale']}, data set {data}", note, cells, left=("system",))


def section_of_paper(frame: pd.DataFrame) -> Section:
    """Return sizes and operations at the paper's scale."""
    note = f"At scale {PAPERS_SCALE}, the paper's sizes: parameters in millions, GFLOPs, on models without weights."
    cells = _sizes(frame, "base_", 1e6, "M", 1.0, "GFLOPs")
    return Section(f"Parameters and operations at scale {PAPERS_SCALE}", note, cells, left=("system",))


def _sizes(frame: pd.DataFrame, prefix: str, unit: float, letter: str, giga: float, flops: str) -> pd.DataFrame:
    cells = pd.DataFrame({"system": frame["label"]})
    for name, column in (
        ("text adapters", "trained_text_adapters"),
        ("vision adapters", "trained_vision_adapters"),
        ("in backbones", "trained_backbones"),
        ("neck", "trained_neck"),
        ("trained", "trained_total"),
        ("all", "parameters"),
    ):
        cells[f"{name}, {letter}"] = [_short(value / unit) for value in frame[f"{prefix}{column}"]]
    for name, part in (("", "total"), ("adapters' ", "adapters"), ("neck's ", "neck"), ("scans' ", "scan")):
        cells[f"{name}{flops}"] = [_short(value / giga) for value in frame[f"{prefix}gflops_{part}"]]
    return cells


def _short(value: float) -> str:
    """Round to three significant digits, but never before the decimal point."""
    return "0" if value == 0 else f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _spread(frame: pd.DataFrame, name: str) -> list[str]:
    return [f"{row[name]:.1f} [{row[f'{name}_q1']:.1f}, {row[f'{name}_q3']:.1f}]" for row in frame.to_dict("records")]


def _megabytes(values: pd.Series) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.0f}" for value in values]


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw to a PNG, a bar a system: operations at the paper's scale beside those of the frozen encoders, by part, and,
    where times were taken, the median time of one image at the scale in use with its quartiles.
    """
    timed = "machine" in frame
    parts = ("adapters", "neck", "decoder", "projector")
    colours = dict(zip(parts, sns.color_palette("colorblind", len(parts)), strict=True))
    heights = np.arange(len(frame))
    with saved_figure(path, (7.2, 1.0 + 0.24 * len(frame))) as figure:
        axes = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
        left = np.zeros(len(frame))
        for part in parts:
            values = frame[f"base_gflops_{part}"].to_numpy()
            axes[0].barh(heights, values, left=left, color=colours[part], height=0.7)
            left = left + values
        frozen = (frame["base_gflops_text"] + frame["base_gflops_vision"] - frame["base_gflops_adapters"]).median()
        axes[0].set(title=f"scale {PAPERS_SCALE}", xlabel=f"GFLOPs beside the encoders' {frozen:.0f}")
        axes[0].set_yticks(heights, frame["label"])
        axes[0].invert_yaxis()
        if timed:
            medians = frame["latency_ms_1"]
            spread = np.stack([medians - frame["latency_ms_1_q1"], frame["latency_ms_1_q3"] - medians])
            axes[1].barh(heights, medians, color="0.8", height=0.7, xerr=spread, error_kw={"linewidth": 0.8})
            axes[1].barh(heights, frame["neck_ms_1"], color=colours["neck"], height=0.7)
            axes[1].set(title=f"scale {frame['scale'].iloc[0]}", xlabel="ms for one image")
        for axis in axes:
            axis.grid(visible=False, axis="y")
        handles: list[Artist] = [Patch(color=colour, label=part) for part, colour in colours.items()]
        if timed:
            handles.append(Patch(color="0.8", label="all else"))
            handles.append(Line2D([], [], color="0.3", linewidth=0.8, label="quartiles of the whole time"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, columnspacing=1)
