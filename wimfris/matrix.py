"""Many runs side by side: `wimfris matrix` reproduces the training stages that are missing or out of date, N at a time.

Each worker is one `dvc --wait-for-lock repro -s <stage>` after the other, so that what is left is what a sequential
`dvc repro` leaves: the same outs, cache and entries of dvc.lock (new ones stand in the order in which the runs ended).
Whatever is killed, the same command again does the rest: DVC records only stages that ended, and a trainer goes on
from its own checkpoint.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.params import Params, Settings

PARENTS = ("data", "prepare", "encoders")  # what every run depends on
CHECKPOINTS = Path(".checkpoints")  # the trainer's, whose steps tell how far it is; git ignores it
LOGS = CHECKPOINTS / "logs"
COPIES = CHECKPOINTS / "lock"  # of dvc.lock
ATTEMPTS = 20  # at a stage that is held by nobody who is seen to live
PATIENCE = 60.0  # seconds between two attempts while the holder lives: it may be at work on many stages
GRACE = 15.0  # seconds that dvc gets to tell of its trainer's end and to give back its locks
# DVC's words for: another process holds this, and nothing has been run
BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock|already locked|database is locked")


@dataclass(frozen=True)
class Failed:
    """A run that did not end well: why, and where its output is."""

    run: str
    reason: str
    log: Path

    def __str__(self) -> str:
        return f"{self.run}: {self.reason}; log: {self.log}"


@dataclass(frozen=True)
class Estimate:
    """What runs cost, by those measured so far. core_minutes: CPU threads x time; wall_minutes: with so many jobs."""

    core_minutes: float
    wall_minutes: float


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
        f"{variant}-{seed}"
        for part, of_part in sets
        for variant in part
        for seed in of_part
        if (not variants or variant in variants) and (not seeds or seed in seeds)
    ]


# --- what the machine has ---------------------------------------------------------------------------------------------


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


# --- what is to be done, and what it costs ----------------------------------------------------------------------------


@contextlib.contextmanager
def locked_project() -> Iterator[Any]:
    """DVC's view of the project, with DVC's lock held; waits while another process holds it."""
    from dvc.repo import Repo, lock_repo  # type: ignore[import-untyped]

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of the locks of killed processes, which it clears away
    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        yield repo


def outdated(stages: Sequence[str]) -> list[str]:
    """Those of the stages that `dvc repro` would run, in order.

    Unlike `dvc status`, it does not fail where another process is at work on a stage: that one is still out of date.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from dvc.lock import LockError  # type: ignore[import-untyped]

    def changed(stage: Any) -> bool:
        try:
            return bool(stage.changed())
        except LockError:
            return True

    found: dict[str, Any] = {}
    try:
        with locked_project() as repo:
            for file in _graphs(stages):
                found |= {stage.addressing: stage for stage in repo.stage.load_all(file)}
            for stage in stages:
                if stage not in found:
                    raise UserError(f"dvc.yaml: no stage {stage}; its matrix and params.yaml disagree")
            return [stage for stage in stages if changed(found[stage])]
    except DvcException as error:
        raise UserError(f"dvc: {str(error).splitlines()[0]}") from None


def _graphs(stages: Sequence[str]) -> list[str]:
    """The files that describe these stages."""
    return sorted({stage.rpartition(":")[0] or "dvc.yaml" for stage in stages})


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
    return [cost for name, cost in measured.items() if name.rpartition("-")[0] == run.rpartition("-")[0]]


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


# --- DVC's record -----------------------------------------------------------------------------------------------------


