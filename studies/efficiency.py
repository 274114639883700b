"""What does each system cost: parameters, operations, time and memory?

Question: what does the neck's window cost, and what do the adapters, beside the necks and adapters of ETRIS and DETRIS
at equal width and about equal trained parameters?

The paper states trained parameters alone (3.0M); its reviewers asked for operations, latency, throughput and memory.

    python studies/efficiency.py                    # about 6 minutes at scale tiny, on a machine that does nothing else
    python studies/efficiency.py --repetitions 0    # parameters and operations alone: half a minute

Nothing is trained: what a system costs does not depend on its weights. Parameters and operations are also given at
scale `base`, the paper's, where they are counted on a model without weights; times there need a GPU (`--scale base`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import Patch

from wimfris.cli.study import write_report
from wimfris.errors import UserError
from wimfris.measure.efficiency import (
    BATCHES,
    PARTS,
    TRAIN_BATCH,
    Measured,
    count_flops,
    machine,
    measure_apart,
    quartiles,
)
from wimfris.measure.parameters import blank_segmenter, parameters
from wimfris.results.figures import saved_figure
from wimfris.results.formats import Section
from wimfris.settings.params import Params, Settings, read_params

NAME, TITLE = "efficiency", "Efficiency"
QUESTION = "What do the window, the neck and the adapters cost, beside those of ETRIS and DETRIS?"
PAPER = "3.0M trained parameters in the adapters; no operations, times or memory."
ROWS = {  # variant -> label; those that params.yaml does not have are left out
    "full": "full (window 4)",
    "window_1": "window 1",
    "window_2": "window 2",
    "no_window": "no window",
    "mixing_attention": "window attention",
    "no_neck": "no neck",
    "none": "no adapters",
    "detris_adapters": "DETRIS adapters, HMF",
    "detris_adapters_detris_neck": "DETRIS adapters and neck",
    "detris_adapters_no_neck": "DETRIS adapters, no neck",
    "etris_adapters": "ETRIS adapters, HMF",
    "etris_adapters_etris_neck": "ETRIS adapters and neck",
    "etris_adapters_no_neck": "ETRIS adapters, no neck",
    "lora": "LoRA, HMF",
    "bottleneck": "plain adapters, HMF",
    "finetune": "finetuned, HMF",
}
PAPERS_SCALE = "base"
LEFT_TO_THE_FILES = ("text adapters, k", "vision adapters, k", "in backbones, k", "ms, batch 8", "MB, step")
ROUNDS = 3  # through all systems, so that a slow minute of the machine does not fall on one of them
REPETITIONS = 20  # a round


def counted(settings: Settings) -> dict[str, Any]:
    """Trained parameters by part, all parameters, and operations of one image by part."""
    segmenter = blank_segmenter(settings)
    trained, whole = parameters(segmenter), parameters(segmenter, trained=False)["total"]
    flops = count_flops(settings)
    return (
        {f"trained_{part.replace(' ', '_')}": number for part, number in trained.items()}
        | {"parameters": whole}
        | {f"gflops_{part}": flops[part] / 1e9 for part in (*PARTS, "adapters", "scan", "total")}
    )


def timed(rounds: Sequence[Measured]) -> dict[str, Any]:
    """Median and quartiles over all repetitions, and the largest memory of the rounds; milliseconds and MB."""
    found: dict[str, Any] = {"machine": machine(rounds[0]), "repetitions": sum(len(one.step) for one in rounds)}

    def add(name: str, seconds: list[float]) -> None:
        for part, value in zip(("", "_q1", "_q3"), quartiles(seconds), strict=True):
            found[f"{name}{part}"] = 1000 * value

    for batch in map(str, BATCHES):
        add(f"latency_ms_{batch}", [value for one in rounds for value in one.latency[batch]])
        add(f"neck_ms_{batch}", [value for one in rounds for value in one.neck[batch]])
        found[f"images_per_second_{batch}"] = 1000 * int(batch) / found[f"latency_ms_{batch}"]
    add("step_ms", [value for one in rounds for value in one.step])
    for name in (*map(str, BATCHES), "step"):
        held = [one.memory[name] for one in rounds]
        found[f"memory_mb_{name}"] = np.nan if None in held else max(value or 0 for value in held) / 1e6
    return found


def table(params: Params, repetitions: int) -> pd.DataFrame:
    """A row a system: `counted` and `timed` at the scale in use, and what is counted at the paper's (base_...)."""
    there = {variant: label for variant, label in ROWS.items() if variant in params.variants | params.extended}
    at_base = params.model_copy(update={"scale": PAPERS_SCALE})
    measured: dict[str, list[Measured]] = {variant: [] for variant in there}
    for number in range(ROUNDS if repetitions else 0):
        for variant in there:
            print(f"round {number + 1} of {ROUNDS}: {variant}", file=sys.stderr, flush=True)
            measured[variant].append(measure_apart(variant, params.scale, repetitions))
    rows = []
    for variant, label in there.items():
        settings = params.settings(variant)
        row = {"variant": variant, "label": label, "scale": params.scale, **counted(settings)}
        row |= {f"base_{name}": value for name, value in counted(at_base.settings(variant)).items()}
        rows.append(row | (timed(measured[variant]) if measured[variant] else {}))
    return pd.DataFrame(rows)


# --- as it is shown ---------------------------------------------------------------------------------------------------


