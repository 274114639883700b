"""The least time that the Triton kernels need on an H200, estimated from their machine code. No GPU is needed.

    python benchmarks/roofline.py              # -> scan_roofline.csv beside this file

For each kernel at batch 32 in bf16, the table has the bytes that it moves, the instructions that it issues, and a bound
on the time by each resource at its highest clock, as if the others were hidden behind it. The kernel's bound is that of
its scarcest resource. Beside it is the time of the bytes that any kernels must move in the pass, convolution and scan
together. The bound is optimistic: the backward of the scan spills registers, which takes more time than its
instructions show.

A JSON file beside the CSV has the same rows, with the settings, device, versions and commit of the estimate.
"""

import argparse
from pathlib import Path

from compiled import Instructions, count_instructions
from measured import write
from scan import SHAPES, Shape, must_move

from wimfris.kernels import triton as launcher
from wimfris.kernels import triton_conv, triton_scan

CLOCK = 132 * 1.98e9  # cycles a second of an H200: processors times the highest clock
H200 = {"bandwidth": 4.8e12, "issue": 4 * CLOCK, "special": CLOCK / 2, "memory": CLOCK}  # bytes/s; warp instructions/s
IMAGES = 32  # in a batch


def costs(shape: Shape, images: int) -> dict[str, tuple[float, Instructions]]:
    """Return kernel -> the bytes it moves and the instructions of all its warps, in bf16, as the neck calls it.

    The bytes are read and written once each, with the parts of sums and with B and C in float32. `pass_on` computes
    next to nothing and counts only in the bytes of the chunks.
    """
    batch, length, width, states = shape.scan_shape(images)
    numbers, narrow = batch * length * width, batch * length * states
    (tokens, chunks), (conv_tokens, conv_chunks) = launcher.scan_chunks(length), launcher.conv_chunks(length)
    saved, copies = 4 * batch * (chunks - 1) * states * width, 20 * narrow  # B and C are read, written and read again
    parts = 16 * narrow * width // launcher.BLOCK_BACK  # of the sums over channels, written and read

    def count(name: str, block: int, chunks: int, trips: list[int], **constants: object) -> Instructions:
        group = -(-batch * chunks // launcher.GROUPS)
        constants |= {"N": states, "K": 4, "PADDED": 4, "BLOCK": block, "WINDOWED": True, "CHUNKED": chunks > 1}
        grouped = name.endswith("backward")
        one = count_instructions((vars(triton_scan) | vars(triton_conv))[name], constants, [group] * grouped + trips)
        programs = -(-batch * chunks // group) if grouped else batch * (chunks - (name == "chunk_ends"))
        times = programs * (width // block)
        return Instructions(one.issued * times, one.special * times, one.memory * times)

    wide, narrower = launcher.BLOCK, launcher.BLOCK_BACK
    back = count("scan_backward", narrower, chunks, [states], T=tokens, ROUNDS=launcher.rounds(tokens))
    result = {
        "convolution, forward": (4 * numbers, count("conv_forward", wide, conv_chunks, [], T=conv_tokens)),
        "convolution, backward": (6 * numbers, count("conv_backward", narrower, conv_chunks, [], T=conv_tokens)),
        "scan, forward": (8 * numbers + copies + saved, count("scan_forward", wide, chunks, [states], T=tokens)),
        "scan, backward": (14 * numbers + copies + parts + 2 * saved, back),
    }
    if chunks > 1:
        for name, reverse in (("forward", False), ("backward", True)):
            ends = count("chunk_ends", wide, chunks, [states], T=tokens, REVERSE=reverse)
            result[f"chunks, {name}"] = ((6 if reverse else 4) * numbers + 4 * narrow + 3 * saved, ends)
    return result


def roofline() -> list[dict[str, object]]:
    """Return a row for each kernel and each of the paper's shapes."""
    rows: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        if name.startswith("tiny"):
            continue
        batch, length, _, _ = shape.scan_shape(IMAGES)
        least = dict(zip(("forward", "backward"), must_move(shape, IMAGES), strict=True))
        for kernel, (moved, instructions) in costs(shape, IMAGES).items():
            bounds = {
                "bytes": moved / H200["bandwidth"],
                "issue": instructions.issued / H200["issue"],
                "special": instructions.special / H200["special"],
                "memory": instructions.memory / H200["memory"],
            }
            limit = max(bounds, key=lambda key: bounds[key])
            rows.append(
                {
                    "shape": name,
                    "batch": batch,
                    "length": length,
                    "kernel": kernel,
                    "megabytes": f"{moved / 1e6:.0f}",
                    "million_instructions": f"{instructions.issued / 1e6:.0f}",
                    **{f"ms_{key}": f"{1e3 * value:.3f}" for key, value in bounds.items()},
                    "limit": limit,
                    "at_least_ms": f"{1e3 * bounds[limit]:.3f}",
                    "ms_of_what_the_pass_must_move": f"{1e3 * least[kernel.split(', ')[1]] / H200['bandwidth']:.3f}",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    write(roofline(), Path(__file__).parent / "scan_roofline.csv", parser.parse_args())


if __name__ == "__main__":
    main()
