"""The matrix on a Slurm cluster of one node, started from the system's packages. `make test` runs this file."""

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from wimfris.matrix import slurm
from wimfris.runs.manifest import read_manifest
from wimfris.runs.store import CHECKPOINTS
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

pytestmark = pytest.mark.slow
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_requeued_trainer_ends_with_the_bits_of_an_uninterrupted_one(cluster: Any, project: Any) -> None:
    """Here the task starts the real trainer: nothing replaces it on the node."""
    project.edit(scales__smoke__train__epochs=6, scales__smoke__train__checkpoint_seconds=1e-9)
    project.train()
    expected = project.outs()
    shutil.rmtree(project.files().folder)
    shutil.rmtree(CHECKPOINTS)
    requeued = []

    def requeue() -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until:
            steps = [int(path.name) for path in CHECKPOINTS.glob("*/*") if path.name.isdigit()]
            if max(steps, default=0) >= 4:
                [task] = slurm._states() or {}
                requeued.append(subprocess.run(["scontrol", "requeue", task], check=False).returncode)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=requeue)
    thread.start()
    assert slurm.run_on_slurm(read_params(), [Run("full", 0)], 1, []) == []
    thread.join()
    assert requeued == [0]
    assert project.outs() == expected
    assert read_manifest(project.files().manifest)["resumed"] == 1
