"""What the machine has, and what runs cost on it."""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wimfris.settings.params import Params
from wimfris.settings.run import Run


@dataclass(frozen=True)
class Estimate:
    """What runs cost, by those measured so far. core_minutes: CPU threads x time; wall_minutes: with so many jobs."""

    core_minutes: float
    wall_minutes: float


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    if shutil.which("nvidia-smi"):  # a torch of our own would hold memory on the GPU
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        return [str(k) for k in range(sum(line.startswith("GPU ") for line in told.splitlines()))]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]


def default_jobs(params: Params) -> int:
    """As many runs at once as the machine has room for: a GPU each, or on the CPU `train.threads` cores each."""
    train = params.settings().train
    return max(len(gpus()) if train.device == "cuda" else cores() // train.threads, 1)


class Costs:
    """Seconds that runs take, from those that are measured: the median of the same variant, else of all. What was
    measured before counts by the pace of the runs that have ended since: another machine, or a busier one.
    """

    def __init__(self, params: Params, waiting: Sequence[str]) -> None:
        self._now: dict[str, float] = {}
        self._fresh: dict[str, float] = {}
        self._stale: dict[str, float] = {}  # of runs that are out of date: better than nothing
        self._paces: list[float] = []
        folder = params.settings().folder  # the core's manifests, and the extended runs' in a folder of their own
        for path in sorted([*folder.glob("manifests/*.json"), *folder.glob("*/manifests/*.json")]):
            seconds = _wall_seconds(path)
            if seconds is not None:
                (self._stale if path.stem in waiting else self._fresh)[path.stem] = seconds

    def ended(self, run: str, seconds: float) -> None:
        """A run that ended just now."""
        before = _alike(self._fresh, run) or _alike(self._stale, run)
        if before:
            self._paces.append(seconds / statistics.median(before))
        self._now[run] = seconds

    def of(self, run: str) -> float | None:
        """Seconds that the run will take; None where nothing has been measured."""
        pace = statistics.median(self._paces) if self._paces else 1.0
        measured = (self._now, 1.0), (self._fresh, pace), (self._stale, pace)
        like = [(_alike(part, run), factor) for part, factor in measured]
        for costs, factor in (*like, *((list(part.values()), factor) for part, factor in measured)):
            if costs:
                return factor * statistics.median(costs)
        return None


def _alike(measured: dict[str, float], run: str) -> list[float]:
    """What was measured of runs of the same variant."""
    return [cost for name, cost in measured.items() if Run.parse(name).variant == Run.parse(run).variant]


def _wall_seconds(manifest: Path) -> float | None:
    try:
        return float(json.loads(manifest.read_text())["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wall_seconds(waiting: Sequence[float], jobs: int, running: Sequence[float] = ()) -> float:
    """When the last ends, where each worker takes the next that waits; `running`: what is left of those at work."""
    ends = sorted([*running, *[0.0] * jobs][: max(jobs, len(running))])
    for cost in waiting:
        ends[0] += cost
        ends.sort()
    return max(ends)


def estimate(params: Params, runs: Sequence[str], jobs: int) -> Estimate | None:
    """What these runs cost with so many jobs; None where no run has been measured at this data set and scale."""
    costs = Costs(params, runs)
    found = [costs.of(run) for run in runs]
    known = [cost for cost in found if cost is not None]
    if len(known) < len(found):
        return None
    threads = params.settings().train.threads
    return Estimate(sum(known) * threads / 60, wall_seconds(known, jobs) / 60)


def duration(seconds: float) -> str:
    """For people: 12 s, 3 min 05 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
