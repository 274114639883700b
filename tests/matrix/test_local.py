"""Many runs side by side, whatever fails or is killed, with a stand-in for the trainer."""

import os
import re
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from wimfris.errors import UserError
from wimfris.matrix.local import run_matrix, select_runs
from wimfris.matrix.pending import fetch_runs, pending_runs
from wimfris.runs.files import RunFiles
from wimfris.runs.store import STORE
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

pytestmark = pytest.mark.slow


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < until, pid
        time.sleep(0.05)


def test_runs_go_side_by_side_and_end_in_the_store(matrix: Any, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.take(1)
    params = read_params()
    assert pending_runs(params, matrix.runs) == matrix.runs
    assert run_matrix(params, matrix.runs, 2) == []
    assert sorted(matrix.trained("end")) == sorted(map(str, matrix.runs))
    words = [line.split()[0] for line in Path("trained").read_text().splitlines()]
    assert ("begin", "begin") in pairwise(words), "never two at once"
    output = capsys.readouterr().err
    for run in matrix.runs:
        assert re.search(rf"^{run}: started; \d of 4 done", output, re.M)
        assert re.search(rf"^{run}: done in", output, re.M)
    assert "estimating the time left" in output and re.search(r"about \d+ s left", output)
    assert output.splitlines()[-1].endswith("4 of 4 done")
    assert run_matrix(params, matrix.runs, 2) == []
    assert "4 runs: all are trained" in capsys.readouterr().out
    assert len(matrix.trained("begin")) == 4


def test_full_is_shown_as_soon_as_its_runs_have_ended(matrix: Any) -> None:
    seen: list[list[str]] = []
    run_matrix(read_params(), matrix.runs, 1, show_full=lambda: seen.append(matrix.trained("end")))
    assert seen == [["full-0", "full-1"]]


def test_a_run_that_lies_under_runs_alone_is_not_trained_again(matrix: Any) -> None:
    """As when DVC brought it from a remote."""
    params = read_params()
    run_matrix(params, matrix.runs[:1], 1)
    [entry] = STORE.iterdir()
    entry.rename("elsewhere")
    assert pending_runs(params, matrix.runs[:1]) == []
    assert entry.is_dir(), "it is in the store again"


def test_finished_runs_are_fetched_to_their_place(matrix: Any) -> None:
    params, run = read_params(), matrix.runs[0]
    run_matrix(params, [run], 1)
    files = RunFiles(params.settings_of(run).outs / str(run))
    before = files.manifest.read_bytes()
    for path in files.all:
        path.unlink()
    fetch_runs(params, [run])
    assert files.manifest.read_bytes() == before


def test_an_edit_of_one_variant_makes_its_runs_pending(matrix: Any, project: Any) -> None:
    run_matrix(read_params(), matrix.runs, 2)
    project.edit(variants__none__loss={"dice": 0.4})
    assert pending_runs(read_params(), matrix.runs) == [Run("none", 0), Run("none", 1)]


def test_a_failure_is_reported_and_the_others_go_on(matrix: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (matrix.folder / "fail-full-1").touch()
    [failure] = run_matrix(read_params(), matrix.runs, 2)
    log = Path(".checkpoints/logs/full-1.log")
    assert str(failure) == f"full-1: exit code 1: wimfris: no luck with full-1; log: {log}"
    assert capsys.readouterr().err.splitlines()[-1] == f"wimfris: {failure}"
    assert sorted(matrix.trained("end")) == ["full-0", "none-0", "none-1"]
    (matrix.folder / "fail-full-1").unlink()
    assert run_matrix(read_params(), matrix.runs, 2) == []
    assert len(matrix.trained("end")) == 4


def test_a_trainer_killed_from_outside_is_started_again(matrix: Any) -> None:
    matrix.take(60)
    process = matrix.start(2, *matrix.runs)
    os.kill(matrix.process_of("full-0"), signal.SIGKILL)
    matrix.process_of("full-0", attempt=2)
    (matrix.folder / "release").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "full-0: its trainer was killed by signal 9; trying again" in output
    assert sorted(matrix.trained("end")) == sorted(map(str, matrix.runs))


def test_a_trainer_killed_every_time_has_failed(matrix: Any) -> None:
    matrix.take(60)
    process = matrix.start(1, "full-0")
    for attempt in (1, 2, 3):
        os.kill(matrix.process_of("full-0", attempt), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "full-0: FAILED, killed by signal 9" in output


def test_trainers_of_a_killed_matrix_are_taken_over(matrix: Any) -> None:
    matrix.take(120)
    process = matrix.start(2, *matrix.runs)
    for run in matrix.runs[:2]:
        matrix.process_of(str(run))
    process.kill()
    process.wait()
    matrix.take(0)
    timer = threading.Timer(2, (matrix.folder / "release").touch)
    timer.start()
    assert run_matrix(read_params(), matrix.runs, 2) == []
    assert sorted(matrix.trained("begin")) == sorted(map(str, matrix.runs)), "a run was trained twice"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trainers_and_says_how_to_go_on(matrix: Any, number: signal.Signals) -> None:
    matrix.take(60)
    process = matrix.start(2, *matrix.runs)
    pids = [matrix.process_of(str(run)) for run in matrix.runs[:2]]
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output.splitlines()[-1].startswith("wimfris: interrupted; run the same command again")
    assert "Traceback" not in output
    for pid in pids:
        wait_until_gone(pid)


def test_dry_run_trains_nothing(matrix: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_matrix(read_params(), matrix.runs, 2, dry_run=True) == []
    output = capsys.readouterr().out
    assert output.startswith("4 of 4 runs are to be trained:\n  full-0\n") and "no estimate" in output
    assert matrix.trained("begin") == []


def test_selected_runs(matrix: Any) -> None:
    params = read_params()
    assert select_runs(params) == matrix.runs
    assert select_runs(params, extended=True) == [*matrix.runs, Run("gate_none", 0)]
    assert select_runs(params, ["none"], [1]) == [Run("none", 1)]
    assert select_runs(params, ["gate_none"]) == [Run("gate_none", 0)], "a variant beyond the core"
    more = params.model_copy(update={"extra_seeds": {"full": [10]}})
    assert select_runs(more, ["full"], [10]) == [Run("full", 10)], "an extra seed"
    assert Run("full", 10) not in select_runs(more, ["full"])
    assert select_runs(more, None, [0, 10]) == [Run("full", 0), Run("none", 0), Run("full", 10)], "of no other variant"
    assert Run("full", 10) not in select_runs(more, ["full", "gate_none"]), "a variant asks for no extra seed"
    with pytest.raises(UserError, match=r"run none-10: 10 is not a seed of none; declare it as extra_seeds"):
        select_runs(more, ["full", "none"], [10])
    with pytest.raises(
        UserError, match=r"^--variants nobody: not declared in params.yaml; the variants are full, none"
    ):
        select_runs(params, ["nobody"])
    with pytest.raises(UserError, match=r"^--seeds 7: not declared"):
        select_runs(params, None, [7])
    with pytest.raises(UserError, match=r"^--jobs must be at least 1, got 0$"):
        run_matrix(params, matrix.runs, 0)
