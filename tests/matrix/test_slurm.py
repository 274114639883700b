"""The matrix on a Slurm cluster: one node, started from the system's packages, with a stand-in for the trainer."""

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.errors import UserError
from wimfris.matrix import slurm
from wimfris.matrix.processes import Stop
from wimfris.matrix.slurm import read_options, run_on_slurm
from wimfris.settings.params import read_params

CONFIGURATION = """
ClusterName=wimfris
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
AuthType=auth/none
CredType=cred/none
# a task that goes back into the queue starts again after this time at the earliest
AuthInfo=cred_expire=15
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=5
MessageTimeout=60
BatchStartTimeout=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes={host} Default=YES
"""


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of one node that runs; the path of its slurm.conf."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "srun", "squeue") if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs Slurm (Debian: slurm-wlm); there is no {', '.join(missing)}")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    path = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    path.write_text(
        CONFIGURATION.format(host=host, ports=free_ports(2), user=getpass.getuser(), folder=folder).lstrip()
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    own = os.environ | {"SLURM_CONF": str(path)}
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.log").open("w") as log:
                daemons.append(subprocess.Popen([name, "-D", "-f", path], env=own, stdout=log, stderr=log))
        until, state = time.monotonic() + 60, ""
        while state != "idle":
            if time.monotonic() > until or any(daemon.poll() is not None for daemon in daemons):
                logs = " | ".join((folder / f"{name}.log").read_text()[-200:] for name in ("slurmctld", "slurmd"))
                pytest.skip(f"Slurm does not start here: {' '.join(logs.split())}")
            time.sleep(0.5)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command = ["sinfo", "--noheader", "--format=%T"]
                state = subprocess.run(command, env=own, capture_output=True, text=True, timeout=20).stdout.strip()
        yield path
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        for process in psutil.process_iter():  # the tasks' keepers outlive the daemons
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(path):
                    process.kill()


@pytest.fixture
def cluster(configuration: Path, matrix: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small project, as the working directory, where Slurm's commands mean the cluster."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setattr(slurm, "POLL", 0.5)
    return matrix


def test_an_array_trains_what_is_missing_and_reports_failures(cluster: Any) -> None:
    cluster.take(0.5)
    (cluster.folder / "fail-full-1").touch()
    process = cluster.start(2, *cluster.runs, launcher="slurm")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    assert output.splitlines()[-1].startswith("wimfris: full-1: exit code 1: wimfris: no luck with full-1; log: ")
    assert re.search(r"^Slurm job \d+: submitted 4 tasks, 2 at once", output, re.M)
    assert sorted(cluster.trained("end")) == ["full-0", "none-0", "none-1"]


def test_a_requeued_task_goes_on(cluster: Any) -> None:
    cluster.take(300)
    process = cluster.start(1, "full-0", launcher="slurm")
    cluster.process_of("full-0")
    [task] = slurm._states() or {}
    subprocess.run(["scontrol", "requeue", task], check=True)
    cluster.process_of("full-0", attempt=2)
    (cluster.folder / "release").touch()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "full-0: back in Slurm's queue; 0 of 1 done" in output, output


def test_an_interrupt_cancels_the_job(cluster: Any) -> None:
    cluster.take(300)
    process = cluster.start(1, *cluster.runs[:2], launcher="slurm")
    cluster.process_of("full-0")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert re.search(r"^wimfris: Slurm job \d+: cancelled$", output, re.M)


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
