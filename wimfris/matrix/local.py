"""Many runs side by side: `wimfris matrix` reproduces the training stages that are missing or out of date, N at a time.

Each worker is one `dvc --wait-for-lock repro -s <stage>` after the other, so that what is left is what a sequential
`dvc repro` leaves: the same outs, cache and entries of dvc.lock (new ones stand in the order in which the runs ended).
"""

import contextlib
import itertools
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from wimfris.errors import UserError
from wimfris.matrix.costs import Costs, _wall_seconds, cores, duration, estimate, gpus, wall_seconds
from wimfris.matrix.processes import Stop, environment, interruptible
from wimfris.matrix.repro import (
    CHECKPOINTS,
    LOGS,
    PARENTS,
    Failed,
    LockFiles,
    Work,
    outdated,
    reproduce,
    reproduce_parents,
)
from wimfris.settings.params import Params
from wimfris.settings.run import Run


def select_runs(
    params: Params, variants: Sequence[str] | None = None, seeds: Sequence[int] | None = None, extended: bool = False
) -> list[str]:
    """The runs of params.yaml, the extended ones after the core's if asked for, narrowed to these variants and seeds.

    Raises UserError where a variant or seed is none of theirs.
    """
    sets = [(params.variants, params.seeds)]
    if extended:
        sets.append((params.extended, params.extended_seeds))
    for key, asked, known in (
        ("--variants", variants, [variant for part, _ in sets for variant in part]),
        ("--seeds", seeds, sorted({seed for _, part in sets for seed in part})),
    ):
        for one in asked or ():
            if one not in known:
                raise UserError(f"{key} {one}: not in params.yaml; there are: {', '.join(map(str, known))}")
    return [
        str(Run(variant, seed))
        for part, of_part in sets
        for variant in part
        for seed in of_part
        if (not variants or variant in variants) and (not seeds or seed in seeds)
    ]


# --- the matrix -------------------------------------------------------------------------------------------------------


