"""Generated blocks of README.md and docs/ that show the committed benchmarks."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from wimfris.results.csv_files import read_csv
from wimfris.results.formats import DASH
from wimfris.results.plan import read_plan
from wimfris.results.report.markdown import METRICS, SHORT, pipe_table

REPLICATED = "results-1"  # whose core benchmarks/replication.csv trained again
IN_USE = "two apart"  # the variance of coverage.csv that `wimfris.results.statistics` uses


def replication(benchmarks: Path) -> str:
    """Return how far the core's runs, trained again on another machine, differ from the committed ones."""
    runs = read_csv(benchmarks / "replication.csv")
    runs = runs[runs["split"] == "val"]
    difference = runs["rerun_miou"] - runs["miou"]
    seeds = (runs.groupby("variant")["miou"].var(ddof=1).mean() * 2) ** 0.5  # of the difference of two seeds
    return (
        f"All {len(runs)} runs of the core of release {REPLICATED} were trained again on another processor. Their val "
        f"mIoU differs from the committed one by {difference.mean():+.2f} points on average.\n"
        f"The standard deviation of this difference is {difference.std(ddof=1):.1f} points. Two seeds of one system on "
        f"the same processor differ with a standard deviation of {seeds:.1f} points."
    )


def scan(benchmarks: Path) -> str:
    """Return the speed of the compiled CPU scan over a plain loop."""
    runs = read_csv(benchmarks / "scan_cpu.csv")
    runs = runs[(runs["backend"] == "cpu") & (runs["what"] == "scan") & (runs["pass"] == "forward + backward")]
    rows = [
        [
            str(dtype),
            str(threads),
            *(f"{part['loop_over_this'].agg(end):.1f}" for end in ("min", "max")),
            f"{part['peak_over_io'].max():.1f}",
        ]
        for (dtype, threads), part in runs.groupby(["dtype", "threads"], sort=False)
    ]
    return pipe_table(("type", "threads", "slowest case", "fastest case", "peak memory / inputs and outputs"), rows)


def trained(benchmarks: Path) -> str:
    """Return the results of the full model trained with two scan backends."""
    runs = read_csv(benchmarks / "trained_cpu.csv")
    rows = [
        [
            str(backend),
            *(f"{value:.1f}" for value in part.sort_values("seed")["val_miou"]),
            *(f"{part[f'val_{metric}'].mean():.1f}" for metric in SHORT),
        ]
        for backend, part in runs.groupby("scan")
    ]
    seeds = [f"mIoU, seed {seed}" for seed in sorted(runs["seed"].unique())]
    return pipe_table(("`model.scan`", *seeds, *(f"mean {METRICS[metric]}" for metric in SHORT)), rows)


def step_gpu(benchmarks: Path) -> str:
    """Return the least time and memory of a training step on a GPU, by model and scan backend."""
    runs = read_csv(benchmarks / "step_operators.csv")
    runs = runs[runs["operator"] == "total"]
    rows = [
        [
            f"`{row['variant']}`",
            f"`{row['backend']}`",
            f"{row['milliseconds']:.0f}",
            f"{row['megabytes'] / 1000:.0f}",
            f"{row['gflop'] / 1000:.1f}",
            f"{row['peak_gigabytes']:.1f}",
        ]
        for row in runs.to_dict("records")
    ]
    return pipe_table(("variant", "`model.scan`", "ms", "GB moved", "TFLOP", "peak GB"), rows, words=2)


def step_cpu(benchmarks: Path) -> str:
    """Return how much faster a training step of scale tiny is than before the upsampling convolution."""
    runs = read_csv(benchmarks / "step_cpu.csv")
    rows = [
        [
            f"`{row['variant']}`",
            str(row["threads"]),
            f"{row['milliseconds_before']:.0f}",
            f"{row['milliseconds']:.0f}",
            f"{row['times_faster']:.2f}",
        ]
        for row in runs.to_dict("records")
    ]
    return pipe_table(("variant", "threads", "ms before", "ms", "times faster"), rows)


def step_cpu_operators(benchmarks: Path) -> str:
    """Return the share of each part in the time of a training step of scale tiny."""
    table = read_csv(benchmarks / "step_cpu_operators.csv", dtype=str)
    return pipe_table(("operators", "calls", "% of the time"), table.itertuples(index=False, name=None))


