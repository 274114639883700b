"""The scan's backends side by side, alone and inside the neck: time, memory, and what a GPU needs at least.

    python benchmarks/scan.py                      # this CPU, a quarter of an hour -> scan_cpu.csv beside this file
    python benchmarks/scan.py --device cuda        # a GPU, with Triton's kernels and mamba_ssm -> scan_cuda.csv
    python benchmarks/scan.py --roofline           # an estimate for an H200, without one -> scan_roofline.csv

Beside every CSV stands the same as JSON, with the settings, device, versions and commit it was measured by.

`scan` is the scan alone, `conv + scan` with the convolution before it (on a GPU), `WMF` the window Mamba fusion around
both, `neck` all of HMF, beside DETRIS's neck of equal width. `loop` is the plain loop over tokens, in WMF and neck too.
On a CPU, to save time, WMF, neck and bfloat16 are measured at some of the shapes alone, bfloat16 at the least batch. On
a GPU a batch is the paper's, 32 images, in both precisions (WMF and neck under autocast); what does not fit has no row;
and a copy of a gigabyte, timed first, is what bandwidth is told by: `share_of_copy` is the bytes that the convolution
and the scan must move (`must_move`) over the time of their row, as a share of the copy's.

Every repetition runs each backend once, one after the other, so that a busy machine slows all of them; a ratio is the
median over repetitions of the ratio within one. With one thread on a CPU a time is that thread's processor time, which
other processes lengthen little; otherwise it is wall time.

Memory is that of a call by itself: `io_mebibytes` are its inputs (and parameters) and its output, with the backward
also the gradients of all of these; `peak_mebibytes` its inputs and the most that it held beside them. On a CPU this is
what the process's resident pages say, with one thread, in a process where every larger allocation has pages of its own,
and measured of the scan alone, at the least batch but for `cpu`.
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
from typing import TYPE_CHECKING
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

if TYPE_CHECKING:
    from compiled import Instructions

HERE = Path(__file__).parent
NARROW = ("u", "delta", "B", "C", "z")  # what autocast makes half precision
CLOCK = 132 * 1.98e9  # of an H200: processors times cycles a second at most
H200 = {"bandwidth": 4.8e12, "issue": 4 * CLOCK, "special": CLOCK / 2, "memory": CLOCK}  # bytes/s; warp instructions/s


@dataclass(frozen=True)
class Shape:
    """A neck: its grid's and window's side in cells (a window of the whole grid is none), its widths, and how many
    images are in a batch.
    """

    window: int
    grid: int = 32
    width: int = 512
    expand: int = 2
    states: int = 16
    heads: int = 8
    vision: int = 768
    images: tuple[int, ...] = (1, 2)

    def batches(self, device: str) -> tuple[int, ...]:
        """The batches that are measured by default."""
        return (32,) if device == "cuda" else self.images

    def of_scan(self, images: int) -> tuple[int, int, int, int]:
        """(batch, L, D, N)."""
        return images * (self.grid // self.window) ** 2, self.window**2 + 1, self.expand * self.width, self.states


TINY = partial(Shape, grid=8, width=64, expand=1, states=8, heads=4, vision=64, images=(32,))
SHAPES = {  # scale tiny's batch; the paper's widths and grid
    "tiny": TINY(4),
    "tiny, no window": TINY(8),
    "paper 2x2": Shape(2),
    "paper 4x4": Shape(4),
    "paper 8x8": Shape(8),
    "paper 16x16": Shape(16),
    "paper, no window": Shape(32),
    "twice the side, no window": Shape(64, grid=64),
}
ON_GPU = "twice the side, no window"  # 4,097 tokens: minutes a call for the loop on a CPU
SOME = ("tiny", "tiny, no window", "paper 4x4", "paper, no window")  # measured in every way


@dataclass(frozen=True)
class Case:
    """What is measured."""

    what: str  # scan | conv + scan | WMF | neck
    shape: str
    images: int
    dtype: torch.dtype
    backward: bool

    @property
    def label(self) -> dict[str, object]:
        batch, length, channels, states = SHAPES[self.shape].of_scan(self.images)
        return {
            "what": self.what,
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
    """All that is measured with so many threads."""
    batches = {name: images or SHAPES[name].batches(device) for name in names}
    all_of_them = [(name, batch) for name in names for batch in batches[name]]
    some = [(name, batch) for name, batch in all_of_them if name in SOME] if threads == 1 else []
    least = [(name, batch) for name, batch in some if batch == batches[name][0]]
    single, half = torch.float32, torch.bfloat16
    plan = [("scan", single, all_of_them), ("scan", half, least), ("WMF", single, some), ("neck", single, some)]
    if device == "cuda":
        plan = [(what, of, all_of_them) for what in ("scan", "conv + scan", "WMF", "neck") for of in (half, single)]
    for what, dtype, chosen in plan:
        for name, batch in chosen:
            for backward in (False, True):
                yield Case(what, name, batch, dtype, backward)


@dataclass
class Work:
    """A call to be measured, and the tensors that it reads and that may need gradients."""

    call: Callable[[], Tensor]
    reads: list[Tensor]

    def run(self, *, backward: bool) -> Tensor:
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
    """The recurrence as it is written, one token at a time, in float32, differentiated by autograd."""
    dtype, (u, delta, B, C, z) = u.dtype, (x.float() for x in (u, delta, B, C, z))
    delta = F.softplus(delta + delta_bias)
    state, outputs = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        driven = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        state = torch.exp(delta[:, t, :, None] * A) * state + driven
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return ((torch.stack(outputs, dim=1) + D * u) * F.silu(z)).to(dtype)


def scan_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random inputs of a scan that need gradients."""
    batch, length, width, states = shape
    wide, narrow = (batch, length, width), (batch, length, states)
    shapes = {"u": wide, "delta": wide, "A": (width, states), "B": narrow, "C": narrow, "D": (width,), "z": wide}
    values = {name: torch.randn(of, device=device) for name, of in (shapes | {"delta_bias": (width,)}).items()}
    values["A"] = -torch.exp(values["A"])
    values |= {name: values[name].to(dtype) for name in NARROW}
    return {name: value.requires_grad_() for name, value in values.items()}


