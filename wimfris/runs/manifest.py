"""The manifest of a run: what it was made from, and where. No stage depends on it: it differs from run to run by its
times.
"""

import json
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from wimfris.files import write_text

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "opencv-python-headless",
    "pycocotools",
    "safetensors",
    "numba",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)
CODE = ("wimfris", "params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")  # what "dirty" looks at


def code_revision() -> dict[str, Any]:
    """The git commit of the code and whether it had changes that no commit holds; None without a git repository."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *CODE)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The CPU's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def platform_of(device: torch.device) -> dict[str, Any]:
    """What computes: versions of the packages that decide numbers and speed, the device's name, and of the CPU the
    vector instructions, by which the last bits differ, and the threads.
    """
    return {
        "packages": {"python": platform.python_version(), **_packages()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: the most this process has held, and of the GPU where it ran on one."""
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def write_manifest(
    path: Path,
    *,
    run: str,
    key: str,
    decisive: dict[str, Any],
    device: torch.device,
    processes: int,
    seconds: float,
    resumed: int,
    best_epoch: int,
    scan: str,
    compiled: bool,
) -> None:
    """Write the manifest as JSON.

    decisive: settings, seed, encoders, SHA-256 of code, index and images; key: its fingerprint; processes: how many
    shared the work; seconds: wall time over all resumes; scan: the backend that `model.scan` came to on this machine;
    compiled: whether the model ran under torch.compile.
    """
    manifest = {
        "run": run,
        "fingerprint": key,
        "seed": decisive["seed"],
        "settings": decisive["settings"],
        "code": {**code_revision(), "sha256": decisive["code"]},
        "data": {f"{name}_sha256": told for name, told in decisive["data"].items()},
        "encoders": decisive["encoders"],
        **platform_of(device),
        "processes": processes,
        "scan": scan,
        "compiled": compiled,
        "best_epoch": best_epoch,
        "wall_seconds": round(seconds, 1),
        "resumed": resumed,
        "peak_memory_bytes": peak_memory(device),
    }
    write_text(path, json.dumps(manifest, indent=2) + "\n")