def residual(benchmarks: Path) -> str:
    """Return what the bf16 residual stream of the frozen vision encoder saves in a step, and its errors over fp32's."""
    runs = read_csv(benchmarks / "residual.csv")
    rows = []
    for model in dict.fromkeys(runs["model"]):
        part = runs[runs["model"] == model].set_index("stream")
        fp32, bf16 = part.loc["float32"], part.loc["bf16"]
        saved = [fp32[f"step_{name}"] - bf16[f"step_{name}"] for name in ("milliseconds", "peak_gigabytes")]
        errors = [bf16[f"{name}_error"] / fp32[f"{name}_error"] for name in ("logits", "features")]
        cells = [DASH if pd.isna(value) else f"{value:.1f}" for value in saved]
        rows.append((model, *cells, *(f"{value:.2f}" for value in errors)))
    header = ("model", "ms saved", "peak GB saved", "logits error, ratio", "last feature map error, ratio")
    return pipe_table(header, rows)


def models_cpu(benchmarks: Path) -> str:
    """Return the speed and memory of WIMFRIS over those of DETRIS on a CPU."""
    runs = read_csv(benchmarks / "model_cpu.csv")
    runs = runs[runs["model"] == "WIMFRIS"]
    ratios = {"speed": "speed_over_detris", "peak memory": "memory_over_detris"}
    columns = {f"{name}, {part}": (ratio, part) for name, ratio in ratios.items() for part in runs["pass"].unique()}
    table = runs.pivot(index=["scale", "batch"], columns="pass", values=list(ratios.values()))
    rows = [
        (str(scale), str(batch), *(f"{value:.2f}" for value in values))
        for (scale, batch), values in zip(table.index, table[list(columns.values())].to_numpy(), strict=True)
    ]
    return pipe_table(("scale", "batch", *columns), rows, words=2)


def coverage(benchmarks: Path) -> str:
    """Return how often the interval in use covers the truth in simulations, and how often a verdict is false."""
    table = read_csv(benchmarks / "coverage.csv")
    table = table[table["variance"] == IN_USE]
    sizes = ("3 against 2", "3", "6", "12")
    rows = []
    for name in dict.fromkeys(table["setting"]):
        part = table[table["setting"] == name]
        covered = [part.loc[part["seeds"] == size, "worst"].iloc[0] for size in sizes]
        false = part.loc[part["seeds"] == "6, 12", "false_null"].iloc[0]
        rows.append((name, *(f"{value:.1f}" for value in (*covered, false))))
    header = ("simulated runs", *(f"{size} seeds" for size in sizes), "a false verdict")
    return f"In percent; Monte-Carlo error at most {table['error'].max():.1f}.\n\n{pipe_table(header, rows)}"


def recipes(benchmarks: Path) -> str:
    """Return the scatter and the seeds that each claim needs, with the former recipe and with this one."""
    table = read_csv(benchmarks / "recipes.csv", dtype=str).fillna(DASH)
    columns = [f"{name}_{when}" for name in ("seed_sd", "image_se", "seeds_needed") for when in ("before", "after")]
    header = ("claim", "SD before", "SD now", "SE before", "SE now", "seeds before", "seeds now")
    needed = table["seeds_needed_after"]
    still_open = needed[needed != "decided"]
    most = read_plan(benchmarks.parent / "reports" / "claims.yaml").confirmatory.looks[-1]
    enough = sum(seeds.isdigit() and int(seeds) <= most for seeds in still_open)
    rows = table[["claim", *columns]].itertuples(index=False, name=None)
    return (
        f"{pipe_table(header, rows)}\n\nWith the {most} seeds of the plan, {enough} of the {len(still_open)} "
        "open claims reach an 80% chance of a verdict."
    )


BENCHMARK_BLOCKS: dict[str, Callable[[Path], str]] = {
    "replication": replication,
    "scan": scan,
    "trained": trained,
    "step_gpu": step_gpu,
    "step_cpu": step_cpu,
    "step_cpu_operators": step_cpu_operators,
    "residual": residual,
    "models_cpu": models_cpu,
    "coverage": coverage,
    "recipes": recipes,
}
