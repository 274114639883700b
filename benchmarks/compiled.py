"""Count the instructions of a Triton kernel in its machine code for compute capability 9.0 (Hopper: H100, H200).

No GPU is needed, and nothing runs on one.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
HALF = ("u", "delta", "z", "out", "grad", "x", "text", "grad_u", "grad_delta", "grad_z", "grad_x")  # bfloat16
WHOLE = ("length", "width", "chunks", "windows", "area", "total", "members", "between")
ALIGNED = ("width", "u_step", "delta_step", "z_step", "grad_step_", "x_step", "text_step")  # multiples of 16


@dataclass(frozen=True)
class Instructions:
    """The instructions of a warp over a whole program."""

    issued: int
    special: int  # of the special function unit: exp, log, 1/x
    memory: int  # of the unit for memory and shuffles


def count_instructions(kernel: Any, constants: dict[str, Any], trips: Sequence[int]) -> Instructions:
    """Compile a kernel whose programs are one warp, and count its instructions.

    trips: how often each loop runs, outer loops first. Raises RuntimeError where the machine code has another number of
    loops.
    """
    code, labels = _disassembled(compiled(kernel, constants))
    times = [1] * len(code)
    loops = _loops(code, labels)
    if len(loops) != len(trips):
        raise RuntimeError(f"{kernel.__name__} must have {len(trips)} loops in its machine code, got {len(loops)}")
    for (first, last), trip in zip(loops, trips, strict=True):
        for place in range(first, last + 1):
            times[place] *= trip
    counted: Counter[str] = Counter()
    for line, time in zip(code, times, strict=True):
        counted[_name(line)] += time
    memory = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDSM", "SHFL")
    return Instructions(counted.total(), counted["MUFU"], sum(counted[name] for name in memory))


def compiled(kernel: Any, constants: dict[str, Any], capability: int = 90, ones: Sequence[str] = ()) -> bytes:
    """Return the machine code for a compute capability (90 is 9.0). ones: integer arguments that are 1, which Triton
    makes constants.
    """
    constants = constants | dict.fromkeys(ones, 1)
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in WHOLE or argument.rstrip("_").endswith("_step"):
            return "i32"
        return "*i32" if argument == "cells" else "*bf16" if argument in HALF else "*fp32"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument in ALIGNED
    }
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", capability, 32)
    cubin: bytes = triton.compile(source, target=target, options={"num_warps": 1}).asm["cubin"]
    return cubin


def _disassembled(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    """Return the instructions, and the place of every label among them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True).stdout
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
    return code, labels


def _loops(code: list[str], labels: dict[str, int]) -> list[tuple[int, int]]:
    """Return the first and last instruction of every loop, outer loops first: a branch leads back over them."""
    loops = {
        (labels[label[0]], place)
        for place, line in enumerate(code)
        if _name(line) == "BRA" and (label := re.search(r"\.L_\w+", line)) and labels[label[0]] < place
    }
    return sorted(loops, key=lambda loop: (loop[0], -loop[1]))


def _name(line: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0]
