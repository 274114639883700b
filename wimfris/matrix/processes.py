"""Signals and environment of the processes that the matrix and a search start."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


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


def environment(gpu: str | None = None) -> dict[str, str]:
    """The stages call `python` and `wimfris` by name: they must be this interpreter's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return dict(os.environ) | {"PATH": path} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
