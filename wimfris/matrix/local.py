"""`wimfris matrix`: train the runs that are missing, several at once on this machine.

Every run is a process `wimfris train`, which puts the trained run into the store. `dvc repro` then takes it from there:
DVC records the runs and does not schedule them. Any process can be killed at any time; the same command continues.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from wimfris.errors import UserError, suggestion
from wimfris.matrix.board import Board, Failure, Work
from wimfris.matrix.costs import cores, default_jobs, duration, estimate, gpus
from wimfris.matrix.dvc_files import repair
from wimfris.matrix.pending import fetch_runs, pending_runs
from wimfris.matrix.processes import Stop, environment, exit_reason, interruptible, run_logged, signal_of
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

WIMFRIS = (sys.executable, "-m", "wimfris")
PARENTS = ("data", "prepare", "encoders", "code")  # the stages that every run depends on
ATTEMPTS = 3  # at a run whose trainer is killed from outside

Launch = Callable[[Params, Sequence[Run], int, Stop], Board]


def select_runs(
    params: Params, variants: Sequence[str] | None = None, seeds: Sequence[int] | None = None, extended: bool = False
) -> list[Run]:
    """Return the runs of params.yaml, narrowed to these variants and seeds. Runs beyond the core come last, where
    `extended` or a variant asks for them, and runs of extra seeds where `extended` or a seed does.

    Raises UserError where a variant, a seed or a seed of a variant is not declared.
    """
    known = params.all_variants
    for name in variants or ():
        if name not in known:
            raise UserError(f"--variants {name}: not declared in params.yaml; {suggestion(name, known, 'variants')}")
    if variants and seeds:
        asked = [Run(name, seed) for name in variants for seed in seeds]
        for run in asked:
            params.settings_of(run)
        return [run for run in params.all_runs() if run in asked]
    extra = params.extra_runs()
    runs = params.runs()
    if extended or params.beyond.keys() & set(variants or ()):
        runs += params.extended_runs()
    if extended or {run.seed for run in extra} & set(seeds or ()):
        runs += extra
    declared = sorted({run.seed for run in runs})
    for seed in seeds or ():
        if seed not in declared:
            raise UserError(f"--seeds {seed}: not declared in params.yaml, which has {', '.join(map(str, declared))}")
    return [run for run in runs if (not variants or run.variant in variants) and (not seeds or run.seed in seeds)]


def run_matrix(
    params: Params,
    runs: Sequence[Run],
    jobs: int,
    *,
    dry_run: bool = False,
    launch: Launch | None = None,
    show_full: Callable[[], None] | None = None,
) -> list[Failure]:
    """Train those of the runs that are missing, `jobs` at a time and in this order, after what they all depend on.
    Return the runs that failed.

    dry_run: only say which runs are missing and what they cost. launch: what starts the trainers; by default workers on
    this machine. show_full: called once the last run of `full` has ended. On a signal it stops its trainers, says how
    to go on, and exits.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    with interruptible() as stop:
        if not dry_run:
            print(
                f"{len(runs)} runs at {params.settings().folder.name}. First data and encoders; then the missing runs, "
                f"{jobs} at once, with an estimate. Ctrl-C stops; the same command goes on.",
                file=sys.stderr,
                flush=True,
            )
            prepare(params, stop, list(dict.fromkeys(run.variant for run in runs)))
        pending = pending_runs(params, runs)
        jobs = min(jobs, max(len(pending), 1))
        if dry_run or not pending:
            _print_plan(params, pending, len(runs), jobs)
            return []
        threads = params.settings().train.threads
        if launch is None and jobs * threads > cores():
            print(
                f"wimfris: {jobs} jobs with {threads} threads each share {cores()} cores: each run takes longer",
                file=sys.stderr,
            )
        board = (launch or LocalBoard)(params, pending, jobs, stop)
        board.show_full = show_full
        board.run()
        stop.check()
    for failure in board.failures:
        print(f"wimfris: {failure}", file=sys.stderr, flush=True)
    return board.failures