def prepare(case: Case, backend: str, device: str) -> Work:
    """A case by a backend, on the same random numbers whichever it is."""
    torch.manual_seed(0)
    shape = SHAPES[case.shape]
    if "scan" in case.what:
        values = scan_inputs(shape.of_scan(case.images), case.dtype, device)
        scan = plain_loop if backend == "loop" else partial(selective_scan, backend=backend)
        if case.what == "scan":
            return Work(partial(scan, **values), list(values.values()))
        taps = torch.randn(values["u"].shape[2], 1, 4, device=device, requires_grad=True)
        bias = torch.zeros(values["u"].shape[2], device=device, requires_grad=True)

        def both() -> Tensor:
            return scan(**values | {"u": convolve(values["u"], taps, bias, backend)})

        return Work(both, [*values.values(), taps, bias])
    module = build(case.what, shape, backend).to(device).train(case.backward)
    cells = 1 if case.what == "WMF" else 3
    channels = shape.width if case.what == "WMF" else shape.vision
    maps = [torch.randn(case.images, channels, shape.grid, shape.grid, device=device) for _ in range(cells)]
    words = torch.randn(case.images, 17, shape.width, device=device)
    sentence, padding = words[:, 0].clone(), torch.zeros(case.images, 17, dtype=torch.bool, device=device)
    reads = [x.requires_grad_() for x in (*maps, words, sentence)]

    def call() -> Tensor:
        visual = maps if case.what == "neck" else maps[0]
        with torch.autocast(device, case.dtype, enabled=case.dtype != torch.float32):
            if backend != "loop":
                return module(visual, words, sentence, padding)
            with mock.patch.object(mamba, "selective_scan", lambda *values, backend: plain_loop(*values)):
                return module(visual, words, sentence, padding)

    return Work(call, reads + list(module.parameters()))


def convolve(x: Tensor, taps: Tensor, bias: Tensor, backend: str) -> Tensor:
    """The causal convolution and its SiLU as `backend` has them, by the loop torch's own: x (batch, L, D), taps (D, 1,
    K), bias (D,).
    """
    if backend != "loop":
        return causal_conv_silu(x, taps, bias, backend=backend)
    convolved = F.conv1d(x.mT, taps.to(x.dtype), bias.to(x.dtype), padding=taps.shape[2] - 1, groups=x.shape[2])
    return F.silu(convolved[..., : x.shape[1]].mT)


def build(what: str, shape: Shape, backend: str) -> nn.Module:
    """WMF, or the whole neck, or with backend `detris` the neck of that name."""
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
    return fusion if what == "WMF" else Neck(shape.vision, shape.width, fusion)


def backends(case: Case, device: str) -> list[str]:
    """What can run a case, the plain loop first."""
    found = ["loop"]
    for name in ("reference", "cpu", "triton", "mamba_ssm"):
        try:
            choose_backend(name, device)
        except UserError:
            continue
        found.append(name)
    return found + ["detris"] * (case.what == "neck")


# --- time and memory --------------------------------------------------------------------------------------------------


