"""What a model costs: parameters by part, floating-point operations, time and memory.

Operations are counted by torch's `FlopCounterMode` (matrix products, convolutions, attention; two a multiply-add) on a
model without weights. The selective scan's formula is `wimfris.model.scan.scan_flops`:

    B L D (9 N + 2)

for B sequences of L tokens, D channels and N states: 9 N a token and channel as Mamba's authors count their scan
(https://github.com/state-spaces/mamba/issues/110: discretisation, recurrence, readout), one for the skip D u and one
for the gate. A Mamba block's causal convolution counts as torch counts convolutions. Elementwise operations are left
out.

Times are wall time of fresh weights (they do not depend on what the weights are), each variant in a process of its own
(`python -m wimfris.measure.efficiency`), so that its peak memory is its own too.
"""

import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wimfris.errors import UserError
from wimfris.measure.parameters import blank_segmenter
from wimfris.model import mamba
from wimfris.model.scan import conv_flops, fused_conv, fused_scan, scan_flops
from wimfris.model.segmenter import Segmenter
from wimfris.runs.manifest import _processor
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_device, build_loss
from wimfris.training.evaluate import precision_context

BATCHES = (1, 8)
TRAIN_BATCH = 8
WARM_UP = 3
PARTS = ("text", "vision", "neck", "decoder", "projector")


# --- operations -------------------------------------------------------------------------------------------------------


def _visible_scan(*arguments: Tensor, backend: str = "auto") -> Tensor:
    """The scan as one operation, which a counter of operations can see, whatever the block's backend."""
    return fused_scan(*arguments, backend="cpu")


def _visible_conv(*arguments: Tensor, backend: str = "auto") -> Tensor:
    """The convolution before it, in the same way."""
    return fused_conv(*arguments, backend="cpu")


@contextlib.contextmanager
def _blocks_by(scan: Callable[..., Tensor], conv: Callable[..., Tensor]) -> Iterator[None]:
    """Within it, Mamba blocks call these in place of `selective_scan` and `causal_conv_silu`."""
    own = mamba.selective_scan, mamba.causal_conv_silu
    mamba.selective_scan, mamba.causal_conv_silu = scan, conv
    try:
        yield
    finally:
        mamba.selective_scan, mamba.causal_conv_silu = own


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """A counter of the operations within, on the CPU or `meta`, without gradients. Attention is taken apart into its
    matrix products: the fused kernels of the CPU are not known to it.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            _blocks_by(_visible_scan, _visible_conv),
            FlopCounterMode(display=False) as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_flops(settings: Settings) -> dict[str, int]:
    """Operations of one image and sentence: of every part (the encoders with their adapters), of both encoders'
    adapters among them ("adapters"), of all scans ("scan"), and in total.
    """
    segmenter = blank_segmenter(settings).eval()
    inputs = example(segmenter, settings, 1, "meta")
    with counting() as counter:
        segmenter(*inputs)
    by_module = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    root = type(segmenter).__name__
    flops = {part: by_module.get(f"{root}.{part}", 0) for part in PARTS}
    beside = (segmenter.text.adapters, segmenter.vision.adapters)
    flops["adapters"] = sum(
        by_module.get(f"{root}.{encoder}.adapters.{layer}", 0)
        for encoder, adapters in zip(("text", "vision"), beside, strict=True)
        for layer in adapters
    )
    scans: Any = torch.ops.wimfris.fused_scan
    return {**flops, "scan": counter.get_flop_counts()["Global"].get(scans, 0), "total": counter.get_total_flops()}


def count_step_flops(settings: Settings, batch: int) -> int:
    """Operations of a training step's forward and backward, as they run: nothing below the first adapter, and no
    gradients of frozen weights. What checkpointing computes again is not counted; the backward of a scan and of a
    convolution before it is taken as twice its forward.
    """
    train = settings.train.model_copy(update={"gradient_checkpointing": False})
    segmenter = blank_segmenter(settings.model_copy(update={"train": train})).train()
    inputs = example(segmenter, settings, batch, "meta")
    size = settings.data.image_size
    forward: list[int] = []

    # of their shapes, with gradients for all that they read, and no operation that is counted
    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, **_: Any
    ) -> Tensor:
        batch, length, inner = u.shape
        forward.append(scan_flops(batch, length, inner, A.shape[1]))
        return u * delta * z + (B + C).sum(-1, keepdim=True) + D + bias + A.sum(-1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, **_: Any) -> Tensor:
        batch, length, inner = x.shape
        forward.append(conv_flops(batch, length, inner, weight.shape[-1]))
        return x * weight.sum((1, 2)) + bias

    with sdpa_kernel(SDPBackend.MATH), _blocks_by(scan, conv), FlopCounterMode(display=False) as counter:
        output = segmenter(*inputs)
        build_loss(settings)(output, torch.zeros(batch, 1, size, size, device="meta")).total.backward()
    return counter.get_total_flops() + 3 * sum(forward)


def example(segmenter: Segmenter, settings: Settings, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Noise images (B, 3, S, S) and sentences (B, L) that fill their row."""
    size, length = settings.data.image_size, settings.data.length
    token_ids = torch.full((batch, length), 3, dtype=torch.int64, device=device)
    token_ids[:, -1] = segmenter.text.end_token
    return torch.randn(batch, 3, size, size, device=device), token_ids


