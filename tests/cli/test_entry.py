"""How commands end: one line and an exit code, whatever the signal, the disk or the terminal's encoding."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wimfris.cli.entry import run_command
from wimfris.errors import UserError

ROOT = Path(__file__).parents[2]


def python(code: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(work: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stop:
            run_command(work)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stop.value.code, capsys.readouterr().err


def test_bad_input_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise UserError("model.hmf.window must be at most the grid size (8), got 99")

    assert ended(work, capsys) == (2, "wimfris: model.hmf.window must be at most the grid size (8), got 99\n")


def test_the_code_of_the_work_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: None, capsys) == (0, "")
    assert ended(lambda: 1, capsys) == (1, "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")

    code, text = ended(work, capsys)
    assert code == 2 and text.startswith("wimfris: runs/x: cannot be written (No space left on device)")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_says_how_to_go_on(number: signal.Signals) -> None:
    process = python(
        "import time; from wimfris.cli.entry import run_command\n"
        "def work():\n    print('begun', flush=True)\n    time.sleep(60)\nrun_command(work)"
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert text == "wimfris: interrupted; run the same command again to go on\n"


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored() -> None:
    process = python(
        "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from wimfris.cli.entry import run_command\n"
        "def work():\n    print('begun', flush=True)\n    time.sleep(1)\nrun_command(work)"
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_terminal_s_encoding_ends_a_command(encoding: str) -> None:
    code = r"from wimfris.cli.entry import run_command; run_command(lambda: print('\u2264 1, \u2713, \udcff'))"
    process = python(code, PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
    out, text = process.communicate(timeout=60)
    assert process.returncode == 0 and text == "" and out.startswith("? 1, ?, ?")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error() -> None:
    work = "lambda: [print('line') for _ in range(100000)] and None"
    code = f"from wimfris.cli.entry import run_command\nrun_command({work})"
    result = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1', shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout == "line\n" and "Traceback" not in result.stderr


def test_every_text_file_is_read_and_written_as_utf_8() -> None:
    """By the linter's rule for calls that leave the encoding to the locale."""
    command = [sys.executable, "-m", "ruff", "check", "--preview", "--select", "PLW1514", "wimfris", "studies"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