def seconds(work: Work, device: str, *, backward: bool) -> float:
    """One call."""
    work.forget()
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work.run(backward=backward)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def times(works: dict[str, Work], case: Case, device: str, most: int, enough: float) -> dict[str, list[float]]:
    """Of every backend and repetition: `most` repetitions, or when `enough` seconds have gone by fewer, but two. What
    does not fit into a GPU's memory is left out.
    """
    for backend, work in list(works.items()):
        try:
            seconds(work, device, backward=case.backward)
        except torch.OutOfMemoryError:
            works.pop(backend)
    found: dict[str, list[float]] = {backend: [] for backend in works}
    started = time.perf_counter()
    for number in range(most):
        if number >= 2 and time.perf_counter() - started > enough:
            break
        for backend, work in works.items():
            found[backend].append(seconds(work, device, backward=case.backward))
    return found


def memory(case: Case, backend: str, device: str) -> tuple[int, int]:
    """Bytes: inputs and outputs, and the most that is held; zeros for what does not fit."""
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
        ctypes.CDLL(None).malloc_trim(0)  # what others left, and would serve without new pages
    held = Memory(torch.device(device))
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    work.run(backward=case.backward)
    return io, reads + (held.peak() or 0) - before


def memories(options: argparse.Namespace) -> list[tuple[Case, str]]:
    """What `memory` is measured of."""
    return [
        (case, backend)
        for case in cases(options.shapes, options.images, 1, options.device)
        for backend in backends(case, options.device)
        if case.what == "scan"
        and (backend == "cpu" or case.images == (options.images or SHAPES[case.shape].batches(options.device))[0])
    ]


