"""The scan's backends side by side, alone and inside the neck: time and memory.

    python benchmarks/scan.py                      # this CPU, a quarter of an hour -> scan_cpu.csv beside this file
    python benchmarks/scan.py --device cuda        # a GPU, with Triton's kernels and mamba_ssm -> scan_cuda.csv

A JSON file beside the CSV has the same rows, with the settings, device, versions and commit of the measurement.

`scan` is the scan alone, `conv + scan` the convolution and the scan (on a GPU), `WMF` the window Mamba fusion around
both, `neck` all of HMF, beside DETRIS's neck of equal width. `loop` is the plain loop over tokens, in WMF and neck too.
To save time on a CPU, WMF, neck and bfloat16 are measured at some of the shapes only, bfloat16 at the smallest batch.
On a GPU the batch is the paper's, 32 images, in both precisions (WMF and neck under autocast); what does not fit has no
row. A copy of a gigabyte, timed first, is the measure of bandwidth: `share_of_copy` is the bandwidth at which the
convolution and the scan move the bytes that they must (`must_move`), as a share of the copy's.

Every repetition runs each backend once, one after the other, so that a busy machine slows all of them. A ratio is the
median over repetitions of the ratio within one. With one thread on a CPU, times are that thread's processor time, which
other processes lengthen little; otherwise they are wall time.

Memory is that of a single call. `io_mebibytes` are its inputs (and parameters) and its output, with the backward also
their gradients; `peak_mebibytes` are its inputs and the most that it held beside them. On a CPU this is measured by the
process's resident pages, with one thread, in a process that gives every larger allocation pages of its own, for the
scan alone, and at the smallest batch for all backends but `cpu`.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import mock

import torch
from measured import write
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.errors import UserError
from wimfris.measure.memory import Memory
from wimfris.model import mamba
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.scan import causal_conv_silu, choose_backend, selective_scan
from wimfris.rivals.detris import GatedNeck
from wimfris.runs.manifest import code_revision, platform_of

HERE = Path(__file__).parent
NARROW = ("u", "delta", "B", "C", "z")  # the inputs that autocast makes half precision


@dataclass(frozen=True)
class Shape:
    """A neck: the side of its window and of its grid in cells, its widths, and the images in a batch on a CPU."""

    window: int
    grid: int = 32
    width: int = 512
    expand: int = 2
    states: int = 16
    heads: int = 8
    vision: int = 768
    images: tuple[int, ...] = (1, 2)

    def batches(self, device: str) -> tuple[int, ...]:
        """Return the batches that are measured by default."""
        return (32,) if device == "cuda" else self.images

    def scan_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return (batch, L, D, N) of the scan for a batch of images."""
        return images * (self.grid // self.window) ** 2, self.window**2 + 1, self.expand * self.width, self.states


TINY = partial(Shape, grid=8, width=64, expand=1, states=8, heads=4, vision=64, images=(32,))
SHAPES = {  # at scale tiny; at the paper's widths and grid
    "tiny": TINY(4),
    "tiny, no window": TINY(8),
    "paper 2x2": Shape(2),
    "paper 4x4": Shape(4),
    "paper 8x8": Shape(8),
    "paper 16x16": Shape(16),
    "paper, no window": Shape(32),
    "twice the side, no window": Shape(64, grid=64),
}
ON_GPU = "twice the side, no window"  # 4,097 tokens: on a CPU a call of the loop takes minutes
SOME = ("tiny", "tiny, no window", "paper 4x4", "paper, no window")  # measured in all parts and precisions
PRINTED = ("backend", "milliseconds", "loop_over_this", "mamba_ssm_over_this", "share_of_copy", "peak_over_io")


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    part: str  # scan | conv + scan | WMF | neck
    shape: str
    images: int
    dtype: torch.dtype
    backward: bool

    @property
    def label(self) -> dict[str, object]:
        batch, length, channels, states = SHAPES[self.shape].scan_shape(self.images)
        return {
            "what": self.part,
            "shape": self.shape,
            "images": self.images,
            "batch": batch,
            "length": length,
            "channels": channels,
            "states": states,
            "dtype": str(self.dtype).removeprefix("torch."),
            "pass": "forward + backward" if self.backward else "forward",
        }


def cases(names: list[str], images: list[int] | None, threads: int, device: str) -> Iterator[Case]:
    """Yield all cases that are measured with this number of threads."""
    batches = {name: images or SHAPES[name].batches(device) for name in names}
    full = [(name, batch) for name in names for batch in batches[name]]
    some = [(name, batch) for name, batch in full if name in SOME] if threads == 1 else []
    least = [(name, batch) for name, batch in some if batch == batches[name][0]]
    single, half = torch.float32, torch.bfloat16
    plan = [("scan", single, full), ("scan", half, least), ("WMF", single, some), ("neck", single, some)]
    if device == "cuda":
        plan = [(part, dtype, full) for part in ("scan", "conv + scan", "WMF", "neck") for dtype in (half, single)]
    for part, dtype, shapes in plan:
        for name, batch in shapes:
            for backward in (False, True):
                yield Case(part, name, batch, dtype, backward)


@dataclass
class Work:
    """A call to measure, and the tensors that it reads."""

    call: Callable[[], Tensor]
    reads: list[Tensor]

    def run(self, *, backward: bool) -> Tensor:
        """Run forward, and backward if asked; return the output."""
        if not backward:
            with torch.no_grad():
                return self.call()
        output = self.call()
        output.float().sum().backward()
        return output

    def forget(self) -> None:
        """Drop the gradients."""
        for tensor in self.reads:
            tensor.grad = None


def plain_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the recurrence as written, one token at a time, in float32, differentiated by autograd."""
    dtype, (u, delta, B, C, z) = u.dtype, (x.float() for x in (u, delta, B, C, z))
    delta = F.softplus(delta + delta_bias)
    state, outputs = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        driven = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        state = torch.exp(delta[:, t, :, None] * A) * state + driven
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return ((torch.stack(outputs, dim=1) + D * u) * F.silu(z)).to(dtype)


def scan_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Return random inputs of a scan that need gradients."""
    batch, length, width, states = shape
    wide, narrow = (batch, length, width), (batch, length, states)
    shapes = {"u": wide, "delta": wide, "A": (width, states), "B": narrow, "C": narrow, "D": (width,), "z": wide}
    values = {name: torch.randn(size, device=device) for name, size in (shapes | {"delta_bias": (width,)}).items()}
    values["A"] = -torch.exp(values["A"])
    values |= {name: values[name].to(dtype) for name in NARROW}
    return {name: value.requires_grad_() for name, value in values.items()}


def prepare(case: Case, backend: str, device: str) -> Work:
    """Prepare a case for a backend; all backends get the same random numbers."""
    torch.manual_seed(0)
    shape = SHAPES[case.shape]
    if "scan" in case.part:
        values = scan_inputs(shape.scan_shape(case.images), case.dtype, device)
        scan = plain_loop if backend == "loop" else partial(selective_scan, backend=backend)
        if case.part == "scan":
            return Work(partial(scan, **values), list(values.values()))
        taps = torch.randn(values["u"].shape[2], 1, 4, device=device, requires_grad=True)
        bias = torch.zeros(values["u"].shape[2], device=device, requires_grad=True)

        def both() -> Tensor:
            return scan(**values | {"u": convolve(values["u"], taps, bias, backend)})

        return Work(both, [*values.values(), taps, bias])
    module = build(case.part, shape, backend).to(device).train(case.backward)
    cells = 1 if case.part == "WMF" else 3
    channels = shape.width if case.part == "WMF" else shape.vision
    maps = [torch.randn(case.images, channels, shape.grid, shape.grid, device=device) for _ in range(cells)]
    words = torch.randn(case.images, 17, shape.width, device=device)
    sentence, padding = words[:, 0].clone(), torch.zeros(case.images, 17, dtype=torch.bool, device=device)
    reads = [x.requires_grad_() for x in (*maps, words, sentence)]

    def call() -> Tensor:
        visual = maps if case.part == "neck" else maps[0]
        with torch.autocast(device, case.dtype, enabled=case.dtype != torch.float32):
            if backend != "loop":
                return module(visual, words, sentence, padding)
            with mock.patch.object(mamba, "selective_scan", lambda *values, backend: plain_loop(*values)):
                return module(visual, words, sentence, padding)

    return Work(call, reads + list(module.parameters()))


def convolve(x: Tensor, taps: Tensor, bias: Tensor, backend: str) -> Tensor:
    """Run the causal convolution and SiLU by a backend, for `loop` by torch's own: x (batch, L, D), taps (D, 1, K)."""
    if backend != "loop":
        return causal_conv_silu(x, taps, bias, backend=backend)
    convolved = F.conv1d(x.mT, taps.to(x.dtype), bias.to(x.dtype), padding=taps.shape[2] - 1, groups=x.shape[2])
    return F.silu(convolved[..., : x.shape[1]].mT)


def build(part: str, shape: Shape, backend: str) -> nn.Module:
    """Return WMF or the whole neck, or for backend `detris` DETRIS's neck."""
    if backend == "detris":
        return GatedNeck(shape.vision, shape.width, shape.width, heads=shape.heads, residual=True)
    fusion = WindowMambaFusion(
        shape.width,
        shape.width,
        window=shape.window,
        gate="attention",
        norm=True,
        heads=shape.heads,
        state=shape.states,
        conv=4,
        expand=shape.expand,
        backend="reference" if backend == "loop" else backend,
    )
    return fusion if part == "WMF" else Neck(shape.vision, shape.width, fusion)


def backends(case: Case, device: str) -> list[str]:
    """Return the backends that can run a case, the plain loop first."""
    names = ["loop"]
    for name in ("reference", "cpu", "triton", "mamba_ssm"):
        try:
            choose_backend(name, device)
        except UserError:
            continue
        names.append(name)
    return names + ["detris"] * (case.part == "neck")


# --- time and memory --------------------------------------------------------------------------------------------------


def seconds(work: Work, device: str, *, backward: bool) -> float:
    """Return the seconds of one call."""
    work.forget()
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work.run(backward=backward)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def times(works: dict[str, Work], case: Case, device: str, most: int, enough: float) -> dict[str, list[float]]:
    """Return backend -> seconds of every repetition.

    There are `most` repetitions, or fewer once `enough` seconds have passed, but at least two. A backend that runs out
    of a GPU's memory is left out.
    """
    for backend, work in list(works.items()):
        try:
            seconds(work, device, backward=case.backward)
        except torch.OutOfMemoryError:
            works.pop(backend)
    result: dict[str, list[float]] = {backend: [] for backend in works}
    started = time.perf_counter()
    for number in range(most):
        if number >= 2 and time.perf_counter() - started > enough:
            break
        for backend, work in works.items():
            result[backend].append(seconds(work, device, backward=case.backward))
    return result


def memory(case: Case, backend: str, device: str) -> tuple[int, int]:
    """Return bytes: inputs and outputs, and the peak; zeros where it runs out of memory."""
    try:
        return _memory(prepare(case, backend, device), case, device)
    except torch.OutOfMemoryError:
        return 0, 0


def _memory(work: Work, case: Case, device: str) -> tuple[int, int]:
    output = work.run(backward=case.backward)
    reads = sum(x.nbytes for x in work.reads)
    io = (reads + output.nbytes) * (2 if case.backward else 1)
    del output
    work.forget()
    gc.collect()
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # memory that others freed, and that would be used without new pages
    held = Memory(torch.device(device))
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    work.run(backward=case.backward)
    return io, reads + (held.peak() or 0) - before


def memories(options: argparse.Namespace) -> list[tuple[Case, str]]:
    """Return the cases and backends whose memory is measured."""
    return [
        (case, backend)
        for case in cases(options.shapes, options.images, 1, options.device)
        for backend in backends(case, options.device)
        if case.part == "scan"
        and (backend == "cpu" or case.images == (options.images or SHAPES[case.shape].batches(options.device))[0])
    ]


def memories_apart(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Measure all memory on a CPU in a process of its own, whose allocations reuse no freed memory."""
    command = [sys.executable, __file__, "--memory", "--shapes", *options.shapes]
    if options.images:
        command += ["--images", *map(str, options.images)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [(io, peak) for io, peak in json.loads(process.stdout)]


def measure(options: argparse.Namespace, path: Path) -> None:
    """Measure every case and write a row for each number of threads and backend; the file grows by cases."""
    device = options.device
    name = platform_of(torch.device(device))["device"]
    pairs = memories(options)
    peaks = memories_apart(options) if device == "cpu" else [memory(case, backend, device) for case, backend in pairs]
    held = dict(zip(pairs, peaks, strict=True))
    bandwidth = copy_bandwidth() if device == "cuda" else 0.0
    rows: list[dict[str, object]] = []
    for threads in options.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        for case in cases(options.shapes, options.images, threads, device):
            works = {backend: prepare(case, backend, device) for backend in backends(case, device)}
            taken = times(works, case, device, options.repetitions, options.seconds)
            for backend, own in taken.items():
                io, peak = held.get((case, backend), (0, 0))
                ratios = {
                    f"{other}_over_this": statistics.median(a / b for a, b in zip(taken[other], own, strict=True))
                    for other in ("loop", "reference", *(["mamba_ssm"] if device == "cuda" else []))
                    if other in taken
                }
                if device == "cuda":
                    ratios |= shares(case, statistics.median(own), bandwidth)
                rows.append(
                    {
                        **case.label,
                        "threads": threads if device == "cpu" else "",
                        "backend": backend,
                        "milliseconds": f"{1e3 * statistics.median(own):.3f}",
                        **{key: f"{value:.2f}" for key, value in ratios.items()},
                        "io_mebibytes": f"{io / 2**20:.1f}" if io else "",
                        "peak_mebibytes": f"{peak / 2**20:.1f}" if io else "",
                        "peak_over_io": f"{peak / io:.2f}" if io else "",
                        "repetitions": len(own),
                        "device": name,
                        "torch": torch.__version__,
                        "python": platform.python_version(),
                        **(gpu_versions() if device == "cuda" else {}),
                    }
                )
            print(*case.label.values(), f"{threads} threads", sep=", ", flush=True)
            for row in rows[-len(works) :]:
                print("   ", *(row[key] for key in PRINTED if key in row))
            write(rows, path, options)


def copy_bandwidth() -> float:
    """Return the bytes a second that a copy of a gigabyte reads and writes on this GPU, the median of ten."""
    source = torch.empty(2**29, dtype=torch.bfloat16, device="cuda")
    target, taken = torch.empty_like(source), []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 2 * source.nbytes / statistics.median(taken[2:])


def shares(case: Case, duration: float, bandwidth: float) -> dict[str, float]:
    """Return the bandwidth of convolution and scan in half precision, in GB/s and as a share of a copy's."""
    if case.part != "conv + scan" or case.dtype != torch.bfloat16:
        return {}
    moved = sum(must_move(SHAPES[case.shape], case.images)[: 2 if case.backward else 1])
    return {"gigabytes_per_second": moved / duration / 1e9, "share_of_copy": moved / duration / bandwidth}


def gpu_versions() -> dict[str, str]:
    """Return what a GPU's numbers depend on besides torch: versions and the commit."""
    versions = {"cuda": torch.version.cuda or "", "commit": str(code_revision()["commit"])[:12]}
    for name in ("triton", "mamba-ssm", "causal-conv1d"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def must_move(shape: Shape, images: int) -> tuple[int, int]:
    """Return the bytes that convolution and scan must move in bf16, in the forward and in the backward.

    Everything is read and written once, u between the two as well.
    """
    batch, length, width, states = shape.scan_shape(images)
    numbers, narrow = batch * length * width, batch * length * states
    return 2 * (6 * numbers + 2 * narrow), 2 * (10 * numbers + 4 * narrow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=7, help="most repetitions of a case")
    parser.add_argument("--seconds", type=float, default=3, help="for a case, after which two repetitions are enough")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), metavar="SHAPE", help="all that fit, by default")
    parser.add_argument("--images", nargs="*", type=int, help="images in a batch")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shapes is None:
        options.shapes = [name for name in SHAPES if options.device == "cuda" or name != ON_GPU]
    if options.memory:
        torch.set_num_threads(1)
        print(json.dumps([memory(case, backend, options.device) for case, backend in memories(options)]))
    else:
        measure(options, HERE / f"scan_{options.device}.csv")


if __name__ == "__main__":
    main()
