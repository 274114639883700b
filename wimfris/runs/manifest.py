"""The manifest of a run: what it was made from, where, and at what cost."""

import json
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.runs.files import RunFiles

if TYPE_CHECKING:
    import torch  # reading a manifest must not load it

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
CODE = ("wimfris", "params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")  # a change of these is "dirty"


def code_revision() -> dict[str, Any]:
    """Return the git commit of the code, and whether the code has uncommitted changes; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *CODE)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """Return the CPU's model name, where the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def platform_of(device: "torch.device") -> dict[str, Any]:
    """Return what computes: versions of the packages that decide numbers and speed, the device's name, and the CPU's
    vector instructions and threads, which decide the last bits.
    """
    import torch

    return {
        "packages": {"python": platform.python_version(), **_packages()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: "torch.device") -> dict[str, int]:
    """Return the peak memory in bytes of this process, and of the GPU where it uses one."""
    import torch

    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def write_manifest(
    path: Path,
    *,
    run: str,
    key: str,
    content: dict[str, Any],
    settings: dict[str, Any],
    device: "torch.device",
    processes: int,
    seconds: float,
    resumed: int,
    best_epoch: int,
    trained_parameters: int,
    scan: str,
    scan_reason: str,
    compiled: bool,
) -> None:
    """Write the manifest as JSON.

    content: all that decides the result, and key its digest (see `wimfris.runs.fingerprint`); settings: the resolved
    settings, keys at their defaults included; processes: how many shared the work; seconds: wall time over all resumes;
    scan: the backend that `model.scan` resolved to on this machine; scan_reason: why; compiled: whether torch.compile
    was used.
    """
    manifest = {
        "run": run,
        "fingerprint": key,
        "seed": content["seed"],
        "settings": settings,
        "code": {**code_revision(), "modules": content["code"]},
        "data": {f"{name}_sha256": value for name, value in content["data"].items()},
        "encoders": content["encoders"],
        **platform_of(device),
        "processes": processes,
        "scan": scan,
        "scan_reason": scan_reason,
        "compiled": compiled,
        "best_epoch": best_epoch,
        "trained_parameters": trained_parameters,
        "wall_seconds": round(seconds, 1),
        "resumed": resumed,
        "peak_memory_bytes": peak_memory(device),
    }
    write_text(path, json.dumps(manifest, indent=2) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest. Raises UserError where it is missing or damaged."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return manifest
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest; train the run with `dvc repro`") from None
    except ValueError:
        raise UserError(f"{path}: damaged; delete its folder and run `dvc repro` again") from None


def is_finished(files: RunFiles, fingerprint: str) -> bool:
    """Return whether the folder of a run holds all its files, and the run has this fingerprint."""
    complete = all(path.is_file() for path in files.all)
    return complete and read_manifest(files.manifest).get("fingerprint") == fingerprint