def sections(frame: pd.DataFrame, dataset: str) -> list[Section]:
    """Times and sizes at the scale in use; sizes at the paper's."""
    scale, first = frame["scale"].iloc[0], frame.iloc[0]
    counted_how = (
        "GFLOPs are those of one image and sentence, two a multiply-add; elementwise operations are left out, the scan "
        "counts B L D (9 N + 2)."
    )
    shown = []
    cells = _sizes(frame, "", 1e3, "k", 1e-3, "MFLOPs")
    note = f"At scale {scale}: parameters in thousands, MFLOPs. {counted_how}"
    if "machine" in frame:
        cells["ms, batch 1"] = _spread(frame, "latency_ms_1")
        cells["neck, ms"] = _spread(frame, "neck_ms_1")
        cells["ms, batch 8"] = _spread(frame, "latency_ms_8")
        cells["images/s, batch 8"] = [f"{value:.0f}" for value in frame["images_per_second_8"]]
        cells["MB, batch 8"] = [_mb(value) for value in frame["memory_mb_8"]]
        cells[f"training step of {TRAIN_BATCH}, ms"] = _spread(frame, "step_ms")
        cells["MB, step"] = [_mb(value) for value in frame["memory_mb_step"]]
        note += (
            f" Times: medians over {first['repetitions']} repetitions in {ROUNDS} processes, quartiles in brackets, on "
            f"{first['machine']}. MB: the most held above what the process held without the model."
        )
    else:
        note += " Times were not taken."
    shown.append(Section(f"{TITLE} at scale {scale}, data set {dataset}", note, cells, left=("system",)))
    note = f"At scale {PAPERS_SCALE}, the paper's sizes: parameters in millions, GFLOPs, on models without weights."
    cells = _sizes(frame, "base_", 1e6, "M", 1.0, "GFLOPs")
    shown.append(Section(f"Parameters and operations at scale {PAPERS_SCALE}", note, cells, left=("system",)))
    return shown


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
    """Three figures where there are that many after the point, never fewer than all before it."""
    return "0" if value == 0 else f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _spread(frame: pd.DataFrame, name: str) -> list[str]:
    return [f"{row[name]:.1f} [{row[f'{name}_q1']:.1f}, {row[f'{name}_q3']:.1f}]" for row in frame.to_dict("records")]


def _mb(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.0f}"


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw to a PNG what a system costs, a bar a system: operations at the paper's scale beyond those of the frozen
    encoders, by part, and, where they were taken, median times of one image at the scale in use with their quartiles.
    """
    taken = "machine" in frame
    parts = {"adapters": "adapters", "neck": "neck", "decoder": "decoder", "projector": "projector"}
    colours = dict(zip(parts, sns.color_palette("colorblind", len(parts)), strict=True))
    heights = np.arange(len(frame))
    with saved_figure(path, (7.2, 1.0 + 0.24 * len(frame))) as figure:
        axes = figure.subplots(1, 1 + taken, sharey=True, squeeze=False)[0]
        left = np.zeros(len(frame))
        for part in parts:
            values = frame[f"base_gflops_{part}"].to_numpy()
            axes[0].barh(heights, values, left=left, color=colours[part], height=0.7)
            left = left + values
        frozen = (frame["base_gflops_text"] + frame["base_gflops_vision"] - frame["base_gflops_adapters"]).median()
        axes[0].set(title=f"scale {PAPERS_SCALE}", xlabel=f"GFLOPs beside the encoders' {frozen:.0f}")
        axes[0].set_yticks(heights, frame["label"])
        axes[0].invert_yaxis()
        if taken:
            medians = frame["latency_ms_1"]
            spread = np.stack([medians - frame["latency_ms_1_q1"], frame["latency_ms_1_q3"] - medians])
            neck = frame["neck_ms_1"]
            axes[1].barh(heights, medians, color="0.8", height=0.7, xerr=spread, error_kw={"linewidth": 0.8})
            axes[1].barh(heights, neck, color=colours["neck"], height=0.7)
            axes[1].set(title=f"scale {frame['scale'].iloc[0]}", xlabel="ms for one image, quartiles")
        for axis in axes:
            axis.grid(visible=False, axis="y")
        handles = [Patch(color=colours[part], label=label) for part, label in parts.items()]
        handles += [Patch(color="0.8", label="all else")] if taken else []
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def run(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=QUESTION, epilog=PAPER)
    parser.add_argument("--scale", help="another scale than params.yaml's")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help=f"of each timing in each of {ROUNDS} rounds; 0: no times"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    options = parser.parse_args(arguments)
    if options.repetitions < 0:
        raise UserError(f"--repetitions {options.repetitions}: at least 0")
    params = read_params().at_scale(options.scale)
    settings = params.settings()
    if options.dry_run:
        there = [variant for variant in ROWS if variant in params.variants | params.extended]
        print(f"{len(there)} systems at scale {params.scale}, {ROUNDS} rounds of {options.repetitions} repetitions:")
        print("\n".join(f"  {variant}" for variant in there))
        return
    frame = table(params, options.repetitions)
    intro = f"**Question.** {QUESTION}\n\n**The paper.** {PAPER}"
    shown = sections(frame, settings.data.name)
    write_report(
        settings.folder.name, NAME, TITLE, shown, frame, lambda path: draw(frame, path), intro, LEFT_TO_THE_FILES
    )


if __name__ == "__main__":
    try:
        run()
    except UserError as error:
        print(f"wimfris: {error}", file=sys.stderr)
        sys.exit(2)
