"""`wimfris matrix --launcher slurm`: the runs as the tasks of one Slurm array job, submitted through submitit.

Each task is the `dvc --wait-for-lock repro -s <stage>` of the local matrix, in the same checkout, which lies on a file
system that all nodes see and whose locks hold between them. A task that is preempted or out of time is put back into
the queue, and its trainer goes on from its checkpoint. The command that submitted them waits until all have ended.
"""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.matrix.local import Board, run_matrix
from wimfris.matrix.processes import Stop, environment, interruptible
from wimfris.matrix.repro import (
    CHECKPOINTS,
    LOGS,
    Failed,
    Work,
    locked_project,
    reproduce,
)
from wimfris.settings.params import Params
from wimfris.settings.run import Run

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

FOLDER = CHECKPOINTS / "slurm"  # submitit's: what is submitted and returned, and Slurm's own output
NAME = "wimfris"  # of the jobs
HOURS = 12  # of a task, where `timeout_min` does not say
TIMEOUTS = 20  # how often a task that is out of time goes on
POLL = 5.0  # seconds between two looks at the queue
GRACE = 60.0  # seconds that the result of a task that Slurm ended may take to be seen, or the task to be queued again
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}  # in Slurm's words; in any other state a task is at work or will be

NUMBERS = {"cpus_per_task": int, "gpus_per_node": int, "mem_gb": float, "signal_delay_s": int, "timeout_min": int}
NAMES = {"account", "comment", "constraint", "exclude", "gres", "nodelist", "partition", "qos"}


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """`key=value` each, with submitit's keys, as it wants them. Raises UserError where a key or value is none."""
    found: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in NUMBERS and key not in NAMES:
            raise UserError(f"--slurm {option}: no such key; there are: {', '.join(sorted({*NUMBERS, *NAMES}))}")
        found[key] = value.strip()
        if key in NUMBERS:
            with contextlib.suppress(ValueError):
                found[key] = NUMBERS[key](value)
            if isinstance(found[key], str) or not 0 < found[key] < math.inf:
                kind = "whole number" if NUMBERS[key] is int else "number"
                raise UserError(f"--slurm {option}: {key} is a {kind} above 0, for example {key}=2")
        elif not found[key]:
            raise UserError(f"--slurm {option}: {key} needs a value")
    return found


def run_on_slurm(
    params: Params, runs: Sequence[str], jobs: int | None, options: Sequence[str], *, dry_run: bool = False
) -> list[Failed]:
    """`run_matrix`, with the runs in an array job of which `jobs` tasks are at work at once, all by default. options:
    as of `--slurm`. What all runs depend on is done by this process before.
    """
    chosen = read_options(options)
    if not dry_run:
        _require_slurm()
        with interruptible() as stop:
            _wait_for_earlier(stop)
    return run_matrix(
        params, runs, len(runs) if jobs is None else jobs, dry_run=dry_run, launch=partial(Array, options=chosen)
    )


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _require_slurm() -> None:
    for program in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--launcher slurm: there is no `{program}` here; a cluster's login node has it")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("--launcher slurm: submitit is not installed; `pip install -e '.[slurm]'`") from None
    if _states() is None:
        raise UserError("--launcher slurm: `squeue` fails: Slurm does not answer")


def _states() -> dict[str, str] | None:
    """Task -> state, of this checkout's jobs that Slurm knows, which it forgets minutes after they ended; None where it
    does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={NAME}", "--format=%i %T %Z"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        return None
    lines = [line.strip().split(" ", 2) for line in told.stdout.splitlines()]
    return {task: state for task, state, folder in lines if folder == str(Path.cwd())}


def _wait_for_earlier(stop: Stop) -> None:
    """Two tasks must not work at one stage: on different nodes DVC takes each other's process for dead."""
    told = set[str]()
    while True:
        states = _states()
        jobs = {task.partition("_")[0] for task, state in (states or {}).items() if state not in ENDED}
        if states is not None and not jobs:
            return
        if jobs - told:
            _tell(
                f"waiting for what an earlier command left in Slurm's queue; `scancel {' '.join(sorted(jobs))}` ends it"
            )
            told |= jobs
        stop.wait(POLL)
        stop.check()


def _tell(line: str) -> None:
    print(f"wimfris: {line}", file=sys.stderr, flush=True)


# --- one task, on its node --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One run. submitit asks `checkpoint` for what is to be called when the task, preempted or out of time, starts
    again.
    """

    folder: Path  # the checkout
    run: str
    stage: str

    def __call__(self) -> Failed | None:
        """Reproduce the stage. Why it failed, if it did; what is raised here is submitit's way out of a task that goes
        back into the queue.
        """
        os.chdir(self.folder)
        # DVC's databases are SQLite's, whose shared memory is one machine's: each node has its own
        os.environ.setdefault("DVC_SITE_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"wimfris-dvc-{os.getuid()}"))
        work = Work(self.run, LOGS / f"{self.run}.log")
        try:
            _strike_locks(self.stage)
            with interruptible() as stop:
                failed = reproduce(work, ["-s", self.stage], environment(), stop)
                # Slurm signals all processes, and dvc may end first. This one, told to end, waits to be killed:
                # a result would be the run's, which may well go on as another task.
                if failed and stop.wait(1):
                    while True:
                        signal.pause()
        except Exception as error:
            return Failed(self.run, f"{type(error).__name__}: {error}", work.log)
        return failed

    def checkpoint(self) -> "DelayedSubmission":
        """The same again: the trainer has its own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _strike_locks(stage: str) -> None:
    """Strike what killed attempts at this stage left in DVC's list of the processes that use a file. DVC knows them by
    their ids; where another process of this node has that id, it would wait for it without end. A list that a kill cut
    off, which no dvc can read, starts anew.
    """
    import psutil  # type: ignore[import-untyped]  # DVC's own dependency

    command = f" repro -s {stage}"

    def left_behind(user: dict[str, Any]) -> bool:
        with contextlib.suppress(psutil.Error):
            if " ".join(psutil.Process(user["pid"]).cmdline()).endswith(command):
                return False  # it lives, here: a kill that reached its parent alone
        return bool(user["cmd"].endswith(command))

    with locked_project() as repo:
        path = Path(repo.tmp_dir) / "rwlock"
        if not path.exists():
            return
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        read = {file: [u for u in users if not left_behind(u)] for file, users in held.get("read", {}).items()}
        write = {file: user for file, user in held.get("write", {}).items() if not left_behind(user)}
        write_text(path, json.dumps({"read": read, "write": write}))


