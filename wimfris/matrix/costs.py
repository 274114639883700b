"""The cores and GPUs of this machine, and the time that runs take on it."""

import csv
import json
import os
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wimfris.settings.params import Params
from wimfris.settings.run import Run

FEW = 3  # runs of a variant from which on its own median is used
EVALUATION = 1.1  # a whole run takes this many times its training steps; measured at scale tiny


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi"):  # asking torch would hold memory on the GPU
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        return [str(k) for k in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]


def default_jobs(params: Params) -> int:
    """Return how many runs fit on this machine at once: one per GPU, or one per `train.threads` CPU cores."""
    train = params.settings().train
    return max(len(gpus()) if train.device == "cuda" else cores() // train.threads, 1)


def duration(seconds: float) -> str:
    """Return a time as people read it: 12 s, 3 min 05 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def wall_seconds(waiting: Sequence[float], jobs: int, running: Sequence[float] = ()) -> float:
    """Return when the last run ends. waiting: seconds of the runs that have not started; running: seconds left of those
    that have. Each of the `jobs` workers takes the next run that waits.
    """
    ends = sorted([*running, *[0.0] * jobs][: max(jobs, len(running))])
    for cost in waiting:
        ends[0] += cost
        ends.sort()
    return max(ends)


@dataclass
class Progress:
    """How far a run at work is. A rate needs two readings: the first steps also load and compile."""

    started: float = field(default_factory=time.time)
    first: tuple[float, int] | None = None  # time and step of the first reading
    last: tuple[float, int] | None = None
    total: int | None = None

    def read(self, path: Path) -> None:
        """Read the step that the trainer wrote last, if it wrote one since this run started."""
        try:
            if path.stat().st_mtime < self.started:
                return
            step, self.total = map(int, path.read_text(encoding="utf-8").split())
        except (OSError, ValueError):
            return
        if self.last is None or step > self.last[1]:
            self.last = time.time(), step
            self.first = self.first or self.last

    @property
    def step(self) -> int:
        """The last step read."""
        return self.last[1] if self.last else 0

    @property
    def whole(self) -> float | None:
        """Seconds of a whole run at this pace; None before it is known."""
        if self.first is None or self.last is None or self.total is None or self.last[1] == self.first[1]:
            return None
        rate = (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])
        return self.total * rate * EVALUATION

    def left(self, whole: float) -> float:
        """Seconds until this run ends, if a whole run takes `whole`."""
        share = self.step / self.total if self.total else 0.0
        since = time.time() - (self.last[0] if self.last else self.started)
        return max(whole * (1 - share / EVALUATION) - since, 0.0)


class Costs:
    """Seconds that runs take on this machine.

    Recorded times say how variants compare with each other. The pace says how this machine compares with the recorded
    times; it is known from the first steps of the first run.
    """

    def __init__(self, recorded: dict[str, float]) -> None:
        self._recorded = recorded  # variant -> seconds
        self._observed: dict[Run, float] = {}

    def observe(self, run: Run, seconds: float) -> None:
        """Note how long a run takes on this machine, projected or measured."""
        self._observed[run] = seconds

    def seconds(self, run: Run) -> float | None:
        """Return the seconds of a whole run; None before anything was observed here."""
        if not self._observed:
            return None
        if run in self._observed:
            return self._observed[run]
        if not self._recorded:
            return statistics.median(self._observed.values())
        pace = statistics.median(seconds / self._usual(run.variant) for run, seconds in self._observed.items())
        return pace * self._usual(run.variant)

    def _usual(self, variant: str) -> float:
        return self._recorded.get(variant) or statistics.median(self._recorded.values())


def recorded_seconds(params: Params, runs: Sequence[Run]) -> dict[str, float]:
    """Return variant -> seconds of a run at this data set and scale, from the committed evidence and from the runs of
    this checkout.

    Only runs of one processor are compared, the one with the most runs of `full`. A variant has the median of its runs
    there, and the median of all runs there if it has fewer than `FEW`: one run on a busy machine may take four times as
    long. A tuning run among `runs` takes its share of the epochs of its variant. Empty where nothing is recorded.
    """
    declared = params.all_variants
    recorded = [one for one in _recorded_runs(params.settings().folder).values() if one.variant in declared]
    if not recorded:
        return {}
    processors = Counter((one.processor, one.variant == "full") for one in recorded)
    where = max((one for one, _ in processors), key=lambda one: (processors[one, True], processors[one, False]))
    there = [one for one in recorded if one.processor == where]
    usual = statistics.median(one.seconds for one in there)
    medians = {}
    for variant in declared:
        own = [one.seconds for one in there if one.variant == variant]
        medians[variant] = statistics.median(own) if len(own) >= FEW else usual
    for variant in {run.variant for run in runs} - declared.keys():
        base = params.tuned[variant][0]
        own_epochs, whole = (params.settings(name).train.epochs for name in (variant, base))
        medians[variant] = medians[base] * own_epochs / whole
    return medians


class _Recorded(NamedTuple):
    variant: str
    processor: tuple[str, str]  # device and instruction set
    seconds: float


def _recorded_runs(folder: Path) -> dict[str, _Recorded]:
    """Return the runs of the evidence and of this checkout, by name; those of this checkout come first."""
    runs = {}
    for path in sorted(Path("reports", "records").glob(f"{folder.name}-*runs.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                processor = (row["device"], row["cpu_capability"])
                runs[row["run"]] = _Recorded(row["variant"], processor, 60 * float(row["minutes"]))
    for path in sorted(folder.glob("*/*/manifest.json")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            processor = (str(manifest.get("device", "")), str(manifest.get("cpu_capability", "")))
            recorded = _Recorded(manifest["settings"]["variant"], processor, float(manifest["wall_seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        runs[path.parent.name] = recorded
    return runs


@dataclass(frozen=True)
class Estimate:
    """What runs cost by the recorded times. core_minutes: CPU threads times time."""

    core_minutes: float
    wall_minutes: float


def estimate(params: Params, runs: Sequence[Run], jobs: int) -> Estimate | None:
    """Return what these runs cost with so many jobs, by the recorded times; None where nothing is recorded at this data
    set and scale.
    """
    recorded = recorded_seconds(params, runs)
    if not recorded:
        return None
    seconds = [recorded[run.variant] for run in runs]
    threads = params.settings().train.threads
    return Estimate(sum(seconds) * threads / 60, wall_seconds(seconds, jobs) / 60)
