"""Time and memory of a model with fresh weights: what it costs does not depend on what the weights are.

Times are wall time. `time_apart` measures in a process of its own (`python -m wimfris.measure.timing`), so that the
peak memory is the variant's alone.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wimfris.errors import UserError
from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.measure.memory import Memory
from wimfris.model.segmenter import Segmenter
from wimfris.runs.manifest import platform_of
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_device, build_loss
from wimfris.training.determinism import be_deterministic
from wimfris.training.evaluate import precision_context

BATCHES = (1, 8)
TRAIN_BATCH = 8
WARM_UP = 3


@dataclass(frozen=True)
class Timings:
    """What one process measured of a variant: seconds of every repetition, and peak memory in bytes, see `Memory`."""

    device: str
    threads: int
    torch: str
    latency: dict[str, list[float]]  # batch -> inference
    neck: dict[str, list[float]]  # batch -> the neck alone
    step: list[float]  # a training step of `TRAIN_BATCH`
    memory: dict[str, int | None]  # batch, or "step"; None where the operating system does not report it


def time_variant(settings: Settings, repetitions: int) -> Timings:
    """Time inference at each batch of `BATCHES`, the neck alone, and a training step.

    Uses the settings' device, threads and precision. Raises UserError where the device is missing.
    """
    be_deterministic(settings)  # as in training
    device = build_device(settings)
    held = Memory(device)
    segmenter = blank_segmenter(settings, device.type).eval()
    latency, neck, memory = {}, {}, {}
    with torch.no_grad(), precision_context(settings.train.precision, device):
        for batch in BATCHES:
            inputs = example(segmenter, settings, batch, device.type)
            latency[str(batch)] = seconds(partial(segmenter, *inputs), repetitions, device)
            memory[str(batch)] = held.peak()
            on_neck = partial(segmenter.neck, *_inputs_of_neck(segmenter, inputs))
            neck[str(batch)] = seconds(on_neck, repetitions, device)
    held.restart()
    step = seconds(training_step(segmenter, settings, device), repetitions, device)
    memory["step"] = held.peak()
    machine = platform_of(device)
    return Timings(machine["device"], machine["threads"], torch.__version__, latency, neck, step, memory)


def time_apart(variant: str, scale: str, repetitions: int) -> Timings:
    """Run `time_variant` in a process of its own. Raises UserError with its last line where it fails."""
    command = [sys.executable, "-m", "wimfris.measure.timing", variant, scale, str(repetitions)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"measuring {variant} failed: {reason}")
    return Timings(**json.loads(result.stdout.splitlines()[-1]))


def latency(settings: Settings, repetitions: int) -> float:
    """Return the median seconds of one image and sentence, on the settings' device and threads."""
    torch.set_num_threads(settings.train.threads)
    device = build_device(settings)
    segmenter = blank_segmenter(settings, device.type).eval()
    inputs = example(segmenter, settings, 1, device.type)
    with torch.no_grad(), precision_context(settings.train.precision, device):
        return quartiles(seconds(partial(segmenter, *inputs), repetitions, device))[0]


def seconds(
    work: Callable[[], object],
    repetitions: int,
    device: torch.device,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the seconds of every repetition of the work, after `warm_up` more that do not count."""
    times = []
    for number in range(warm_up + repetitions):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            times.append(clock() - started)
    return times


def training_step(
    segmenter: Segmenter, settings: Settings, device: torch.device, batch: int = TRAIN_BATCH
) -> Callable[[], None]:
    """Return one step of training on a batch of noise: forward, loss, backward and update."""
    segmenter.train()
    trained = [p for p in segmenter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    loss, inputs = build_loss(settings), example(segmenter, settings, batch, device.type)
    mask = torch.zeros(batch, 1, settings.data.image_size, settings.data.image_size, device=device)
    mask[..., : settings.data.image_size // 2, :] = 1

    def step() -> None:
        optimizer.zero_grad()
        with precision_context(settings.train.precision, device):
            output = segmenter(*inputs)
        loss(output, mask).total.backward()
        optimizer.step()

    return step


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


def _inputs_of_neck(segmenter: Segmenter, inputs: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    read: list[tuple[Any, ...]] = []
    hook = segmenter.neck.register_forward_pre_hook(lambda _, arguments: read.append(arguments))
    segmenter(*inputs)
    hook.remove()
    return read[0]


if __name__ == "__main__":
    variant, scale, repetitions = sys.argv[1:]
    settings = read_params().model_copy(update={"scale": scale}).settings(variant)
    print(json.dumps(asdict(time_variant(settings, int(repetitions)))))