# --- time and memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One process's measurements of a variant: seconds of every repetition, and bytes held at most above what the
    process held before it built the model (on a GPU: allocated there).
    """

    device: str
    threads: int
    torch: str
    latency: dict[str, list[float]]  # batch -> inference
    neck: dict[str, list[float]]  # batch -> the neck alone
    step: list[float]  # a training step of `TRAIN_BATCH`
    memory: dict[str, int | None]  # batch, or "step"; None where the system does not tell


def measure(settings: Settings, repetitions: int) -> Measured:
    """Time inference at each batch of `BATCHES`, the neck alone, and a training step, on the settings' device with
    their threads and precision. Raises UserError where the device is not there.
    """
    torch.set_num_threads(settings.train.threads)
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
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Measured(name, torch.get_num_threads(), torch.__version__, latency, neck, step, memory)


def latency(settings: Settings, repetitions: int) -> float:
    """Median seconds of one image and sentence through a model of these settings, on their device and threads."""
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
    """Of every repetition of the work, after some that are not counted."""
    found = []
    for number in range(warm_up + repetitions):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            found.append(clock() - started)
    return found


def _inputs_of_neck(segmenter: Segmenter, inputs: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    read: list[tuple[Any, ...]] = []
    hook = segmenter.neck.register_forward_pre_hook(lambda _, arguments: read.append(arguments))
    segmenter(*inputs)
    hook.remove()
    return read[0]


def training_step(
    segmenter: Segmenter, settings: Settings, device: torch.device, batch: int = TRAIN_BATCH
) -> Callable[[], None]:
    """Forward, loss, backward and update, as training does it, of one batch of noise."""
    segmenter.train()
    tuned = [p for p in segmenter.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=1e-6, fused=True)
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


class Memory:
    """The most that is held above what the process held at the start; on a GPU what is allocated there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, _status("VmRSS")
        self.restart()

    def restart(self) -> None:
        """Forget the peak."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        most = _status("VmHWM")
        return None if most is None or self.before is None else max(most - self.before, 0)


def _status(key: str) -> int | None:
    """Bytes, by /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(found[0]) if found else None


def measure_apart(variant: str, scale: str, repetitions: int) -> Measured:
    """`measure` in a process of its own. Raises UserError with its last line where that fails."""
    command = [sys.executable, "-m", "wimfris.measure.efficiency", variant, scale, str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"measuring {variant} failed: {told}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


def machine(measured: Measured) -> str:
    """What the times were taken on, in words."""
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    return f"{measured.device}, {threads}, torch {measured.torch}, Python {platform.python_version()}"


if __name__ == "__main__":
    chosen, at, times = sys.argv[1:]
    of = read_params().model_copy(update={"scale": at}).settings(chosen)
    print(json.dumps(asdict(measure(of, int(times)))))
