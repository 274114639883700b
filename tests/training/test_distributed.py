"""Several processes do what one does: the same steps, the same records; and none waits for one that is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from wimfris.errors import UserError
from wimfris.runs.records import read_records
from wimfris.training.checkpoint import CHECKPOINTS
from wimfris.training.distributed import Processes

ROOT = Path(__file__).parents[2]
STEPS = Path(__file__).parent / "distributed_steps.py"
VARIANTS = ["full", "detris_adapters_detris_neck", "finetune"]  # batch norms of both kinds; parameters without a use
TRAIN = ["-m", "--", "wimfris", "train", "--run", "full-0"]


@pytest.fixture
def torchrun() -> Iterator[Any]:
    """torchrun(script and arguments, *options) -> the process, by default with two workers on this machine."""
    started = []

    def start(command: list[str], *options: str) -> "subprocess.Popen[str]":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
        process = subprocess.Popen(
            [*launcher, *(options or ("2", "--standalone")), *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def ended(process: "subprocess.Popen[str]") -> str:
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 0, told
    return told


def test_ten_steps_are_those_of_one_process(project: Any, torchrun: Any) -> None:
    ended(torchrun([str(STEPS), "two.pt", *VARIANTS]))
    ended(torchrun([str(STEPS), "one.pt", *VARIANTS], "1", "--standalone"))
    one, two = torch.load("one.pt"), torch.load("two.pt")
    for variant in VARIANTS:
        assert one[variant].keys() == two[variant].keys()
        for name, value in one[variant].items():
            torch.testing.assert_close(two[variant][name], value, rtol=0, atol=1e-10, msg=f"{variant}: {name}")


def test_records_are_those_of_one_process(trained: Any, torchrun: Any, tmp_path: Path) -> None:
    """Uneven last batches, both controls; each sentence once."""
    out = tmp_path / "records.parquet"
    told = ended(torchrun(["-m", "--", "wimfris", "evaluate", "--run", "full-0", "--out", str(out)]))
    expected = read_records(trained.runs / "records" / "full-0.parquet")
    found = read_records(out)
    columns = [name for name in expected.columns if name in found.columns]
    assert {"sent_id", "intersection", "union", "condition"} <= set(columns)
    assert found[columns].equals(expected[columns])
    assert told.count("protocol cris") == 1, "the leader alone tells"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The training processes by rank."""
    found = [p for p in psutil.Process(process.pid).children() if "wimfris" in p.cmdline()]
    return sorted(found, key=lambda p: int(p.environ()["RANK"]))


def wait_for_checkpoint(process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 200
    while not list(CHECKPOINTS.glob("*/0*")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)


def two_nodes(torchrun: Any) -> "list[subprocess.Popen[str]]":
    """One worker on each of two nodes, both on loopback; the first keeps what they meet by."""
    at = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "run")
    return [torchrun(TRAIN, "1", "--nnodes", "2", *at) for _ in range(2)]


def test_killed_worker_ends_all_and_resumed_is_as_uninterrupted(project: Any, torchrun: Any) -> None:
    """On two nodes, uninterrupted, the bits are the same too."""
    project.edit(scales__smoke__train__checkpoint_seconds=1e-6, scales__smoke__train__epochs=6)
    first = torchrun(TRAIN)
    wait_for_checkpoint(first)
    leader, other = workers(first)
    other.send_signal(signal.SIGKILL)
    told, _ = first.communicate(timeout=60)
    assert first.returncode != 0 and "wimfris" in told
    assert not leader.is_running() or leader.status() == psutil.STATUS_ZOMBIE
    assert not (project.runs / "records").exists()
    with pytest.raises(UserError, match="a checkpoint of 2 processes, and these are 1; go on with as many"):
        project.train()
    assert "goes on from step" in ended(torchrun(TRAIN))
    manifest = json.loads((project.runs / "manifests" / "full-0.json").read_text())
    assert (manifest["processes"], manifest["resumed"]) == (2, 1)
    resumed = project.outs()
    assert {name.split("/")[0] for name in resumed} >= {"weights", "records", "logs", "metrics"}

    for path in project.runs.glob("*/full-0*"):
        path.unlink() if path.is_file() else None
    for node in two_nodes(torchrun):
        ended(node)
    assert project.outs() == resumed


def test_a_node_that_is_gone_ends_the_other(project: Any, torchrun: Any) -> None:
    """Soon, with an exit code; the same command on both goes on."""
    project.edit(scales__smoke__train__checkpoint_seconds=1e-6, scales__smoke__train__epochs=20)
    nodes = two_nodes(torchrun)
    wait_for_checkpoint(nodes[0])
    gone = psutil.Process(nodes[1].pid)
    for process in [gone, *gone.children(recursive=True)]:
        process.kill()
    told, _ = nodes[0].communicate(timeout=120)
    assert nodes[0].returncode != 0, told
    assert not (project.runs / "records").exists()
    assert any("goes on from step" in ended(node) for node in two_nodes(torchrun))


def test_parts_are_equal_and_whole() -> None:
    batch = list(range(12))
    parts = [Processes(rank, 3).part(batch) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert [*parts[0], *parts[1], *parts[2]] == batch
    with pytest.raises(UserError, match="12 samples have no 5 equal parts"):
        Processes(0, 5).check_batch(12)
