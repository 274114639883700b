"""WIMFRIS beside our DETRIS and ETRIS: time, memory, the parts' shares of the time, and utilisation of the device.

    python benchmarks/model.py                     # this machine's CPU, batches 1 and 2 -> model_cpu.csv
    python benchmarks/model.py --device cuda       # a GPU, batches 1, 8 and 32 -> model_cuda.csv

A JSON file beside the CSV has the same rows, with the settings, device, versions and commit of the measurement.

Models have their scale's real size at 448 pixels and random weights, and images are noise: no data or weights are
needed. A training step is forward, losses, backward and update; inference ends with the logits. Every measurement runs
in a process of its own, so that its peak memory is its own too (see `wimfris.measure.memory`). A round measures each
model once, one after the other, so that a busy machine slows all of them; a ratio is the median over rounds of the
ratio within one. On a CPU with one thread, times are processor time, which other processes lengthen little; otherwise
they are wall time.

Shares of the time come from one profiled repetition, on a GPU from its kernels' time. An operation of backward counts
for the part whose forward made it. Adapters count apart from their encoders; `rest` is losses, optimizer and what no
module does. Utilisation (`mfu`) is the model's operations (`wimfris.measure.flops`) divided by the time, as a share of
the rate of a large matrix product in the same precision, timed in the same process.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measured import write
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from wimfris.errors import UserError
from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.measure.flops import count_flops, count_step_flops
from wimfris.measure.memory import Memory
from wimfris.measure.timing import quartiles, seconds, training_step
from wimfris.model.segmenter import Segmenter
from wimfris.runs.manifest import platform_of
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_device
from wimfris.training.determinism import be_deterministic
from wimfris.training.evaluate import precision_context

HERE = Path(__file__).parent
MODELS = {  # name -> variant of params.yaml
    "WIMFRIS": "full",
    "DETRIS": "detris_adapters_detris_neck",
    "ETRIS": "etris_adapters_etris_neck",
}
REFERENCE = "DETRIS"
PASSES = ("training step", "inference")
PARTS = ("text encoder", "vision encoder", "adapters", "neck", "decoder", "rest")
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrix product whose rate is the device's
MARK = "part: "
ENGINE = "autograd::engine::evaluate_function"  # encloses a node of backward, with its forward operation's number


def settings_of(variant: str, scale: str, device: str, threads: int, *, checkpointing: bool) -> Settings:
    """Return the settings of params.yaml on this device; in fp32 on a CPU, where half precision is often emulated."""
    settings = read_params().model_copy(update={"scale": scale}).settings(variant)
    changed: dict[str, Any] = {"device": device, "threads": threads, "gradient_checkpointing": checkpointing}
    if device == "cpu":
        changed["precision"] = "fp32"
    return settings.model_copy(update={"train": settings.train.model_copy(update=changed)})


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def measure(settings: Settings, kind: str, batch: int, repetitions: int) -> dict[str, Any]:
    """Return the seconds of every repetition, peak bytes, shares of the parts, and a matrix product's rate."""
    be_deterministic(settings)  # as in training
    device = build_device(settings)
    clock = time.process_time if device.type == "cpu" and settings.train.threads == 1 else time.perf_counter
    memory = Memory(device)
    segmenter = blank_segmenter(settings, device.type)
    work = training_step(segmenter, settings, device, batch) if kind == PASSES[0] else None
    work = work or inference(segmenter, settings, device, batch)
    seconds(work, 0, device, 1)  # loading, tuning and first allocations are no part of the shares
    parts = shares(segmenter, work, device)
    memory.restart()
    times = seconds(work, repetitions, device, 0, clock)
    return {
        "seconds": times,
        "peak": memory.peak(),
        "shares": parts,
        "rate": matmul_rate(settings.train.precision, device, clock),
    }


def inference(segmenter: Segmenter, settings: Settings, device: torch.device, batch: int) -> Callable[[], None]:
    """Return a pass of a batch of noise to its logits, without gradients."""
    segmenter.eval()
    inputs = example(segmenter, settings, batch, device.type)

    @torch.no_grad()
    def run() -> None:
        with precision_context(settings.train.precision, device):
            segmenter(*inputs)

    return run


