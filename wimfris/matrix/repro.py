"""One `dvc repro` as a process of its own: begun, waited for and ended in order; and DVC's record of what ended.

Whatever is killed, the same command again does the rest: DVC records only stages that ended, and a trainer goes on
from its own checkpoint.
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.matrix.processes import Stop, environment

PARENTS = ("data", "prepare", "encoders")  # what every run depends on
CHECKPOINTS = Path(".checkpoints")  # the trainer's, whose steps tell how far it is; git ignores it
LOGS = CHECKPOINTS / "logs"
COPIES = CHECKPOINTS / "lock"  # of dvc.lock
ATTEMPTS = 20  # at a stage that is held by nobody who is seen to live
PATIENCE = 60.0  # seconds between two attempts while the holder lives: it may be at work on many stages
GRACE = 15.0  # seconds that dvc gets to tell of its trainer's end and to give back its locks
# DVC's words for: another process holds this, and nothing has been run
BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock|already locked|database is locked")
CUT_OFF = re.compile(r"Unable to read RWLock-file")  # and for: a kill cut off the list of who uses which file


# --- one dvc process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failed:
    """A run that did not end well: why, and where its output is."""

    run: str
    reason: str
    log: Path

    def __str__(self) -> str:
        return f"{self.run}: {self.reason}; log: {self.log}"


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
        told = work.text()
        if "exited with" in told:
            break  # the command ran and failed, whatever became of DVC's locks after it
        if CUT_OFF.search(told):
            with locked_project():  # which begins the list anew
                pass
        elif not BUSY.search(told):
            break
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


def reproduce_parents(stop: Stop) -> None:
    """Do what all runs depend on. Raises UserError where that fails."""
    work = Work("parents", LOGS / "parents.log")
    names = ", ".join(PARENTS)
    print(f"{names}: out of date, done first (log: {work.log})", file=sys.stderr, flush=True)
    failed = reproduce(work, PARENTS, environment(), stop)
    stop.check()
    if failed:
        raise UserError(f"{names}: {failed.reason}; log: {failed.log}")


# --- DVC's record -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked_project() -> Iterator[Any]:
    """DVC's view of the project, with DVC's lock held; waits while another process holds it."""
    from dvc.repo import Repo, lock_repo  # type: ignore[import-untyped]

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of the locks of killed processes, which it clears away
    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        _begin_anew(Path(repo.tmp_dir) / "rwlock")
        yield repo


def _begin_anew(users: Path) -> None:
    """DVC's list of the processes that use a file, if a kill cut it off: no dvc can read it then, nor begin another."""
    try:
        json.loads(users.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        print(f"wimfris: {os.path.relpath(users)}: cut off by a kill, begun anew", file=sys.stderr, flush=True)
        write_text(users, "{}")


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
        from dvc.utils.serialize import ParseError, dumps_yaml, parse_yaml  # type: ignore[import-untyped]

        try:
            content = parse_yaml(text, str(file))  # DVC's own: for others 1e-05 is a string
            found = dict(content["stages"]) if content else {}
        except (ParseError, TypeError, KeyError, ValueError):
            return  # DVC will tell of it
        lost = {name: told for name, told in self._stages.get(file, {}).items() if name not in found}
        if lost:
            found |= lost
            text = dumps_yaml({"schema": "2.0", "stages": found})
            write_text(file, text)
        self._stages[file] = found
        if found:
            write_text(copy, text)
