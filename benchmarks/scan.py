"""The scan's backends side by side, alone and inside the neck: time, memory, and what a GPU needs at least.

    python benchmarks/scan.py                      # this CPU, a quarter of an hour -> scan_cpu.csv beside this file
    python benchmarks/scan.py --device cuda        # a GPU, with Triton's kernels and mamba_ssm -> scan_cuda.csv
    python benchmarks/scan.py --roofline           # the estimate for an H200 alone -> scan_roofline.csv

`scan` is the scan alone, `WMF` the window Mamba fusion around it, `neck` all of HMF, beside DETRIS's neck of equal
width. `loop` is the plain loop over tokens, in WMF and neck too. To save time WMF, neck and bfloat16 are measured at
some of the shapes alone, bfloat16 at the least batch.

Every repetition runs each backend once, one after the other, so that a busy machine slows all of them; a ratio is the
median over repetitions of the ratio within one. With one thread on a CPU a time is that thread's processor time, which
other processes lengthen little; otherwise it is wall time.

Memory is that of a call by itself: `io_mebibytes` are its inputs (and parameters) and its output, with the backward
also the gradients of all of these; `peak_mebibytes` its inputs and the most that it held beside them. On a CPU this is
what the process's resident pages say, with one thread, in a process where every larger allocation has pages of its own,
and measured of the scan alone, at the least batch but for `cpu`.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.efficiency import Memory
from wimfris.errors import UserError
from wimfris.manifest import _processor
from wimfris.model import mamba
from wimfris.model.baselines.detris import GatedNeck
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.scan import choose_backend, selective_scan
from wimfris.model.scan.ops import CHUNK

HERE = Path(__file__).parent
NARROW = ("u", "delta", "B", "C", "z")  # what autocast makes half precision
H200 = {"bandwidth": 4.8e12, "exp": 132 * 16 * 1.75e9, "flops": 132 * 128 * 1.75e9}  # bytes/s; exp/s; float32 instr./s


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
}
SOME = ("tiny", "tiny, no window", "paper 4x4", "paper, no window")  # measured in every way


@dataclass(frozen=True)
class Case:
    """What is measured."""

    what: str  # scan | WMF | neck
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


def cases(names: list[str], images: list[int] | None, threads: int) -> Iterator[Case]:
    """All that is measured with so many threads."""
    batches = {name: images or SHAPES[name].images for name in names}
    all_of_them = [(name, batch) for name in names for batch in batches[name]]
    some = [(name, batch) for name, batch in all_of_them if name in SOME] if threads == 1 else []
    least = [(name, batch) for name, batch in some if batch == batches[name][0]]
    for what, dtype, chosen in (
        ("scan", torch.float32, all_of_them),
        ("scan", torch.bfloat16, least),
        ("WMF", torch.float32, some),
        ("neck", torch.float32, some),
    ):
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
    if case.what == "scan":
        values = scan_inputs(shape.of_scan(case.images), case.dtype, device)
        scan = plain_loop if backend == "loop" else partial(selective_scan, backend=backend)
        return Work(partial(scan, **values), list(values.values()))
    module = build(case.what, shape, backend).to(device).train(case.backward)
    cells = 1 if case.what == "WMF" else 3
    channels = shape.width if case.what == "WMF" else shape.vision
    maps = [torch.randn(case.images, channels, shape.grid, shape.grid, device=device) for _ in range(cells)]
    words = torch.randn(case.images, 17, shape.width, device=device)
    sentence, padding = words[:, 0].clone(), torch.zeros(case.images, 17, dtype=torch.bool, device=device)
    reads = [x.requires_grad_() for x in (*maps, words, sentence)]

    def call() -> Tensor:
        visual = maps if case.what == "neck" else maps[0]
        if backend != "loop":
            return module(visual, words, sentence, padding)
        with mock.patch.object(mamba, "selective_scan", lambda *values, backend: plain_loop(*values)):
            return module(visual, words, sentence, padding)

    return Work(call, reads + list(module.parameters()))


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
    """Of every backend and repetition: `most` repetitions, or when `enough` seconds have gone by fewer, but two."""
    for work in works.values():
        seconds(work, device, backward=case.backward)
    found: dict[str, list[float]] = {backend: [] for backend in works}
    started = time.perf_counter()
    for number in range(most):
        if number >= 2 and time.perf_counter() - started > enough:
            break
        for backend, work in works.items():
            found[backend].append(seconds(work, device, backward=case.backward))
    return found


def memory(case: Case, backend: str, device: str) -> tuple[int, int]:
    """Bytes: inputs and outputs, and the most that is held."""
    work = prepare(case, backend, device)
    output = work.run(backward=case.backward)
    reads = sum(x.nbytes for x in work.reads)
    io = (reads + output.nbytes) * (2 if case.backward else 1)
    del output
    work.forget()
    gc.collect()
    held = Memory(torch.device(device))
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    work.run(backward=case.backward)
    return io, reads + (held.peak() or 0) - before


def memories(options: argparse.Namespace) -> list[tuple[Case, str]]:
    """What `memory` is measured of."""
    return [
        (case, backend)
        for case in cases(options.shapes, options.images, 1)
        for backend in backends(case, options.device)
        if case.what == "scan" and (backend == "cpu" or case.images == (options.images or SHAPES[case.shape].images)[0])
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
    of = memories(options)
    peaks = memories_apart(options) if device == "cpu" else [memory(case, backend, device) for case, backend in of]
    held = dict(zip(of, peaks, strict=True))
    rows: list[dict[str, object]] = []
    for threads in options.threads if device == "cpu" else [1]:
        torch.set_num_threads(threads)
        for case in cases(options.shapes, options.images, threads):
            works = {backend: prepare(case, backend, device) for backend in backends(case, device)}
            taken = times(works, case, device, options.repetitions, options.seconds)
            for backend, own in taken.items():
                io, peak = held.get((case, backend), (0, 0))
                ratios = {
                    f"{other}_over_this": statistics.median(a / b for a, b in zip(taken[other], own, strict=True))
                    for other in ("loop", "reference")
                }
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
                        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
                        "torch": torch.__version__,
                        "python": platform.python_version(),
                    }
                )
            print(*case.label.values(), f"{threads} threads", sep=", ", flush=True)
            for row in rows[-len(works) :]:
                print("   ", *(row[key] for key in ("backend", "milliseconds", "loop_over_this", "peak_over_io")))
            write(rows, path)


# --- what a GPU needs at least ----------------------------------------------------------------------------------------


def roofline() -> list[dict[str, object]]:
    """What each of Triton's kernels must move and compute at batch 32 in bf16, and the least time on an H200.

    Per token and channel: bytes of what is read and written once (2 a number; parts of sums and states 4), exponentials
    and other float32 instructions, about; a tile has T tokens, of which L are real.
    """
    rows: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        if not name.startswith("paper"):
            continue
        batch, length, width, states = shape.of_scan(32)
        tile = min(1 << (length - 1).bit_length(), CHUNK)
        chunks = -(-length // tile)
        places = batch * chunks * tile * width  # of all tiles
        numbers, narrow, blocks = batch * length * width, batch * length * states, width // 64
        kept = 4 * batch * (chunks - 1) * states * width
        kernels = {
            # bytes, exponentials and instructions a place; the scan composes log2(T) times at worst, once at best
            "convolution, forward": (4 * numbers, 1, 2 * 4 + 4),
            "convolution, backward": (6 * numbers, 4, 4 * (2 * 4 + 10)),
            "scan, forward": (8 * numbers + 4 * narrow + kept, states + 3, states * 8 + 12),
            "scan, backward": (
                14 * numbers + 4 * narrow + 8 * narrow * blocks + 2 * kept,
                2 * states + 5,
                states * 24 + 30,
            ),
            "chunks, forward": (4 * numbers + 2 * narrow + 3 * kept, states + 2, states * 4 + 6)
            if chunks > 1
            else None,
            "chunks, backward": (6 * numbers + 2 * narrow + 3 * kept, states + 3, states * 4 + 9)
            if chunks > 1
            else None,
        }
        for kernel, needs in kernels.items():
            if needs is None:
                continue
            moved, exps, instructions = needs[0], needs[1] * places, needs[2] * places
            bounds = {
                "memory": moved / H200["bandwidth"],
                "exp": exps / H200["exp"],
                "float32": instructions / H200["flops"],
            }
            limit = max(bounds, key=lambda key: bounds[key])
            rows.append(
                {
                    "shape": name,
                    "batch": batch,
                    "length": length,
                    "kernel": kernel,
                    "megabytes": f"{moved / 1e6:.0f}",
                    "giga_exp": f"{exps / 1e9:.2f}",
                    "giga_float32": f"{instructions / 1e9:.1f}",
                    **{f"ms_{key}": f"{1e3 * value:.3f}" for key, value in bounds.items()},
                    "limit": limit,
                    "expected_ms": f"{1e3 * bounds[limit]:.3f}",
                }
            )
    return rows


def write(rows: list[dict[str, object]], path: Path) -> None:
    pd.DataFrame(rows, dtype=object).to_csv(path, index=False, lineterminator="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=7, help="at most")
    parser.add_argument("--seconds", type=float, default=3, help="of a case, after which two repetitions are enough")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--images", nargs="*", type=int, help="in a batch")
    parser.add_argument("--memory", action="store_true", help="print bytes of inputs and outputs, and peaks, as JSON")
    parser.add_argument("--roofline", action="store_true")
    options = parser.parse_args()
    if options.roofline:
        write(roofline(), HERE / "scan_roofline.csv")
    elif options.memory:
        torch.set_num_threads(1)
        print(json.dumps([memory(case, backend, options.device) for case, backend in memories(options)]))
    else:
        measure(options, HERE / f"scan_{options.device}.csv")


if __name__ == "__main__":
    main()
