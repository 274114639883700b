"""`wimfris matrix --launcher slurm`: the runs as the tasks of one Slurm array job, submitted through submitit.

Every task is the trainer of the local matrix, in the same checkout, on a file system that all nodes see. Finished runs
go into the store there; no node touches DVC or its locks. A task that is preempted or out of time returns to the queue
and continues from its checkpoint. The submitting command waits until all tasks have ended.
"""

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wimfris.errors import UserError
from wimfris.matrix.board import LOGS, Board, Failure, Work
from wimfris.matrix.local import run_matrix, train
from wimfris.matrix.processes import Stop, environment, interruptible
from wimfris.runs.store import CHECKPOINTS
from wimfris.settings.params import Params
from wimfris.settings.run import Run

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

FOLDER = CHECKPOINTS / "slurm"  # submitit's: what is submitted and returned, and Slurm's own output
NAME = "wimfris"  # of the jobs
HOURS = 12  # of a task, unless `timeout_min` is given
TIMEOUTS = 20  # how often a task that is out of time is queued again
POLL = 5.0  # seconds between two looks at the queue
GRACE = 60.0  # seconds until the result of a task that Slurm ended is visible, or the task is queued again
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}  # Slurm's words; in any other state a task runs or will run

NUMBERS = {"cpus_per_task": int, "gpus_per_node": int, "mem_gb": float, "signal_delay_s": int, "timeout_min": int}
NAMES = {"account", "comment", "constraint", "exclude", "gres", "nodelist", "partition", "qos"}


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` options as submitit wants them. Raises UserError for an unknown key or a bad value."""
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in NUMBERS and key not in NAMES:
            raise UserError(f"--slurm {option}: unknown key; the keys are {', '.join(sorted({*NUMBERS, *NAMES}))}")
        values[key] = value.strip()
        if key in NUMBERS:
            with contextlib.suppress(ValueError):
                values[key] = NUMBERS[key](value)
            if isinstance(values[key], str) or not 0 < values[key] < math.inf:
                kind = "whole number" if NUMBERS[key] is int else "number"
                raise UserError(f"--slurm {option}: {key} must be a {kind} above 0, for example {key}=2")
        elif not values[key]:
            raise UserError(f"--slurm {option}: {key} needs a value")
    return values


def run_on_slurm(
    params: Params,
    runs: Sequence[Run],
    jobs: int | None,
    options: Sequence[str],
    *,
    dry_run: bool = False,
    show_full: Callable[[], None] | None = None,
) -> list[Failure]:
    """Run the matrix as an array job of which `jobs` tasks run at once, all by default. options: those of `--slurm`.

    This process prepares what all runs depend on.
    """
    values = read_options(options)
    if not dry_run:
        _require_slurm()
        with interruptible() as stop:
            _wait_for_earlier_jobs(stop)
    launch = partial(ArrayBoard, options=values)
    jobs = len(runs) if jobs is None else jobs
    return run_matrix(params, runs, jobs, dry_run=dry_run, launch=launch, show_full=show_full)


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _require_slurm() -> None:
    for program in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--launcher slurm: `{program}` is not installed here; run this on a login node")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("--launcher slurm: submitit is not installed; run `pip install -e '.[slurm]'`") from None
    if _states() is None:
        raise UserError("--launcher slurm: `squeue` fails; Slurm does not answer")


def _states() -> dict[str, str] | None:
    """Return task -> state for this checkout's jobs; None where Slurm does not answer. Slurm forgets a job minutes
    after it ended.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={NAME}", "--format=%i %T %Z"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return None
    lines = [line.strip().split(" ", 2) for line in result.stdout.splitlines()]
    return {task: state for task, state, folder in lines if folder == str(Path.cwd())}


def _wait_for_earlier_jobs(stop: Stop) -> None:
    """Wait for the jobs of earlier commands: two tasks on different nodes must not train the same run."""
    announced = set[str]()
    while True:
        states = _states()
        jobs = {task.partition("_")[0] for task, state in (states or {}).items() if state not in ENDED}
        if states is not None and not jobs:
            return
        if jobs - announced:
            _print(f"waiting for jobs of an earlier command; `scancel {' '.join(sorted(jobs))}` ends them")
            announced |= jobs
        stop.wait(POLL)
        stop.check()


def _print(line: str) -> None:
    print(f"wimfris: {line}", file=sys.stderr, flush=True)


# --- one task, on its node --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One run. submitit calls `checkpoint` when a preempted or timed-out task is to be queued again."""

    folder: Path  # the checkout
    params: Params
    run: Run

    def __call__(self) -> Failure | None:
        """Train the run. Return why it failed, if it did. What is raised here would end the task without a reason."""
        os.chdir(self.folder)
        work = Work(self.run)
        try:
            with interruptible() as stop:
                failure = train(self.params, work, environment(), stop)
                # Slurm signals all processes of a task that it ends. A result would count as the run's, which may well
                # go on as another task. So this process waits to be killed.
                if failure and stop.wait(1):
                    while True:
                        signal.pause()
        except Exception as error:
            return Failure(self.run, f"{type(error).__name__}: {error}", work.log)
        return failure

    def checkpoint(self) -> "DelayedSubmission":
        """Return the same task: the trainer has its own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


# --- the array --------------------------------------------------------------------------------------------------------


class ArrayBoard(Board):
    """The array job as the submitting process sees it: its tasks' places in the queue, and their results."""

    def __init__(
        self, params: Params, pending: Sequence[Run], jobs: int, stop: Stop, *, options: dict[str, Any]
    ) -> None:
        super().__init__(params, pending, jobs, stop)
        self._executor = _executor(params, jobs, options)
        self._tasks: dict[Run, Job[Failure | None]] = {}  # of the runs that have not ended
        self._gone: dict[Run, float] = {}  # when a task was first seen to have ended without a result

    def run(self) -> None:
        """Submit the job and wait until every task has ended; cancel the job when a signal comes."""
        job = self._submit()
        self._print(f"Slurm job {job}: submitted {self.total} tasks, {self.jobs} at once; its own output: {FOLDER}")
        with self._display() as refresh:
            while self._tasks and not self.stop.is_set():
                with self._lock:
                    self._look()
                refresh()
                if self._tasks:
                    self.stop.wait(POLL)
        if self._tasks:
            cancelled = subprocess.run(["scancel", job], check=False, start_new_session=True).returncode == 0
            _print(f"Slurm job {job}: " + ("cancelled" if cancelled else f"NOT cancelled; run `scancel {job}`"))

    def _submit(self) -> str:
        """Submit the tasks and return the job's number."""
        from submitit.core.utils import FailedJobError

        runs = list(self._waiting)
        LOGS.mkdir(parents=True, exist_ok=True)
        tasks = [Task(Path.cwd(), self.params, run) for run in runs]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                jobs = self._executor.submit_array(tasks)
        except FailedJobError as error:
            self.stop.check()
            raise UserError(f"--launcher slurm: {(str(error).splitlines() or ['sbatch failed'])[-1]}") from None
        self._tasks = dict(zip(runs, jobs, strict=True))
        return jobs[0].job_id.partition("_")[0]

    def _look(self) -> None:
        """Compare the queue and the results with what is known."""
        os.utime(FOLDER)  # else a network file system may go on showing the folder as it was
        states = _states()
        working = {work.run: work for work in self._working.values()}
        for run, task in list(self._tasks.items()):
            state = None if states is None else states.get(task.job_id, "forgotten")
            work = working.get(run)
            if task.paths.result_pickle.exists():
                self._finish(work or self._begin(run), _result(run, task))
            elif state in ENDED or state == "forgotten":
                if time.monotonic() - self._gone.setdefault(run, time.monotonic()) > GRACE:
                    log = Path(os.path.relpath(task.paths.stderr))
                    self._finish(work or self._begin(run), Failure(run, f"ended by Slurm ({state})", log))
            elif state is not None:
                self._gone.pop(run, None)
                if state == "RUNNING" and work is None:
                    self._begin(run)
                elif state == "PENDING" and work:
                    self._leave(work)
                    self._waiting.appendleft(run)
                    self._print(f"{run}: back in Slurm's queue; {self._summary()}")

    def _finish(self, work: Work, failure: Failure | None) -> None:
        del self._tasks[work.run]
        self._end(work, failure)


def _executor(params: Params, jobs: int, options: dict[str, Any]) -> "AutoExecutor":
    from submitit import AutoExecutor

    train = params.settings().train
    common: dict[str, Any] = {"timeout_min": 60 * HOURS, "cpus_per_task": train.threads + train.workers}
    if train.device == "cuda" and "gres" not in options:
        common["gpus_per_node"] = 1
    common |= options
    own = {
        "array_parallelism": jobs,
        "additional_parameters": {"requeue": True},
        "srun_args": [f"--cpus-per-task={common['cpus_per_task']}"],  # srun does not take it over from sbatch
        **{key: common.pop(key) for key in list(common) if key in {*NAMES, "signal_delay_s"}},
    }
    executor = AutoExecutor(FOLDER, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    executor.update_parameters(name=NAME, **common, **{f"slurm_{key}": value for key, value in own.items()})
    return executor


def _result(run: Run, task: "Job[Failure | None]") -> Failure | None:
    from submitit.core.utils import UncompletedJobError

    try:
        return task.result()
    except UncompletedJobError:  # a crash outside of our function, which returns its errors
        return Failure(run, "crashed on its node", Path(os.path.relpath(task.paths.stderr)))