class LockFiles:
    """The dvc.lock of these stages, kept whole. DVC writes it in place, for more than a second where there are many
    runs: killed meanwhile, it leaves the file cut off, and all other runs would have to be trained again.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        files = [Path(file).with_suffix(".lock") for file in _graphs(stages)]
        self._copies = {file: COPIES / str(file).replace("/", "-") for file in files}
        self._stages: dict[Path, dict[str, Any]] = {}  # those that this process has seen

    def keep(self) -> None:
        """Copy what is whole; bring back from the copy what is cut off, and what this process has seen and is lost."""
        with locked_project():
            for file, copy in self._copies.items():
                text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
                # whole, it ends with its line; anything else that is wrong with it, such as a conflict, is not a kill's
                if text is not None and not text.endswith("\n") and copy.exists():
                    print(f"wimfris: {file}: cut off by a kill, brought back", file=sys.stderr, flush=True)
                    text = copy.read_text(encoding="utf-8")
                    write_text(file, text)
                self._keep_stages(file, copy, text or "")

    def _keep_stages(self, file: Path, copy: Path, text: str) -> None:
        from dvc.utils.serialize import dumps_yaml  # type: ignore[import-untyped]

        try:
            content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            found = dict(content["stages"]) if content else {}
        except (yaml.YAMLError, TypeError, KeyError, ValueError):
            return  # DVC will tell of it
        lost = {name: told for name, told in self._stages.get(file, {}).items() if name not in found}
        if lost:
            found |= lost
            text = dumps_yaml({"schema": "2.0", "stages": found})
            write_text(file, text)
        self._stages[file] = found
        if found:
            write_text(copy, text)


# --- stopping ---------------------------------------------------------------------------------------------------------


class Stop(threading.Event):
    """Set by Ctrl-C, SIGTERM or SIGHUP."""

    signals = 0  # how many came
    number = 0  # which

    def check(self) -> None:
        """Say how to go on, and exit, if a signal has come."""
        if self.is_set():
            print("wimfris: interrupted; the same command again goes on from the runs' checkpoints", file=sys.stderr)
            raise SystemExit(128 + self.number)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Within it, the signals that ask to stop set the event instead. Those that are ignored (nohup) stay so."""
    stop = Stop()

    def note(number: int, _: object) -> None:
        stop.signals, stop.number = stop.signals + 1, number
        stop.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- one dvc process --------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A target of DVC while it is being reproduced."""

    name: str
    log: Path
    started: float = field(default_factory=time.time)
    offset: int = 0  # where in the log the present attempt begins
    waits: bool = False  # for another process that holds it
    process: "subprocess.Popen[bytes] | None" = None

    def text(self) -> str:
        """The log of the present attempt."""
        with self.log.open("rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")


def reproduce(work: Work, arguments: Sequence[str], environment: dict[str, str], stop: Stop) -> Failed | None:
    """`dvc repro <arguments>`, again while another process holds what it needs; its output goes to the work's log."""
    work.log.parent.mkdir(parents=True, exist_ok=True)
    code, attempts = 1, 0
    while attempts < ATTEMPTS:
        with work.log.open("ab") as file:
            work.offset = file.seek(0, os.SEEK_END)
            if stop.is_set():
                break
            command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *arguments]
            # a session of its own: Ctrl-C reaches this process alone, which then ends the others in order
            work.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            while (ended := work.process.poll()) is None and not stop.wait(0.1):
                pass
        except BaseException:  # such as the exit that a signal's handler asks for
            _end(work.process, stop)
            raise
        code = _end(work.process, stop) if ended is None else ended
        if code != 0:  # if dvc or the shell was killed, the trainer lives on, and would go on beside the next run
            _signal_group(work.process, signal.SIGTERM)
        if code == 0 or stop.is_set():
            break
        if not BUSY.search(told := work.text()) or "exited with" in told:
            break  # in the latter case the command ran and failed, whatever became of DVC's locks after it
        work.waits = True
        held = _wait_for([int(pid) for pid in re.findall(r"\(PID (\d+)\)", told)], stop)
        work.waits = False
        attempts += not held
    return None if code == 0 else Failed(work.name, _reason(code, work.text()), work.log)


def _reason(code: int, log: str) -> str:
    """How dvc, or what it ran, ended, and the last line that tells of it: the command's own before DVC's."""
    exited = re.search(r"exited with (-?\d+)", log)
    status = int(exited[1]) if exited and code > 0 else code
    if 128 < status <= 128 + max(signal.valid_signals()):  # a shell between tells of a signal so
        status = 128 - status
    how = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    own = [line for line in lines if not re.match(r"ERROR: failed to reproduce|Running stage|> |$", line)]
    last = (own or lines or [""])[-1]
    return f"{how}: {last}" if last else how


def _wait_for(pids: Sequence[int], stop: Stop) -> bool:
    """Until these processes are gone, at least a moment and not for ever. Whether one of them lived at first."""
    held, until = any(map(_lives, pids)), time.monotonic() + PATIENCE
    stop.wait(0.5)
    while any(map(_lives, pids)) and time.monotonic() < until and not stop.wait(0.5):
        pass
    return held


def _lives(pid: int) -> bool:
    import psutil  # type: ignore[import-untyped]  # DVC's own dependency

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end(process: "subprocess.Popen[bytes]", stop: Stop) -> int:
    """End dvc and what it started. The trainer first: dvc then tells of it and gives back its locks; one that is just
    recording a result may end that. A second signal ends all at once.
    """
    import psutil

    told: set[int] = set()
    until = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < until and stop.signals < 2:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.pid not in told:
                    told.add(child.pid)
                    child.terminate()
        time.sleep(0.05)
    _signal_group(process, signal.SIGKILL)
    return process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


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
    stages = {params.stage(run): run for run in runs}
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


def reproduce_parents(stop: Stop) -> None:
    """Do what all runs depend on. Raises UserError where that fails."""
    work = Work("parents", LOGS / "parents.log")
    names = ", ".join(PARENTS)
    print(f"{names}: out of date, done first (log: {work.log})", file=sys.stderr, flush=True)
    failed = reproduce(work, PARENTS, environment(), stop)
    stop.check()
    if failed:
        raise UserError(f"{names}: {failed.reason}; log: {failed.log}")


def environment(gpu: str | None = None) -> dict[str, str]:
    """The stages call `python` and `wimfris` by name: they must be this interpreter's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return dict(os.environ) | {"PATH": path} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


class Board(ABC):
    """Runs that wait, are at work and have ended, and what is seen of them. A subclass runs them."""

    def __init__(self, params: Params, todo: Sequence[str], jobs: int, stop: Stop) -> None:
        self.params, self.jobs, self.stop, self.total = params, jobs, stop, len(todo)
        self.failed: list[Failed] = []
        self._costs = Costs(params, todo)
        self._lock_files = LockFiles([*PARENTS, *map(params.stage, todo)])
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
            manifest = self._settings(work.name).outs / "manifests" / f"{work.name}.json"
            # the manifest's covers all resumes, this worker's the start of dvc and of the trainer
            self._costs.ended(work.name, max(_wall_seconds(manifest) or 0, elapsed))
        self._tell(f"{work.name}: {how}; {self._state()}")

    # --- what is seen ---

    def _settings(self, run: str) -> Settings:
        return self.params.settings(run.rpartition("-")[0])

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
        settings = self._settings(work.name)
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
                failed = reproduce(work, ["-s", self.params.stage(run)], own, self.stop)
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