def train_runs(
    params: Params, runs: Sequence[Run], jobs: int | None, *, dry_run: bool = False
) -> tuple[list[Run], list[Failure]]:
    """Train these runs and copy them from the store to their place under runs/, as many at once as fit by default.

    Returns the runs that are trained, and those that failed; neither after a dry run.
    """
    failures = run_matrix(params, runs, default_jobs(params) if jobs is None else jobs, dry_run=dry_run)
    if dry_run:
        return [], []
    failed = {failure.run for failure in failures}
    trained = [run for run in runs if run not in failed]
    fetch_runs(params, trained)
    return trained, failures


def prepare(params: Params, stop: Stop, variants: Sequence[str] = ()) -> None:
    """Run the stages that every run depends on: by DVC at the data set and scale of params.yaml, else directly. Then
    record the encoders of those variants that have their own.

    Raises UserError where one fails.
    """
    options = ["--scale", params.scale, "--data", params.data["name"]]
    in_file = read_params()
    if (in_file.scale, in_file.data["name"]) == (params.scale, params.data["name"]):
        repair(Path())
        commands = [[sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *PARENTS]]
    else:
        verbs = (["data", "make"], ["data", "prepare"], ["encoders", "record"], ["code"])
        commands = [[*WIMFRIS, *verb, *options] for verb in verbs]
    for variant in variants:
        settings = params.settings(variant)
        if settings.own_encoders and not settings.encoders_record.is_file():
            commands.append([*WIMFRIS, "encoders", "record", "--variant", variant, *options])
    for command in commands:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment())
        while process.poll() is None and not stop.wait(0.1):
            pass
        if stop.is_set():
            process.terminate()
            process.wait()
        stop.check()
        if process.returncode != 0:
            raise UserError(f"`{' '.join(command[2:])}` failed, see above; no run was started")


def _print_plan(params: Params, pending: Sequence[Run], count: int, jobs: int) -> None:
    if not pending:
        print(f"{count} runs: all are trained", flush=True)
        return
    print(f"{len(pending)} of {count} runs are to be trained:" + "".join(f"\n  {run}" for run in pending))
    cost = estimate(params, pending, jobs)
    if cost is None:
        print("no estimate: no run is recorded at this data set and scale")
    else:
        wall = duration(60 * cost.wall_minutes)
        print(f"about {cost.core_minutes:.0f} core-minutes, {wall} with {jobs} at once, by the recorded runs")


class LocalBoard(Board):
    """Workers on this machine. Each takes one run after the other."""

    def __init__(self, params: Params, pending: Sequence[Run], jobs: int, stop: Stop) -> None:
        super().__init__(params, pending, jobs, stop)
        devices = gpus() if params.settings().train.device == "cuda" else []
        shared = len(devices) < 2
        self._environments = [environment(None if shared else devices[k % len(devices)]) for k in range(jobs)]

    def run(self) -> None:
        """Run until no run waits or a signal comes, and every worker has ended."""
        workers = [threading.Thread(target=self._work, args=(env,)) for env in self._environments]
        for worker in workers:
            worker.start()
        with self._display() as refresh:
            while alive := [worker for worker in workers if worker.is_alive()]:
                alive[0].join(0.5)
                refresh()

    def _work(self, env: dict[str, str]) -> None:
        while not self.stop.is_set():
            with self._lock:
                if not self._waiting:
                    return
                work = self._begin(self._waiting[0])
            try:
                failure = train(self.params, work, env, self.stop)
            except Exception as error:  # a full disk, say: the other runs go on
                failure = Failure(work.run, f"{type(error).__name__}: {error}", work.log)
            with self._lock:
                self._end(work, failure)


def train(params: Params, work: Work, env: dict[str, str], stop: Stop) -> Failure | None:
    """Train a run in a process of its own. A trainer killed from outside is started again from its checkpoint."""
    command = [*WIMFRIS, "train", "--run", str(work.run), "--scale", params.scale, "--data", params.data["name"]]
    for _ in range(ATTEMPTS):
        start = work.log.stat().st_size if work.log.exists() else 0
        code = run_logged(command, work.log, env, stop)
        number = signal_of(code)
        if number is None or stop.is_set():
            break
        print(f"{work.run}: its trainer was killed by signal {number}; trying again", file=sys.stderr, flush=True)
    if code == 0:
        return None
    return Failure(work.run, exit_reason(code, work.log.read_bytes()[start:].decode(errors="replace")), work.log)