def matmul_rate(precision: str, device: torch.device, clock: Callable[[], float]) -> float:
    """Return the floating-point operations a second of a large square matrix product."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = torch.randn(2, SIDE[device.type], SIDE[device.type], device=device, dtype=dtype)
    return 2 * SIDE[device.type] ** 3 / statistics.median(seconds(partial(torch.mm, a, b), 5, device, 1, clock))


def shares(segmenter: Segmenter, work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return part -> share of the time of one repetition, see above."""
    modules: dict[str, list[nn.Module]] = {
        "text encoder": [segmenter.text],
        "vision encoder": [segmenter.vision],
        "adapters": [*segmenter.text.adapters.values(), *segmenter.vision.adapters.values()],
        "neck": [segmenter.neck],
        "decoder": [segmenter.decoder, segmenter.projector],
    }
    hooks = []
    for name, part in modules.items():
        for module in part:
            marks: list[Any] = []
            hooks.append(module.register_forward_pre_hook(partial(_enter, name, marks)))
            hooks.append(module.register_forward_hook(partial(_leave, marks)))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    for hook in hooks:
        hook.remove()
    spent = time_by_part(list(profiled.events() or []), device.type)
    return {part: spent[part] / sum(spent.values()) for part in PARTS}


def _enter(part: str, marks: list[Any], module: nn.Module, inputs: Any) -> None:
    mark = record_function(f"{MARK}{part}")
    mark.__enter__()
    marks.append(mark)


def _leave(marks: list[Any], module: nn.Module, inputs: Any, output: Any) -> None:
    marks.pop().__exit__(None, None, None)


def time_by_part(events: list[FunctionEvent], device: str) -> dict[str, float]:
    """Return part -> microseconds of the operations' own time on the device.

    An event belongs to the innermost part that it runs within. An event of backward belongs to the part of the forward
    operation with the same sequence number; of several with that number, the last one made the node.
    """
    forward: dict[int, tuple[float, str]] = {}
    owner: dict[int, str] = {}
    for event in events:  # in order of start: parents before children
        part = _within(event)
        if not _is_node(event) and event.sequence_nr >= 0:
            start = event.time_range.start
            if event.sequence_nr not in forward or start >= forward[event.sequence_nr][0]:
                forward[event.sequence_nr] = (start, part)
        owner[id(event)] = part
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        node = _node(event)
        part = owner[id(event)] if node is None else forward.get(node.sequence_nr, (0.0, "rest"))[1]
        if not (device == "cuda" and event.name.startswith(MARK)):  # which counts in its operations
            spent[part] += own
    return spent


def _within(event: FunctionEvent) -> str:
    """Return the innermost part around an event."""
    around: FunctionEvent | None = event
    while around is not None:
        if around.name.startswith(MARK):
            return around.name.removeprefix(MARK)
        around = around.cpu_parent
    return "rest"


def _is_node(event: FunctionEvent) -> bool:
    return bool(event.scope == 1 or event.name.startswith(ENGINE))


def _node(event: FunctionEvent) -> FunctionEvent | None:
    """Return the outermost node of backward around an event."""
    around: FunctionEvent | None = event
    node = None
    while around is not None:
        if _is_node(around) and around.sequence_nr >= 0:
            node = around
        around = around.cpu_parent
    return node


# --- all of them, side by side ----------------------------------------------------------------------------------------


def measure_apart(*arguments: object) -> dict[str, Any] | None:
    """Run `measure` in a process of its own; return None where it runs out of memory.

    Raises UserError with the last line of its output where it fails for another reason.
    """
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return result
    reason = (process.stderr.strip().splitlines() or ["killed, probably for its memory"])[-1]
    if "OutOfMemory" in reason or process.returncode == -9:
        print(f"    {reason[:200]}", flush=True)
        return None
    raise UserError(f"measuring {arguments} failed: {reason}")


