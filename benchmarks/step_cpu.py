"""The training step of scale tiny on this CPU, beside that of another revision of the code.

    python benchmarks/step_cpu.py --against 54f79d9    # -> step_cpu.csv, step_cpu_operators.csv

The other revision's package is read with `git archive` and imported under another name, so that both run in one
process. They take turns, with the same threads and the same batch of noise; a ratio is the median over pairs of
steps. With one thread, times are processor time, which other processes lengthen little; otherwise they are wall time.
The second file says where the time of a step of `full` goes, by torch's profiler with one thread.
"""

import argparse
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch
from measured import with_scan, write
from torch.profiler import ProfilerActivity, profile

HERE = Path(__file__).parent
OURS, THEIRS = "wimfris", "wimfris_before"
VARIANTS = ("full", "detris_adapters_detris_neck", "etris_adapters_etris_neck", "no_window")
BATCH = 32
WARM_UP = 3
PROFILED = 10
OPERATORS = {  # a part of a step -> a pattern of its operators' names
    "matrix products": r"mm$",
    "convolutions": r"convolution",
    "attention": r"scaled_dot_product",
    "scan": r"wimfris",
    "copies": r"copy_|cat$",
    "norms": r"norm",
}
REST = "all other operators"


def unpack(revision: str, folder: Path) -> None:
    """Write the package of a git revision into `folder`, under the name `THEIRS`, and its params.yaml."""
    archive = subprocess.run(
        ["git", "archive", revision, OURS, "params.yaml"], capture_output=True, check=True, cwd=HERE.parent
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (folder / OURS).rename(folder / THEIRS)
    # imports and the names of operators, but not the settings' value "wimfris"
    name = re.compile(rf'(?<=import ){OURS}\b|\b{OURS}(?=\.|::| import|", "IMPL|, name)')
    for path in (folder / THEIRS).rglob("*.py"):
        path.write_text(name.sub(THEIRS, path.read_text(encoding="utf-8")), encoding="utf-8")


def step_of(package: str, params: Path, variant: str, threads: int) -> Callable[[], None]:
    """Return a training step of scale tiny by one of the packages, each with its own params.yaml."""
    settings = import_module(f"{package}.settings.params").read_params(params).at_scale("tiny").settings(variant)
    settings = with_scan(settings, "cpu")
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"threads": threads})})
    import_module(f"{package}.training.determinism").be_deterministic(settings)
    torch.manual_seed(0)
    segmenter = import_module(f"{package}.measure.blank_model").blank_segmenter(settings, "cpu")
    step: Callable[[], None] = import_module(f"{package}.measure.timing").training_step(
        segmenter, settings, torch.device("cpu"), BATCH
    )
    return step


def paired(steps: list[Callable[[], None]], pairs: int, clock: Callable[[], float]) -> list[list[float]]:
    """Return the seconds of every step, taken in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(WARM_UP + pairs):
        for step, kept in zip(steps, times, strict=True):
            started = clock()
            step()
            if number >= WARM_UP:
                kept.append(clock() - started)
    return times


def operators(step: Callable[[], None]) -> list[dict[str, object]]:
    """Return the calls of a step and their percentage of its time, by part; a call's children are not in its time."""
    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            step()
    table = pd.DataFrame(
        {
            "operators": next((part for part, names in OPERATORS.items() if re.search(names, event.key)), REST),
            "calls": event.count / PROFILED,
            "percent": event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
    )
    sums = table.groupby("operators").sum().reindex([*OPERATORS, REST])
    sums = sums.assign(calls=sums["calls"].round().astype(int), percent=100 * sums["percent"] / sums["percent"].sum())
    return [dict(row) for row in sums.round(1).reset_index().to_dict("records")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="54f79d9", help="the other revision")
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=HERE / "step_cpu.csv")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.against, Path(folder))
        sys.path.insert(0, folder)
        packages = {THEIRS: Path(folder) / "params.yaml", OURS: HERE.parent / "params.yaml"}
        for variant in options.variants:
            for threads in options.threads:
                clock = time.process_time if threads == 1 else time.perf_counter
                before, now = paired(
                    [step_of(package, params, variant, threads) for package, params in packages.items()],
                    options.pairs,
                    clock,
                )
                row: dict[str, object] = {
                    "variant": variant,
                    "threads": threads,
                    "clock": clock.__name__,
                    "milliseconds_before": round(1e3 * statistics.median(before), 1),
                    "milliseconds": round(1e3 * statistics.median(now), 1),
                    "times_faster": round(statistics.median(a / b for a, b in zip(before, now, strict=True)), 2),
                }
                rows.append(row)
                print(row, flush=True)
        write(rows, options.out, options)
        profiled = operators(step_of(OURS, packages[OURS], "full", 1))
        write(profiled, options.out.with_name(f"{options.out.stem}_operators.csv"), options)


if __name__ == "__main__":
    main()
