"""The runs of a matrix that wait, run or have ended, and their display in the terminal."""

import contextlib
import itertools
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from wimfris.matrix.costs import Costs, Progress, duration, recorded_seconds, wall_seconds
from wimfris.matrix.processes import Stop
from wimfris.runs.store import CHECKPOINTS, progress_file
from wimfris.settings.params import Params
from wimfris.settings.run import Run

LOGS = CHECKPOINTS / "logs"


@dataclass(frozen=True)
class Failure:
    """A run that failed: why, and where its output is."""

    run: Run
    reason: str
    log: Path

    def __str__(self) -> str:
        return f"{self.run}: {self.reason}; log: {self.log}"


@dataclass(eq=False)
class Work:
    """A run at work."""

    run: Run
    progress: Progress = field(default_factory=Progress)

    @property
    def log(self) -> Path:
        """Where the trainer's output goes."""
        return LOGS / f"{self.run}.log"


class Board(ABC):
    """The state of a matrix. A subclass starts the trainers."""

    def __init__(self, params: Params, pending: Sequence[Run], jobs: int, stop: Stop) -> None:
        self.params, self.jobs, self.stop, self.total = params, jobs, stop, len(pending)
        self.failures: list[Failure] = []
        self.show_full: Callable[[], None] | None = None
        self._costs = Costs(recorded_seconds(params, pending))
        self._waiting = deque(pending)
        self._working: dict[int, Work] = {}
        self._done = 0
        self._lock = threading.Lock()  # of the fields above
        self._announced = False
        self._console = Console(stderr=True)

    @abstractmethod
    def run(self) -> None:
        """Run until every run has ended, or until a signal comes and the runs at work have been stopped."""

    def _begin(self, run: Run) -> Work:
        """Move a run from waiting to working."""
        self._waiting.remove(run)
        work = Work(run)
        self._working[next(k for k in itertools.count() if k not in self._working)] = work
        self._print(f"{run}: started; {self._summary()}")
        return work

    def _leave(self, work: Work) -> None:
        """Take a run off the work list."""
        self._working = {k: other for k, other in self._working.items() if other is not work}

    def _end(self, work: Work, failure: Failure | None) -> None:
        """Note that a run has ended."""
        self._leave(work)
        if failure and self.stop.is_set():
            return
        if failure:
            self.failures.append(failure)
            self._print(f"{failure.run}: FAILED, {failure.reason}; {self._summary()}")
            return
        self._done += 1
        elapsed = time.time() - work.progress.started
        if work.progress.last:  # else another process had trained it
            self._costs.observe(work.run, elapsed)
        self._print(f"{work.run}: done in {duration(elapsed)}; {self._summary()}")
        self._show_full(work.run)

    def _show_full(self, ended: Run) -> None:
        """Show the results of `full` once the last of its runs has ended: all the others may take hours more."""
        runs = self.params.runs_of("full")
        at_work = {work.run for work in self._working.values()}
        if self.show_full and ended in runs and not {*runs} & {*self._waiting, *at_work}:
            self.show_full()

    # --- what a person sees ---

    def observe(self) -> None:
        """Read how far the runs at work are."""
        name = self.params.settings().folder.name
        for work in self._working.values():
            work.progress.read(progress_file(name, str(work.run)))
            if work.progress.whole:
                self._costs.observe(work.run, work.progress.whole)
        if not self._announced and self._left() is not None:
            self._announced = True
            self._print(self._summary())

    def _summary(self) -> str:
        left = self._left()
        done = f"{self._done} of {self.total} done" + (f", {len(self.failures)} failed" if self.failures else "")
        if not self._working and not self._waiting:
            return done
        return f"{done}, " + ("estimating the time left" if left is None else f"about {duration(left)} left")

    def _left(self) -> float | None:
        """Return the seconds until the last run ends; None before anything has been measured on this machine."""
        costs = {run: self._costs.seconds(run) for run in (*self._waiting, *(w.run for w in self._working.values()))}
        known = {run: cost for run, cost in costs.items() if cost is not None}
        if len(known) < len(costs):
            return None
        running = [work.progress.left(known[work.run]) for work in self._working.values()]
        return wall_seconds([known[run] for run in self._waiting], self.jobs, running)

    def _print(self, line: str) -> None:
        if self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[], None]]:
        """Show one line per run at work and one for all of them on a terminal. Elsewhere `_print` says everything."""

        def observe() -> None:
            with self._lock:
                self.observe()

        if not self._console.is_terminal:
            yield observe
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")
        with Bars(*columns, console=self._console) as bars:
            overall = bars.add_task("runs", total=self.total, note="")
            lines = [bars.add_task("", note="", visible=False) for _ in range(self.jobs)]

            def refresh() -> None:
                with self._lock:
                    self.observe()
                    bars.update(overall, completed=self._done + len(self.failures), note=self._summary())
                    for k, line in enumerate(lines):
                        self._refresh_line(bars, line, self._working.get(k))

            refresh()
            yield refresh
            refresh()

    @staticmethod
    def _refresh_line(bars: Bars, line: TaskID, work: Work | None) -> None:
        if work is None:
            bars.update(line, visible=False)
            return
        progress = work.progress
        note = (f"step {progress.step}/{progress.total}, " if progress.total else "") + duration(
            time.time() - progress.started
        )
        bars.update(
            line,
            visible=True,
            description=str(work.run),
            completed=progress.step,
            total=progress.total,
            note=note,
        )
