"""`wimfris measure efficiency`: parameters, operations, time and memory of every system.

Nothing is trained. At scale `base`, the paper's, parameters and operations are counted on a model without weights.
"""

import platform
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.flops import PARTS, count_flops
from wimfris.measure.parameters import parameters
from wimfris.measure.timing import BATCHES, TRAIN_BATCH, Timings, quartiles, time_apart
from wimfris.results.analyses.efficiency import PAPERS_SCALE
from wimfris.results.measured import write_measure
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings

SYSTEMS = (
    "full",
    "window_1",
    "window_2",
    "no_window",
    "passes_2",
    "windows_2_4_8_grid",
    "bidirectional",
    "cross",
    "text_words",
    "mixing_ssd",
    "mixing_attention",
    "no_neck",
    "none",
    "detris_adapters",
    "detris_adapters_detris_neck",
    "detris_adapters_no_neck",
    "etris_adapters",
    "etris_adapters_etris_neck",
    "etris_adapters_no_neck",
    "lora",
    "bottleneck",
    "pwam",
    "finetune",
)
"""The variants that are measured; those that params.yaml does not have are left out."""

ROUNDS = 3  # through all systems, so that a slow minute of the machine does not fall on one of them
REPETITIONS = 20  # a round


def measure_efficiency(params: Params, repetitions: int = REPETITIONS, note: str = "") -> None:
    """Write reports/measures/<set>-<scale>/efficiency.csv, a row a system; note: what else ran on the machine.

    Columns: variant, scale; trained_<part>, parameters, gflops_<part> at the scale in use and, after `base_`, at the
    paper's; machine, processes, step_batch, repetitions; latency_ms_<batch>, neck_ms_<batch> and step_ms with their
    quartiles _q1 and _q3; images_per_second_<batch>; memory_mb_<batch or step>. Those from `machine` on are left out
    with 0 repetitions. Raises UserError where the device is missing.
    """
    systems = [variant for variant in SYSTEMS if variant in params.all_variants]
    timings: dict[str, list[Timings]] = {variant: [] for variant in systems}
    for number in range(ROUNDS if repetitions else 0):
        for variant in systems:
            print(f"round {number + 1} of {ROUNDS}: {variant}", file=sys.stderr, flush=True)
            timings[variant].append(time_apart(variant, params.scale, repetitions))
    at_papers_scale = params.model_copy(update={"scale": PAPERS_SCALE})
    rows = []
    for variant in systems:
        row = {"variant": variant, "scale": params.scale, **counts(params.settings(variant))}
        row |= {f"base_{name}": value for name, value in counts(at_papers_scale.settings(variant)).items()}
        if repetitions:
            row |= summary(timings[variant])
            row["machine"] = "; ".join(filter(None, [row["machine"], note]))
        rows.append(row)
    write_measure(pd.DataFrame(rows), params.settings(), "efficiency.csv")


def counts(settings: Settings) -> dict[str, Any]:
    """Return trained parameters by part, all parameters, and the GFLOPs of one image and sentence by part."""
    segmenter, flops = blank_segmenter(settings), count_flops(settings)
    trained = {f"trained_{part.replace(' ', '_')}": number for part, number in parameters(segmenter).items()}
    gflops = {f"gflops_{part}": flops[part] / 1e9 for part in (*PARTS, "adapters", "scan", "total")}
    return trained | {"parameters": parameters(segmenter, trained=False)["total"]} | gflops


def summary(rounds: Sequence[Timings]) -> dict[str, Any]:
    """Return medians and quartiles over all repetitions (ms), and the largest memory of the rounds (MB)."""
    first = rounds[0]
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    row: dict[str, Any] = {
        "machine": f"{first.device}, {threads}, torch {first.torch}, Python {platform.python_version()}",
        "processes": len(rounds),
        "step_batch": TRAIN_BATCH,
        "repetitions": sum(len(one.step) for one in rounds),
    }

    def add(name: str, seconds: list[float]) -> None:
        for suffix, value in zip(("", "_q1", "_q3"), quartiles(seconds), strict=True):
            row[f"{name}{suffix}"] = 1000 * value

    for batch in map(str, BATCHES):
        add(f"latency_ms_{batch}", [value for one in rounds for value in one.latency[batch]])
        add(f"neck_ms_{batch}", [value for one in rounds for value in one.neck[batch]])
        row[f"images_per_second_{batch}"] = 1000 * int(batch) / row[f"latency_ms_{batch}"]
    add("step_ms", [value for one in rounds for value in one.step])
    for name in (*map(str, BATCHES), "step"):
        peaks = [one.memory[name] for one in rounds]
        row[f"memory_mb_{name}"] = np.nan if None in peaks else max(peak or 0 for peak in peaks) / 1e6
    return row