def memories_apart(options: argparse.Namespace) -> list[tuple[int, int]]:
    """`memory` of all on a CPU, in a process whose allocations are not made from what others left."""
    command = [sys.executable, __file__, "--memory", "--shapes", *options.shapes]
    if options.images:
        command += ["--images", *map(str, options.images)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [(io, peak) for io, peak in json.loads(done.stdout)]


def measure(options: argparse.Namespace, path: Path) -> None:
    """A row a case, number of threads and backend, into a file that grows by cases."""
    device = options.device
    name = platform_of(torch.device(device))["device"]
    of = memories(options)
    peaks = memories_apart(options) if device == "cpu" else [memory(case, backend, device) for case, backend in of]
    held = dict(zip(of, peaks, strict=True))
    copied = copy_bandwidth() if device == "cuda" else 0.0
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
                    ratios |= shares(case, statistics.median(own), copied)
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
                told = (
                    "backend",
                    "milliseconds",
                    "loop_over_this",
                    "mamba_ssm_over_this",
                    "share_of_copy",
                    "peak_over_io",
                )
                print("   ", *(row[key] for key in told if key in row))
            write(rows, path, options)


def copy_bandwidth() -> float:
    """Bytes a second that a copy of a gigabyte reads and writes on this GPU, the median of ten."""
    source = torch.empty(2**29, dtype=torch.bfloat16, device="cuda")
    target, taken = torch.empty_like(source), []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 2 * source.nbytes / statistics.median(taken[2:])


def shares(case: Case, seconds_: float, copied: float) -> dict[str, float]:
    """Of convolution and scan in half precision: gigabytes a second that must move, and as a share of a copy's."""
    if case.what != "conv + scan" or case.dtype != torch.bfloat16:
        return {}
    moved = sum(must_move(SHAPES[case.shape], case.images)[: 2 if case.backward else 1])
    return {"gigabytes_per_second": moved / seconds_ / 1e9, "share_of_copy": moved / seconds_ / copied}


def gpu_versions() -> dict[str, str]:
    """Of what the numbers of a GPU depend on besides torch."""
    found = {"cuda": torch.version.cuda or "", "commit": str(code_revision()["commit"])[:12]}
    for name in ("triton", "mamba-ssm", "causal-conv1d"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- what a GPU needs at least ----------------------------------------------------------------------------------------


def must_move(shape: Shape, images: int) -> tuple[int, int]:
    """Bytes of forward and backward of convolution and scan in bf16, whatever computes them: what is read and what is
    written, each once (u between the two as well).
    """
    batch, length, width, states = shape.of_scan(images)
    numbers, narrow = batch * length * width, batch * length * states
    return 2 * (6 * numbers + 2 * narrow), 2 * (10 * numbers + 4 * narrow)


def needs(shape: Shape, images: int) -> "dict[str, tuple[float, Instructions]]":
    """Of Triton's kernels in bf16, as the neck calls them: the bytes that each reads and writes once, its parts of sums
    and B and C in float32 among them, and instructions of all its warps. `pass_on`, which computes next to nothing, is
    among the chunks' bytes alone.
    """
    from compiled import Instructions, instructions

    from wimfris.kernels import triton as launched
    from wimfris.kernels import triton_kernels as kernels

    batch, length, width, states = shape.of_scan(images)
    numbers, narrow = batch * length * width, batch * length * states
    (tokens, chunks), (conv_tokens, conv_chunks) = launched.cut(length), launched.cut_conv(length)
    kept, copies = 4 * batch * (chunks - 1) * states * width, 20 * narrow  # B and C are read, written and read again
    parts = 16 * narrow * width // launched.BLOCK_BACK  # of the sums over channels, written and read

    def of(name: str, block: int, chunks: int, trips: list[int], **constants: object) -> "Instructions":
        group = -(-batch * chunks // launched.GROUPS)
        constants |= {"N": states, "K": 4, "PADDED": 4, "BLOCK": block, "WINDOWED": True, "CHUNKED": chunks > 1}
        grouped = name.endswith("backward")
        one = instructions(getattr(kernels, name), constants, [group] * grouped + trips)
        programs = -(-batch * chunks // group) if grouped else batch * (chunks - (name == "chunk_ends"))
        times = programs * (width // block)
        return Instructions(one.issued * times, one.special * times, one.memory * times)

    wide, narrower = launched.BLOCK, launched.BLOCK_BACK
    back = of("scan_backward", narrower, chunks, [states], T=tokens, ROUNDS=launched.rounds(tokens))
    found = {
        "convolution, forward": (4 * numbers, of("conv_forward", wide, conv_chunks, [], T=conv_tokens)),
        "convolution, backward": (6 * numbers, of("conv_backward", narrower, conv_chunks, [], T=conv_tokens)),
        "scan, forward": (8 * numbers + copies + kept, of("scan_forward", wide, chunks, [states], T=tokens)),
        "scan, backward": (14 * numbers + copies + parts + 2 * kept, back),
    }
    if chunks > 1:
        for name, reverse in (("forward", False), ("backward", True)):
            ends = of("chunk_ends", wide, chunks, [states], T=tokens, REVERSE=reverse)
            found[f"chunks, {name}"] = ((6 if reverse else 4) * numbers + 4 * narrow + 3 * kept, ends)
    return found


def roofline() -> list[dict[str, object]]:
    """What each of Triton's kernels moves and issues at batch 32 in bf16, as compiled, and the least time on an H200:
    that of its scarcest resource at its highest clock, with the others hidden behind it and nothing of it idle. Beside
    it, the time of what any kernels must move in this pass, convolution and scan together.
    """
    rows: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        if name.startswith("tiny"):
            continue
        batch, length, _, _ = shape.of_scan(32)
        least = dict(zip(("forward", "backward"), must_move(shape, 32), strict=True))
        for kernel, (moved, counted) in needs(shape, 32).items():
            bounds = {
                "bytes": moved / H200["bandwidth"],
                "issue": counted.issued / H200["issue"],
                "special": counted.special / H200["special"],
                "memory": counted.memory / H200["memory"],
            }
            limit = max(bounds, key=lambda key: bounds[key])
            rows.append(
                {
                    "shape": name,
                    "batch": batch,
                    "length": length,
                    "kernel": kernel,
                    "megabytes": f"{moved / 1e6:.0f}",
                    "million_instructions": f"{counted.issued / 1e6:.0f}",
                    **{f"ms_{key}": f"{1e3 * value:.3f}" for key, value in bounds.items()},
                    "limit": limit,
                    "at_least_ms": f"{1e3 * bounds[limit]:.3f}",
                    "ms_of_what_the_pass_must_move": f"{1e3 * least[kernel.split(', ')[1]] / H200['bandwidth']:.3f}",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=7, help="at most")
    parser.add_argument("--seconds", type=float, default=3, help="of a case, after which two repetitions are enough")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), metavar="SHAPE", help="by default all that fit")
    parser.add_argument("--images", nargs="*", type=int, help="in a batch")
    parser.add_argument("--memory", action="store_true", help="print bytes of inputs and outputs, and peaks, as JSON")
    parser.add_argument("--roofline", action="store_true")
    options = parser.parse_args()
    if options.shapes is None:
        options.shapes = [name for name in SHAPES if options.device == "cuda" or name != ON_GPU]
    if options.roofline:
        write(roofline(), HERE / "scan_roofline.csv", options)
    elif options.memory:
        torch.set_num_threads(1)
        print(json.dumps([memory(case, backend, options.device) for case, backend in memories(options)]))
    else:
        measure(options, HERE / f"scan_{options.device}.csv")


if __name__ == "__main__":
    main()
