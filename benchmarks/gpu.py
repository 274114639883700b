"""Run everything that needs a GPU, the most important first: a smoke run, the tests, the benchmarks (`make gpu`).

    python benchmarks/gpu.py                # an hour or so -> gpu.csv beside this file, and the parts' own CSV and JSON
    python benchmarks/gpu.py smoke scan     # these parts alone

A part that fails does not stop the next one. The end lists what ran, where its CSV and JSON lie, and what is still
unmeasured. The command fails where a part does.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measured import write

HERE = Path(__file__).parent
OUT = HERE / "gpu.csv"


@dataclass(frozen=True)
class Part:
    """A command, and the CSV file that it leaves in this folder; "" where it leaves none."""

    name: str
    question: str
    command: tuple[str, ...]
    csv: str = ""


def _benchmark(script: str, *arguments: str) -> tuple[str, ...]:
    return (str(HERE / script), *arguments)


PARTS = (
    Part(
        "smoke",
        "a training at scale base runs, resumes to the same bits, and is evaluated",
        _benchmark("smoke.py", "--device", "cuda"),
        "smoke_cuda.csv",
    ),
    Part(
        "doctor",
        "versions, and the scan backends against the reference",
        ("-m", "wimfris", "doctor", "--scale", "base"),
    ),
    Part(
        "tests",
        "a GPU computes what a CPU does, and the same bits every time",
        ("-m", "pytest", "-m", "gpu", "-n", "0", "-q"),
    ),
    Part(
        "model",
        "time, memory and utilisation of WIMFRIS, DETRIS and ETRIS",
        _benchmark("model.py", "--device", "cuda"),
        "model_cuda.csv",
    ),
    Part("scan", "time and memory of the scan backends", _benchmark("scan.py", "--device", "cuda"), "scan_cuda.csv"),
    Part(
        "loader",
        "how many processes feed the GPU",
        _benchmark("loader.py", "--workers", "0", "4", "8", "--time-step", "--out", str(HERE / "loader_cuda.csv")),
        "loader_cuda.csv",
    ),
    Part(
        "checkpointing",
        "memory and time with gradient checkpointing",
        _benchmark("model.py", "--device", "cuda", "--checkpointing", "--out", str(HERE / "model_checkpointing.csv")),
        "model_checkpointing.csv",
    ),
)
BEYOND = (  # what no part measures
    "training to the end at the paper's scale",
    "several GPUs",
    "the scan by mamba_ssm, unless it is installed (docs/gpu.md)",
)


def run(part: Part) -> dict[str, object]:
    """Run a part and return its row. A file that an earlier run left does not count."""
    print(f"\n=== {part.name}: {part.question}", flush=True)
    path = HERE / part.csv if part.csv else None
    before = path.stat().st_mtime_ns if path and path.exists() else None
    started = time.perf_counter()
    code = subprocess.run([sys.executable, *part.command], cwd=HERE.parent, check=False).returncode
    seconds = time.perf_counter() - started
    written = path is not None and path.exists() and path.stat().st_mtime_ns != before
    passed = code == 0 and (path is None or written)
    return {
        "part": part.name,
        "passed": passed,
        "exit_code": code,
        "seconds": f"{seconds:.0f}",
        "csv": part.csv if written else "",
        "question": part.question,
    }


def summary(rows: list[dict[str, object]]) -> str:
    """Return what ran, the files that it left, and what is unmeasured, as text."""
    lines = ["", "part           result  seconds  CSV and JSON"]
    for row in rows:
        files = HERE / str(row["csv"]) if row["csv"] else ""
        result = "passed" if row["passed"] else "FAILED"
        lines.append(f"{row['part']:<14} {result}  {row['seconds']:>7}  {files}")
    done = {row["part"] for row in rows if row["passed"]}
    missing = [f"{part.question} ({part.name})" for part in PARTS if part.name not in done]
    lines += ["", "still unmeasured:", *(f"  {line}" for line in (*missing, *BEYOND))]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}")
    options = parser.parse_args()
    unknown = set(options.parts) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; `wimfris doctor` says what is missing")
    options.device = "cuda"
    rows: list[dict[str, object]] = []
    for part in PARTS:
        if not options.parts or part.name in options.parts:
            rows.append(run(part))
            write(rows, OUT, options)  # after every part: the command can be interrupted
    print(summary(rows))
    print(f"\n{OUT}")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