# --- the array --------------------------------------------------------------------------------------------------------


class Array(Board):
    """The array job, seen from the process that submits it: by its place in the queue, and what its tasks return."""

    def __init__(self, params: Params, todo: Sequence[str], jobs: int, stop: Stop, *, options: dict[str, Any]) -> None:
        super().__init__(params, todo, jobs, stop)
        self._executor = _executor(params, jobs, options)
        self._tasks: dict[str, Job[Failed | None]] = {}  # of the runs that have not ended
        self._offsets: dict[str, int] = {}  # where in the logs the job begins
        self._gone: dict[str, float] = {}  # when Slurm first told that a task had ended that has returned nothing yet

    def run(self) -> None:
        """Submit, and wait until every task has ended; or, when a signal comes, cancel the job."""
        job = self._submit()
        self._tell(f"Slurm job {job}: submitted, {self.total} tasks, {self.jobs} at once; its own output: {FOLDER}")
        with self._display() as refresh:
            while self._tasks and not self.stop.is_set():
                with self._lock:
                    self._look()
                refresh()
                if self._tasks:
                    self.stop.wait(POLL)
        if self._tasks:
            cancelled = subprocess.run(["scancel", job], check=False, start_new_session=True).returncode == 0
            _tell(f"Slurm job {job}: " + ("cancelled" if cancelled else f"NOT cancelled, `scancel {job}` does it"))

    def _submit(self) -> str:
        """The number of the job."""
        from submitit.core.utils import FailedJobError

        runs = list(self._waiting)
        LOGS.mkdir(parents=True, exist_ok=True)
        for run in runs:
            log = LOGS / f"{run}.log"
            log.touch()  # it is written on another machine: what is there already is seen to grow at once
            self._offsets[run] = log.stat().st_size
        tasks = [Task(Path.cwd(), run, self.params.stage(Run.parse(run))) for run in runs]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                jobs = self._executor.submit_array(tasks)
        except FailedJobError as error:
            self.stop.check()
            raise UserError(f"--launcher slurm: {(str(error).splitlines() or ['sbatch failed'])[-1]}") from None
        self._tasks = dict(zip(runs, jobs, strict=True))
        return jobs[0].job_id.partition("_")[0]

    def _look(self) -> None:
        os.utime(FOLDER)  # a network file system may otherwise go on telling of the folder as it was
        states = _states()
        working = {work.name: work for work in self._working.values()}
        for run, task in list(self._tasks.items()):
            state = None if states is None else states.get(task.job_id, "forgotten")
            work = working.get(run)
            if task.paths.result_pickle.exists():
                self._ended(work or self._begin(run), _result(run, task))
            elif state in ENDED or state == "forgotten":
                if time.monotonic() - self._gone.setdefault(run, time.monotonic()) > GRACE:
                    log = Path(os.path.relpath(task.paths.stderr))
                    self._ended(work or self._begin(run), Failed(run, f"ended by Slurm ({state})", log))
            elif state is not None:
                self._gone.pop(run, None)
                if state == "RUNNING" and work is None:
                    self._begin(run)
                elif state == "PENDING" and work:
                    self._leave(work)
                    self._waiting.appendleft(run)
                    self._tell(f"{run}: back in Slurm's queue; {self._state()}")

    def _begin(self, run: str) -> Work:
        work = super()._begin(run)
        work.offset = self._offsets[run]
        return work

    def _ended(self, work: Work, failed: Failed | None) -> None:
        del self._tasks[work.name]
        self._lock_files.keep()
        self._end(work, failed)


def _executor(params: Params, jobs: int, options: dict[str, Any]) -> "AutoExecutor":
    from submitit import AutoExecutor

    train = params.settings().train
    chosen: dict[str, Any] = {"timeout_min": 60 * HOURS, "cpus_per_task": train.threads + train.workers}
    if train.device == "cuda" and "gres" not in options:
        chosen["gpus_per_node"] = 1
    chosen |= options
    own = {
        "array_parallelism": jobs,
        "additional_parameters": {"requeue": True},
        "srun_args": [f"--cpus-per-task={chosen['cpus_per_task']}"],  # which srun does not take over from sbatch
        **{key: chosen.pop(key) for key in list(chosen) if key in {*NAMES, "signal_delay_s"}},
    }
    executor = AutoExecutor(FOLDER, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    executor.update_parameters(name=NAME, **chosen, **{f"slurm_{key}": value for key, value in own.items()})
    return executor


def _result(run: str, task: "Job[Failed | None]") -> Failed | None:
    from submitit.core.utils import UncompletedJobError

    try:
        return task.result()
    except UncompletedJobError:  # outside of our function, which returns what goes wrong
        return Failed(run, "broke down on its node", Path(os.path.relpath(task.paths.stderr)))
