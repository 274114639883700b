"""Slurm without a cluster: what is refused, and how jobs of an earlier command are waited for. The tests with a cluster
are in tests/slow/test_slurm.py.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.errors import UserError
from wimfris.matrix import slurm
from wimfris.matrix.processes import Stop
from wimfris.matrix.slurm import read_options, run_on_slurm
from wimfris.settings.params import read_params


def test_jobs_of_an_earlier_command_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = iter([{"7_0": "COMPLETING", "7_1": "CANCELLED"}, None, {"7_0": "PENDING"}, {"7_0": "CANCELLED"}])
    monkeypatch.setattr(slurm, "_states", lambda: next(states))
    monkeypatch.setattr(slurm, "POLL", 0.0)
    slurm._wait_for_earlier_jobs(Stop())
    assert list(states) == []
    assert capsys.readouterr().err.count("waiting for jobs of an earlier command; `scancel 7` ends them") == 1


# --- what is refused --------------------------------------------------------------------------------------------------


def test_options_are_submitits() -> None:
    assert read_options([]) == {}
    options = ["partition=gpu", "timeout_min=600", "mem_gb=1.5", "exclude=node1,node2", "comment=a=b"]
    assert read_options(options) == {
        "partition": "gpu",
        "timeout_min": 600,
        "mem_gb": 1.5,
        "exclude": "node1,node2",
        "comment": "a=b",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partion=gpu", r"--slurm partion=gpu: unknown key; the keys are account, .*, partition, qos, .*timeout_min"),
        ("gpu", r"--slurm gpu: unknown key; the keys are .*"),
        ("partition", r"--slurm partition: partition needs a value"),
        (
            "timeout_min=1h",
            r"--slurm timeout_min=1h: timeout_min must be a whole number above 0, for example .*",
        ),
        ("gpus_per_node=0", r"--slurm gpus_per_node=0: gpus_per_node must be a whole number above 0, .*"),
        ("mem_gb=nan", r"--slurm mem_gb=nan: mem_gb must be a number above 0, .*"),
    ],
)
def test_options_that_are_refused(option: str, message: str, matrix: Any) -> None:
    with pytest.raises(UserError, match=rf"^{message}$"):
        run_on_slurm(read_params(), matrix.runs, 1, [option])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "slrum"], "--launcher must be local or slurm, got slrum"),
        (["--slurm", "partition=gpu"], "--slurm partition=gpu needs --launcher slurm"),
    ],
)
def test_launchers_that_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["matrix", *arguments])
    assert isinstance(result.exception, UserError) and str(result.exception) == message


def test_a_machine_without_slurm_or_submitit(matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^--launcher slurm: `sbatch` is not installed here; .*$"):
        run_on_slurm(read_params(), matrix.runs, 1, [])
    for name in ("sbatch", "squeue", "scancel", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UserError, match=r"^--launcher slurm: submitit .*; run `pip install -e '.\[slurm\]'`$"):
            run_on_slurm(read_params(), matrix.runs, 1, [])
    with pytest.raises(UserError, match=r"^--launcher slurm: `squeue` fails; Slurm does not answer$"):
        run_on_slurm(read_params(), matrix.runs, 1, [])