def compare(options: argparse.Namespace, path: Path) -> None:
    """Measure and write a row for each scale, pass, batch and model; the file grows by batches."""
    rows: list[dict[str, object]] = []
    device = platform_of(torch.device(options.device))["device"]
    for scale in options.scales:
        flops = {}
        for model, variant in MODELS.items():
            plain = settings_of(variant, scale, options.device, options.threads, checkpointing=False)
            flops[model] = (count_step_flops(plain, 1), count_flops(plain)["total"])
        for batch in options.batches:
            for kind in options.passes:
                rounds: list[dict[str, dict[str, Any] | None]] = []
                for number in range(options.rounds):
                    rounds.append({})
                    for model, variant in MODELS.items():
                        print(scale, kind, "batch", batch, "round", number + 1, model, flush=True)
                        rounds[-1][model] = measure_apart(
                            variant,
                            scale,
                            options.device,
                            options.threads,
                            options.checkpointing,
                            kind,
                            batch,
                            options.repetitions,
                        )
                for model in MODELS:
                    results = [result for result in (each[model] for each in rounds) if result is not None]
                    per_image = flops[model][PASSES.index(kind)]
                    settings = settings_of(
                        MODELS[model], scale, options.device, options.threads, checkpointing=options.checkpointing
                    )
                    rows.append(
                        {
                            "scale": scale,
                            "pass": kind,
                            "batch": batch,
                            "model": model,
                            **summary(results, batch, per_image),
                            **over_reference(rounds, model),
                            "repetitions": options.repetitions,
                            "rounds": options.rounds,
                            "precision": settings.train.precision,
                            "image_size": settings.data.image_size,
                            "gradient_checkpointing": options.checkpointing,
                            "scan": settings.model.scan,
                            "device": device,
                            "threads": options.threads if options.device == "cpu" else "",
                            "clock": "processor" if options.device == "cpu" and options.threads == 1 else "wall",
                            "torch": torch.__version__,
                            "python": platform.python_version(),
                            "note": options.note,
                        }
                    )
                    print("   ", {key: rows[-1][key] for key in ("model", "images_per_second", "mfu")}, flush=True)
                write(rows, path, options)


def summary(rounds: list[dict[str, Any]], batch: int, flops_per_image: int) -> dict[str, object]:
    """Return one model's median and quartiles, memory, shares and utilisation; empty where nothing ran."""
    shared = [f"share_{part.replace(' ', '_')}" for part in PARTS]
    names = ["seconds", "seconds_q1", "seconds_q3", "images_per_second", "peak_mebibytes", *shared]
    names += ["gflops_per_image", "matmul_tflops_per_second", "mfu"]
    if not rounds:
        return dict.fromkeys(names, "")
    median, low, high = quartiles([second for result in rounds for second in result["seconds"]])
    peak = max((result["peak"] for result in rounds if result["peak"] is not None), default=None)
    parts = [statistics.median(result["shares"][part] for result in rounds) for part in PARTS]
    rate = statistics.median(result["rate"] for result in rounds)
    values: list[str] = [f"{median:.4f}", f"{low:.4f}", f"{high:.4f}", f"{batch / median:.4f}"]
    values += ["" if peak is None else f"{peak / 2**20:.0f}", *(f"{part:.3f}" for part in parts)]
    values += [f"{flops_per_image / 1e9:.1f}", f"{rate / 1e12:.3f}", f"{flops_per_image * batch / median / rate:.3f}"]
    return dict(zip(names, values, strict=True))


def over_reference(rounds: list[dict[str, dict[str, Any] | None]], model: str) -> dict[str, str]:
    """Return images a second and peak memory relative to the reference's: medians of the ratios within a round."""
    speed, memory = [], []
    for each in rounds:
        ours, theirs = each[model], each[REFERENCE]
        if ours is not None and theirs is not None:
            speed.append(statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"]))
            if ours["peak"] and theirs["peak"]:
                memory.append(ours["peak"] / theirs["peak"])
    ratios = {f"speed_over_{REFERENCE.lower()}": speed, f"memory_over_{REFERENCE.lower()}": memory}
    return {name: f"{statistics.median(values):.3f}" if values else "" for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scales", nargs="*", default=["base", "large"])
    parser.add_argument("--batches", nargs="*", type=int, help="1 8 32 on a GPU, 1 2 on a CPU")
    parser.add_argument("--passes", nargs="*", choices=PASSES, default=list(PASSES))
    parser.add_argument("--repetitions", type=int, help="of every measurement: 20 on a GPU, 2 on a CPU")
    parser.add_argument("--rounds", type=int, help="3 on a GPU, 1 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--checkpointing", action="store_true", help="with train.gradient_checkpointing")
    parser.add_argument("--note", default="", help="what a reader of the numbers should know")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        variant, scale, device, threads, checkpointing, kind, batch, repetitions = json.loads(options.one)
        settings = settings_of(variant, scale, device, threads, checkpointing=checkpointing)
        print(json.dumps(measure(settings, kind, batch, repetitions)))
        return
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("--device is cuda, but torch sees no CUDA device")
    options.batches = options.batches or ([1, 8, 32] if on_gpu else [1, 2])
    options.repetitions = options.repetitions or (20 if on_gpu else 2)
    options.rounds = options.rounds or (3 if on_gpu else 1)
    path = options.out or HERE / f"model_{options.device}.csv"
    compare(options, path)
    print(path)


if __name__ == "__main__":
    main()
