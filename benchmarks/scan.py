"""The scan's backends side by side: the time of each beside that of the plain loop over tokens, and an estimate of
what a GPU needs at least.

    python benchmarks/scan.py                      # this machine's CPU, some minutes -> scan_cpu.csv beside this file
    python benchmarks/scan.py --device cuda        # a GPU, with Triton's kernels and mamba_ssm -> scan_cuda.csv
    python benchmarks/scan.py --roofline           # the estimate for an H200 alone -> scan_roofline.csv

Every repetition runs each backend once, one after the other, so that a busy machine slows all of them; a ratio is the
median over repetitions of the ratio within one. With one thread on a CPU a time is that thread's processor time, which
other processes lengthen little; otherwise it is wall time.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.errors import UserError
from wimfris.manifest import _processor
from wimfris.model.scan import choose_backend, selective_scan
from wimfris.model.scan.ops import CHUNK

HERE = Path(__file__).parent
# name -> (batch, L, D, N): scale tiny's windows; the paper's grid of 32 x 32 at one image, in windows and whole
SHAPES = {
    "tiny": (256, 17, 64, 8),
    "tiny, no window": (32, 65, 64, 8),
    "paper 2x2": (256, 5, 1024, 16),
    "paper 4x4": (64, 17, 1024, 16),
    "paper 8x8": (16, 65, 1024, 16),
    "paper 16x16": (4, 257, 1024, 16),
    "paper, no window": (1, 1025, 1024, 16),
}
NARROW = ("u", "delta", "B", "C", "z")  # what autocast makes half precision
H200 = {"bandwidth": 4.8e12, "exp": 132 * 16 * 1.75e9, "flops": 132 * 128 * 1.75e9}  # bytes/s; exp/s; float32 instr./s


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


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Random inputs of a scan that need gradients."""
    batch, length, width, states = shape
    wide, narrow = (batch, length, width), (batch, length, states)
    shapes = {"u": wide, "delta": wide, "A": (width, states), "B": narrow, "C": narrow, "D": (width,), "z": wide}
    values = {name: torch.randn(of, device=device) for name, of in (shapes | {"delta_bias": (width,)}).items()}
    values["A"] = -torch.exp(values["A"])
    values |= {name: values[name].to(dtype) for name in NARROW}
    return {name: value.requires_grad_() for name, value in values.items()}


def seconds(scan: Callable[..., Tensor], values: dict[str, Tensor], device: str, *, backward: bool) -> float:
    """One call."""
    for value in values.values():
        value.grad = None
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    if backward:
        scan(**values).float().sum().backward()
    else:
        with torch.no_grad():
            scan(**values)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def backends(device: str) -> dict[str, Callable[..., Tensor]]:
    """What can run on a device, by name; the plain loop first."""
    found: dict[str, Callable[..., Tensor]] = {"loop": plain_loop}
    for name in ("reference", "cpu", "triton", "mamba_ssm"):
        try:
            choose_backend(name, device)
        except UserError:
            continue
        found[name] = lambda backend=name, **values: selective_scan(backend=backend, **values)
    return found


def measure(device: str, repetitions: int, names: list[str], batches: list[int], path: Path) -> None:
    """A row a shape, batch, dtype, pass and backend, into a file that grows by shapes."""
    rows: list[dict[str, object]] = []
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    scans = backends(device)
    for shape_name in names:
        for images in batches if shape_name.startswith("paper") else [1]:
            batch, *rest = SHAPES[shape_name]
            shape = (batch * images, *rest)
            for dtype in (torch.float32, torch.bfloat16):
                values = inputs(shape, dtype, device)  # type: ignore[arg-type]
                for backward in (False, True):
                    taken: dict[str, list[float]] = {backend: [] for backend in scans}
                    peaks = {}
                    for backend, scan in scans.items():
                        if device == "cuda":
                            torch.cuda.reset_peak_memory_stats()
                        seconds(scan, values, device, backward=backward)
                        peaks[backend] = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if device == "cuda" else ""
                    for _ in range(repetitions):
                        for backend, scan in scans.items():
                            taken[backend].append(seconds(scan, values, device, backward=backward))
                    for backend, times in taken.items():
                        against = {
                            f"{other}_over_this": statistics.median(
                                a / b for a, b in zip(taken[other], times, strict=True)
                            )
                            for other in ("loop", "reference")
                        }
                        rows.append(
                            {
                                "shape": shape_name,
                                "batch": shape[0],
                                "length": shape[1],
                                "channels": shape[2],
                                "states": shape[3],
                                "dtype": str(dtype).removeprefix("torch."),
                                "pass": "forward + backward" if backward else "forward",
                                "backend": backend,
                                "milliseconds": f"{1e3 * statistics.median(times):.3f}",
                                **{key: f"{value:.2f}" for key, value in against.items()},
                                "peak_mebibytes": peaks[backend],
                                "repetitions": repetitions,
                                "device": name,
                                "threads": torch.get_num_threads() if device == "cpu" else "",
                                "torch": torch.__version__,
                                "python": platform.python_version(),
                            }
                        )
                    print({k: rows[-1][k] for k in ("shape", "batch", "dtype", "pass")}, flush=True)
                    for row in rows[-len(scans) :]:
                        print("   ", row["backend"], row["milliseconds"], "ms", row["loop_over_this"], flush=True)
        write(rows, path)


def roofline() -> list[dict[str, object]]:
    """What each of Triton's kernels must move and compute at batch 32 in bf16, and the least time on an H200.

    Per token and channel: bytes of what is read and written once (2 a number; parts of sums and states 4), exponentials
    and other float32 instructions, about; a tile has T tokens, of which L are real.
    """
    rows: list[dict[str, object]] = []
    for name, (batch, length, width, states) in SHAPES.items():
        if not name.startswith("paper"):
            continue
        batch *= 32
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
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--images", nargs="*", type=int, help="images in a batch of the paper's shapes")
    parser.add_argument("--roofline", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.roofline:
        write(roofline(), HERE / "scan_roofline.csv")
        return
    images = options.images or ([1, 2] if options.device == "cpu" else [1, 32])
    measure(options.device, options.repetitions, options.shapes, images, HERE / f"scan_{options.device}.csv")


if __name__ == "__main__":
    main()
