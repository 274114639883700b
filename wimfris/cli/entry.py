"""End every command of the project: with its exit code, and with one line if something is wrong."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from wimfris.errors import Interrupted, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run_command(work: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: with its code, with 2 and one line for bad input or a full disk, with 128 + the signal's
    number after an interrupt. A bug keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal of another encoding must not end the command
    _raise_on_signals()
    try:
        code = work() or 0
    except UserError as error:
        # An error of a data loader's process comes with that process's traceback before it.
        message = str(error).rpartition("wimfris.errors.UserError: ")[2].strip()
        code = _refuse(message)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK:
            raise
        code = _refuse(f"{error.filename or 'a file'}: cannot be written ({error.strerror}); free some disk space")
    except Interrupted as error:
        print("wimfris: interrupted; run the same command again to go on", file=sys.stderr)
        code = 128 + error.number
    sys.exit(code)


def _refuse(message: str) -> int:
    print(f"wimfris: {message}", file=sys.stderr)
    return 2


def _raise_on_signals() -> None:
    """Let signals that ask to stop raise `Interrupted` in this process. Ignored ones (nohup) stay ignored."""
    own = os.getpid()

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != own:  # a forked worker ends as Python does by default; this process says how to go on
            raise KeyboardInterrupt
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)
