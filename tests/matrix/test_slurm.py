"""The matrix on a Slurm cluster: here a cluster of one node, started for the tests from the system's packages, with the
small DVC project of the local matrix's tests.
"""

import contextlib
import getpass
import importlib.util
import json
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

import psutil  # type: ignore[import-untyped]  # DVC's own dependency
import pytest
import yaml
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.matrix import slurm
from wimfris.matrix.processes import Stop
from wimfris.matrix.slurm import Task, read_options, run_on_slurm
from wimfris.settings.params import read_params
from wimfris.training.trainer import train_run

_spec = importlib.util.spec_from_file_location("matrix_tests", Path(__file__).with_name("test_local.py"))
assert _spec and _spec.loader
_tests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tests)
PARAMS, ROOT, RUNS = _tests.PARAMS, _tests.ROOT, _tests.RUNS
assert_as, assert_gone, lock, process_of, trained = (
    getattr(_tests, name) for name in ("assert_as", "assert_gone", "lock", "process_of", "trained")
)
prepared, project, sequential = _tests.prepared, _tests.project, _tests.sequential  # fixtures

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
def cluster(configuration: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's project, as the working directory, where Slurm's commands mean the cluster."""
    slurm_on(configuration, project, monkeypatch)
    return project


def slurm_on(configuration: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Slurm's commands mean the cluster, and DVC keep its databases in the folder."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in (_tests.environment() | {"SLURM_CONF": str(configuration)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site-cache"))
    monkeypatch.setattr(slurm, "POLL", 0.5)


def start(jobs: int, *runs: str) -> "subprocess.Popen[str]":
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(jobs), *runs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def done(*command: str) -> None:
    subprocess.run(command, check=True)


# --- the cluster ------------------------------------------------------------------------------------------------------


def test_array_leaves_what_sequential_leaves_and_tells_what_failed(
    cluster: Path, sequential: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "seconds").write_text("0.5")
    (cluster / "fail-full-1").touch()
    [failed] = run_on_slurm(PARAMS, RUNS, 2, [])
    told = capsys.readouterr().err
    assert str(failed) == "full-1: exit code 1: wimfris: no luck with full-1; log: .checkpoints/logs/full-1.log"
    assert told.splitlines()[-1] == f"wimfris: {failed}"
    assert re.search(r"^Slurm job \d+: submitted, 4 tasks, 2 at once", told, re.M)
    for run in ("full-0", "plain-0", "plain-1"):
        assert re.search(rf"^{run}: started; \d of 4 done", told, re.M) and re.search(rf"^{run}: done in", told, re.M)
    assert "full-1: FAILED, exit code 1" in told and "3 of 4 done, 1 failed, about 0 s left" in told
    assert sorted(trained("end")) == ["full-0", "plain-0", "plain-1"]
    [script] = (cluster / ".checkpoints" / "slurm").glob("*_submission.sh")
    assert "#SBATCH --array=0-3%2\n" in script.read_text()

    (cluster / "fail-full-1").unlink()
    assert run_on_slurm(PARAMS, RUNS, None, ["timeout_min=9", "partition=all", "cpus_per_task=1"]) == []
    assert "1 tasks, 1 at once" in capsys.readouterr().err
    assert sorted(trained("begin")) == sorted([*RUNS, "full-1"]), "only what is missing"
    assert_as(sequential, cluster)


def test_preempted_tasks_go_on(cluster: Path, sequential: Path) -> None:
    """Put back into the queue by Slurm, or by submitit at the signal that Slurm sends before the end. What Slurm ends
    otherwise has failed.
    """
    (cluster / "seconds").write_text("300")
    process = start(3, *RUNS[:3])
    pids = [pid for run in RUNS[:3] for pid in process_of(run)]
    (cluster / "seconds").write_text("0")
    first, second, third = sorted(slurm._states() or {})
    done("scontrol", "requeue", first)
    done("scancel", "--signal=USR2", second)
    done("scancel", third)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 1, told
    log = rf"\.checkpoints/slurm/{third}_0_log\.err"
    assert re.fullmatch(rf"wimfris: plain-0: ended by Slurm \(CANCELLED\); log: {log}", told.splitlines()[-1])
    for run in RUNS[:2]:
        assert f"{run}: back in Slurm's queue; 0 of 3 done" in told
    assert sorted(trained("begin")) == sorted([*RUNS[:3], *RUNS[:2]]) and sorted(trained("end")) == RUNS[:2]
    assert_gone(pids)
    expected = lock(sequential)["stages"]
    assert {name: lock(cluster)["stages"][name] for name in _tests.STAGES[:2]} == {
        name: expected[name] for name in _tests.STAGES[:2]
    }


def test_interrupted_cancels_and_the_same_command_goes_on(cluster: Path) -> None:
    (cluster / "seconds").write_text("300")
    process = start(1, *RUNS[:2])
    pids = process_of("full-0")
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, told
    cancelled, last = told.splitlines()[-2:]
    assert re.fullmatch(r"wimfris: Slurm job \d+: cancelled", cancelled)
    assert last == "wimfris: interrupted; the same command again goes on from the runs' checkpoints"
    assert "Traceback" not in told
    (cluster / "seconds").write_text("0")
    assert run_on_slurm(PARAMS, RUNS[:1], 1, []) == []
    assert_gone(pids)
    assert trained("begin") == ["full-0", "full-0"] and trained("end") == ["full-0"]


@pytest.mark.slow
def test_a_requeued_trainer_goes_on_from_its_checkpoint(
    configuration: Path, smoke_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, by `wimfris matrix --launcher slurm`: what it leaves is what an uninterrupted run leaves."""
    folder, whole = tmp_path / "project", tmp_path / "whole"
    shutil.copytree(smoke_folder, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params |= {"seeds": [0], "variants": {"full": {}}, "extended": {}}
    params["scales"]["smoke"]["train"] |= {"epochs": 60, "checkpoint_seconds": 1e-9}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copytree(folder, whole)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages = {name: graph["stages"][name] for name in ("data", "prepare", "encoders", "train")}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    shutil.copytree(ROOT / "wimfris", folder / "wimfris", ignore=shutil.ignore_patterns("__pycache__"))
    slurm_on(configuration, folder, monkeypatch)
    monkeypatch.chdir(folder)
    done("git", "init", "--quiet")
    done("dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")

    command = [sys.executable, "-c", "from wimfris.cli.app import main; main()", "matrix", "--launcher", "slurm"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 240
    while not list(Path(".checkpoints").glob("*/0*")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)
    [task] = slurm._states() or {}
    done("scontrol", "requeue", task)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "full-0: back in Slurm's queue; 0 of 1 done" in told
    runs = folder / "runs" / "scenes-smoke"
    assert json.loads((runs / "manifests" / "full-0.json").read_text())["resumed"] == 1

    monkeypatch.chdir(whole)
    settings = read_params().settings()
    train_run(settings, 0, source_images(settings))
    for name in ("weights/full-0.safetensors", "records/full-0.parquet", "logs/full-0.jsonl", "metrics/full-0.json"):
        assert (runs / name).read_bytes() == (settings.outs / name).read_bytes(), name


def test_what_slurm_refuses_is_told(cluster: Path) -> None:
    with pytest.raises(UserError, match=r"^--launcher slurm: sbatch: error: .*[Ii]nvalid partition.*$"):
        run_on_slurm(PARAMS, RUNS[:1], 1, ["partition=nowhere"])


def test_what_an_earlier_command_left_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = iter([{"7_0": "COMPLETING", "7_1": "CANCELLED"}, None, {"7_0": "PENDING"}, {"7_0": "CANCELLED"}])
    monkeypatch.setattr(slurm, "_states", lambda: next(told))
    monkeypatch.setattr(slurm, "POLL", 0.0)
    slurm._wait_for_earlier(Stop())
    assert list(told) == []
    assert capsys.readouterr().err.count("waiting for what an earlier command left in Slurm's queue; `scancel 7`") == 1


# --- one task ---------------------------------------------------------------------------------------------------------


def test_a_task_does_not_wait_for_an_earlier_attempt_on_another_node(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt was killed, so DVC still names it; its process id is that of some other process here."""
    monkeypatch.setenv("PATH", _tests.environment()["PATH"])
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project / "site-cache"))
    (project / "seconds").write_text("0")
    user = {"pid": os.getpid(), "cmd": "dvc --wait-for-lock repro -s train@full-0"}
    other = {"pid": os.getpid(), "cmd": "dvc --wait-for-lock repro -s train@full-1"}
    held: dict[str, Any] = {
        "write": {str(project / "runs/records/full-0.txt"): user, str(project / "runs/records/full-1.txt"): other},
        "read": {str(project / "index.txt"): [user, other]},
    }
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(json.dumps(held))
    assert Task(project, "full-0", "train@full-0")() is None
    assert trained("end") == ["full-0"]
    left = json.loads(rwlock.read_text())
    assert (list(left["write"].values()), list(left["read"].values())) == ([other], [[other]])


def test_an_earlier_attempt_that_lives_here_stays_listed(project: Path) -> None:
    command = [sys.executable, "-c", "input()", "--wait-for-lock", "repro", "-s", "train@full-0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        held = {"write": {"out": {"pid": process.pid, "cmd": "dvc --wait-for-lock repro -s train@full-0"}}, "read": {}}
        rwlock = project / ".dvc" / "tmp" / "rwlock"
        rwlock.write_text(json.dumps(held))
        slurm._strike_locks("train@full-0")
        process.kill()
    assert json.loads(rwlock.read_text()) == held


def test_what_goes_wrong_in_a_task_is_what_it_returns(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project / "site-cache"))
    (project / ".dvc" / "tmp" / "rwlock").unlink()
    (project / ".dvc" / "tmp" / "rwlock").mkdir()
    assert str(Task(project, "full-0", "train@full-0")()).startswith("full-0: IsADirectoryError: ")


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
    ("option", "told"),
    [
        ("partion=gpu", r"--slurm partion=gpu: no such key; there are: account, .*, partition, qos, .*timeout_min"),
        ("gpu", r"--slurm gpu: no such key; there are: .*"),
        ("partition", r"--slurm partition: partition needs a value"),
        ("timeout_min=1h", r"--slurm timeout_min=1h: timeout_min is a whole number above 0, for example timeout_min=2"),
        ("gpus_per_node=0", r"--slurm gpus_per_node=0: gpus_per_node is a whole number above 0, .*"),
        ("mem_gb=nan", r"--slurm mem_gb=nan: mem_gb is a number above 0, .*"),
    ],
)
def test_options_that_are_refused(option: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^{told}$"):
        run_on_slurm(PARAMS, RUNS, 1, [option])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--launcher", "slrum"], "--launcher slrum: there are: local, slurm"),
        (["--slurm", "partition=gpu"], "--slurm partition=gpu: needs --launcher slurm"),
    ],
)
def test_launchers_that_are_refused(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["matrix", *arguments])
    assert isinstance(result.exception, UserError) and str(result.exception) == told


def test_a_machine_without_slurm_or_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^--launcher slurm: there is no `sbatch` here; .*$"):
        run_on_slurm(PARAMS, RUNS, 1, [])
    for name in ("sbatch", "squeue", "scancel", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UserError, match=r"^--launcher slurm: submitit .*; `pip install -e '.\[slurm\]'`$"):
            run_on_slurm(PARAMS, RUNS, 1, [])
    with pytest.raises(UserError, match=r"^--launcher slurm: `squeue` fails: Slurm does not answer$"):
        run_on_slurm(PARAMS, RUNS, 1, [])


if __name__ == "__main__":
    slurm.POLL, slurm.GRACE = 0.5, 5.0
    sys.exit(bool(run_on_slurm(PARAMS, sys.argv[2:], int(sys.argv[1]), [])))
