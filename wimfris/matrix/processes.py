"""Start, stop and wait for the processes of a matrix or a search."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

GRACE = 15.0  # seconds that a process gets to end after SIGTERM


class Stop(threading.Event):
    """Set by Ctrl-C, SIGTERM or SIGHUP."""

    number = 0  # of the signal

    def check(self) -> None:
        """Exit, with a line that says how to go on, if a signal has come."""
        if self.is_set():
            print(
                "wimfris: interrupted; run the same command again to go on from the last checkpoints", file=sys.stderr
            )
            raise SystemExit(128 + self.number)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Within the block, signals that ask to stop set the event instead. Ignored signals (nohup) stay ignored."""
    stop = Stop()

    def note(number: int, _: object) -> None:
        stop.number = number
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


def environment(gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a child process: `python` and `wimfris` are this interpreter's; it sees this GPU."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return dict(os.environ) | {"PATH": path} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


def run_logged(command: Sequence[str], log: Path, env: dict[str, str], stop: Stop) -> int:
    """Run a command with its output appended to `log`; end it when `stop` is set. Return its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches only this process, which then ends its children in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, start_new_session=True
        )
    try:
        while process.poll() is None and not stop.wait(0.1):
            pass
    finally:
        end(process)
    return process.returncode


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children, if they still run."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def signal_of(code: int) -> int | None:
    """Return the signal that ended a command of this project: at once, or by its own exit code 128 + the number."""
    if code < 0:
        return -code
    return code - 128 if code - 128 in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) else None


def exit_reason(code: int, output: str) -> str:
    """Return how a process ended and the last line it wrote."""
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    number = signal_of(code)
    how = f"exit code {code}" if number is None else f"killed by signal {number}"
    return f"{how}: {lines[-1]}" if lines else how