def run_matrix(
    params: Params, runs: Sequence[str], jobs: int, *, dry_run: bool = False, launch: "Launch | None" = None
) -> list[Failed]:
    """Reproduce those of the runs whose stages are out of date, `jobs` at a time, in the order given; before them, what
    they all depend on. Returns the runs that failed, each told in one line; the others are done.

    dry_run: only tell which runs there are to train, and what they cost. launch: what runs them, by default workers on
    this machine. Interrupted by a signal, it ends its workers, says how to go on, and exits.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: needs at least one")
    stages = {params.stage(Run.parse(run)): run for run in runs}
    with interruptible() as stop:
        if not dry_run:
            LockFiles([*PARENTS, *stages]).keep()
        stale = outdated([*PARENTS, *stages])
        if set(PARENTS) & set(stale) and not dry_run:
            reproduce_parents(stop)
            stale = outdated(list(stages))
        todo = [stages[stage] for stage in stale if stage in stages]
        jobs = min(jobs, max(len(todo), 1))
        threads = params.settings().train.threads
        if launch is None and jobs * threads > cores():
            told = f"wimfris: {jobs} jobs x {threads} threads on {cores()} cores: each run will take longer"
            print(told, file=sys.stderr)
        if dry_run or not todo:
            _tell_plan(params, todo, len(stages), jobs)
            return []
        board = (launch or Matrix)(params, todo, jobs, stop)
        board.run()
        stop.check()
    for failed in board.failed:
        print(f"wimfris: {failed}", file=sys.stderr, flush=True)
    return board.failed


def _tell_plan(params: Params, todo: Sequence[str], of: int, jobs: int) -> None:
    if not todo:
        print(f"{of} runs: all up to date", flush=True)
        return
    print(f"{len(todo)} of {of} runs are missing or out of date:" + "".join(f"\n  {run}" for run in todo))
    cost = estimate(params, todo, jobs)
    if cost is None:
        print("no estimate: no run has been measured at this data set and scale")
    else:
        wall = duration(60 * cost.wall_minutes)
        print(f"about {cost.core_minutes:.0f} core-minutes, {wall} with {jobs} at once, by the runs measured so far")


class Board(ABC):
    """Runs that wait, are at work and have ended, and what is seen of them. A subclass runs them."""

    def __init__(self, params: Params, todo: Sequence[str], jobs: int, stop: Stop) -> None:
        self.params, self.jobs, self.stop, self.total = params, jobs, stop, len(todo)
        self.failed: list[Failed] = []
        self._costs = Costs(params, todo)
        self._lock_files = LockFiles([*PARENTS, *(params.stage(Run.parse(run)) for run in todo)])
        self._lock_files.keep()
        self._waiting = deque(todo)
        self._working: dict[int, Work] = {}
        self._done = 0
        self._lock = threading.Lock()  # of the fields above
        self._console = Console(stderr=True)
        self._train_rows = _train_rows(params.settings().folder)

    @abstractmethod
    def run(self) -> None:
        """Until every run has ended, or a signal comes and those at work have been ended."""

    def _begin(self, run: str) -> Work:
        """A run that waited is at work."""
        self._waiting.remove(run)
        work = Work(run, LOGS / f"{run}.log")
        self._working[next(k for k in itertools.count() if k not in self._working)] = work
        self._tell(f"{run}: started; {self._state()}")
        return work

    def _leave(self, work: Work) -> None:
        """A run is no longer at work."""
        self._working = {k: other for k, other in self._working.items() if other is not work}

    def _end(self, work: Work, failed: Failed | None) -> None:
        """A run that was at work has ended."""
        self._leave(work)
        if self.stop.is_set() and failed:
            return
        if failed:
            self.failed.append(failed)
            self._tell(f"{failed.run}: FAILED, {failed.reason}; {self._state()}")
            return
        self._done += 1
        elapsed = time.time() - work.started
        how = "up to date, by another process or from the cache"
        if "Running stage" in work.text():
            how = f"done in {duration(elapsed)}"
            manifest = self.params.settings_of(Run.parse(work.name)).outs / "manifests" / f"{work.name}.json"
            # the manifest's covers all resumes, this worker's the start of dvc and of the trainer
            self._costs.ended(work.name, max(_wall_seconds(manifest) or 0, elapsed))
        self._tell(f"{work.name}: {how}; {self._state()}")
        self._show_full(work.name)

    # --- what is seen ---

    def _show_full(self, ended: str) -> None:
        """The full model's table, once the last of its runs has ended: all the others may take hours more."""
        full = [str(run) for run in self.params.runs_of("full")]
        if ended not in full or set(full) & {*self._waiting, *(work.name for work in self._working.values())}:
            return
        from wimfris.results.tables import main_table, print_table
        from wimfris.runs.records import read_runs

        with contextlib.suppress(UserError):  # one that was not asked for, or failed, has no records
            print_table(main_table(read_runs(self.params.settings().outs, full)))

    def _state(self) -> str:
        left = self._left()
        told = f"{self._done} of {self.total} done" + (f", {len(self.failed)} failed" if self.failed else "")
        return told if left is None else f"{told}, about {duration(left)} left"

    def _left(self) -> float | None:
        """Seconds until the last run ends; None where nothing has been measured."""
        running = [self._left_of(work) for work in self._working.values()]
        waiting = [self._costs.of(run) for run in self._waiting]
        costs = [cost for cost in (*running, *waiting) if cost is not None]
        if len(costs) < len(running) + len(waiting):
            return None
        return wall_seconds(costs[len(running) :], self.jobs, costs[: len(running)])

    def _left_of(self, work: Work) -> float | None:
        cost = self._costs.of(work.name)
        if cost is None:
            return None
        step, total = self._steps(work)
        return max(cost - max(time.time() - work.started, cost * step / total if total else 0), 0)

    def _steps(self, work: Work) -> tuple[int, int | None]:
        """How far the trainer is, by its checkpoints and lines, and where it ends, if that is known."""
        settings = self.params.settings_of(Run.parse(work.name))
        epoch = settings.train.steps(self._train_rows or 0)
        seen = [0]
        for folder in CHECKPOINTS.glob(f"{settings.folder.name}-{work.name}-{'[0-9a-f]' * 16}/[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if folder.stat().st_mtime >= work.started:
                    seen.append(int(folder.name))
        with contextlib.suppress(OSError):
            text = work.text()
            seen += [int(step) for step in re.findall(r"goes on from step (\d+) of", text)]
            seen += [int(number) * epoch for number in re.findall(r"epoch (\d+)/\d+: ", text)]
        return max(seen), epoch * settings.train.epochs or None

    def _tell(self, line: str) -> None:
        if self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[], None]]:
        """A line for each worker and one for all where there is a terminal; elsewhere `_tell` says all there is."""
        if not self._console.is_terminal:
            yield lambda: None
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
        with Progress(*columns, console=self._console) as progress:
            overall = progress.add_task("runs", total=self.total, told="")
            lines = [progress.add_task("", told="", visible=False) for _ in range(self.jobs)]

            def refresh() -> None:
                with self._lock:
                    progress.update(overall, completed=self._done + len(self.failed), told=self._state())
                    for k, line in enumerate(lines):
                        self._refresh_line(progress, line, self._working.get(k))

            refresh()
            yield refresh
            refresh()

    def _refresh_line(self, progress: Progress, line: TaskID, work: Work | None) -> None:
        if work is None:
            progress.update(line, visible=False)
            return
        step, total = self._steps(work)
        told = "waits for another process" if work.waits else f"step {step}" + (f"/{total}" if total else "")
        elapsed = duration(time.time() - work.started)
        progress.update(
            line, visible=True, description=work.name, completed=step, total=total, told=f"{told}, {elapsed}"
        )


class Matrix(Board):
    """Workers on this machine, which take one run after the other."""

    def __init__(self, params: Params, todo: Sequence[str], jobs: int, stop: Stop) -> None:
        super().__init__(params, todo, jobs, stop)
        self._keeping = threading.Lock()
        devices = gpus() if params.settings().train.device == "cuda" else []
        shared = len(devices) < 2
        self._environments = [environment(None if shared else devices[k % len(devices)]) for k in range(jobs)]

    def run(self) -> None:
        """Until the queue is empty or a signal comes, and every worker has ended."""
        workers = [threading.Thread(target=self._work, args=(own,)) for own in self._environments]
        for worker in workers:
            worker.start()
        with self._display() as refresh:
            while alive := [worker for worker in workers if worker.is_alive()]:
                alive[0].join(0.5)
                refresh()

    def _work(self, own: dict[str, str]) -> None:
        while not self.stop.is_set():
            with self._lock:
                if not self._waiting:
                    return
                run = self._waiting[0]
                work = self._begin(run)
            try:
                failed = reproduce(work, ["-s", self.params.stage(Run.parse(run))], own, self.stop)
                with self._keeping:
                    self._lock_files.keep()
            except Exception as error:  # a full disk, say: the other runs go on
                failed = Failed(run, f"{type(error).__name__}: {error}", work.log)
            with self._lock:
                self._end(work, failed)


Launch = Callable[[Params, Sequence[str], int, Stop], Board]


def _train_rows(folder: Path) -> int | None:
    """Referred objects of the training split; None where the index cannot be read."""
    from pyarrow import parquet

    try:
        split = parquet.read_table(folder / "index" / "index.parquet", columns=["split"])["split"].to_pylist()
    except (OSError, ValueError, KeyError):
        return None
    return split.count("train")
