"""Several processes give the results of one process. If one of them dies, the others end too."""

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
from wimfris.runs.manifest import read_manifest
from wimfris.runs.records import read_records
from wimfris.runs.store import CHECKPOINTS, STORE
from wimfris.training.distributed import Processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = Path(__file__).parent / "distributed_steps.py"
VARIANTS = ["full", "detris_adapters_detris_neck", "finetune"]  # both kinds of batch norms, and trained backbones
TRAIN = ["-m", "--", "wimfris", "train", "--run", "full-0"]
PATIENCE = 600  # seconds after which a process counts as hung


@pytest.fixture
def torchrun() -> Iterator[Any]:
    """torchrun(script and arguments, *options) -> the process; by default with two workers on this machine."""
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


def output(process: "subprocess.Popen[str]") -> str:
    """Return the output of a process that ends without an error."""
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text
    return text


def test_ten_steps_equal_those_of_one_process(project: Any, torchrun: Any) -> None:
    project.edit(scales__smoke__train__epochs=2)
    output(torchrun([str(STEPS), "two.pt", *VARIANTS]))
    output(torchrun([str(STEPS), "one.pt", *VARIANTS], "1", "--standalone"))
    one, two = torch.load("one.pt"), torch.load("two.pt")
    for variant in VARIANTS:
        assert one[variant].keys() == two[variant].keys()
        for name, value in one[variant].items():
            torch.testing.assert_close(two[variant][name], value, rtol=0, atol=1e-10, msg=f"{variant}: {name}")


@pytest.mark.long
def test_records_equal_those_of_one_process(trained: Any, torchrun: Any, tmp_path: Path) -> None:
    """The last batches are uneven. Each sentence has one record under each condition."""
    path = tmp_path / "records.parquet"
    text = output(torchrun(["-m", "--", "wimfris", "evaluate", "--run", "full-0", "--out", str(path)]))
    assert read_records(path).equals(read_records(trained.files().records))
    assert text.count("protocol cris") == 1, "only the leader prints the table"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the training processes in the order of their ranks."""
    children = [child for child in psutil.Process(process.pid).children() if "wimfris" in child.cmdline()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def wait_for_checkpoint(process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + PATIENCE
    while not list(CHECKPOINTS.glob("*/0*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "the process hangs"
        time.sleep(0.05)


def two_nodes(torchrun: Any) -> "list[subprocess.Popen[str]]":
    """Start one worker on each of two nodes, both on this machine."""
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "run")
    return [torchrun(TRAIN, "1", "--nnodes", "2", *rendezvous) for _ in range(2)]


@pytest.mark.long
def test_killed_worker_ends_all_and_resumed_run_equals_uninterrupted(project: Any, torchrun: Any, forget: Any) -> None:
    """The uninterrupted run, on two nodes, has the same bits as the resumed run on one."""
    project.edit(scales__smoke__train__checkpoint_seconds=1e-6, scales__smoke__train__epochs=6)
    first = torchrun(TRAIN)
    wait_for_checkpoint(first)
    leader, other = workers(first)
    other.send_signal(signal.SIGKILL)
    text, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode != 0 and "wimfris" in text
    assert not leader.is_running() or leader.status() == psutil.STATUS_ZOMBIE
    assert not project.files().folder.exists()
    with pytest.raises(UserError, match="the checkpoint is of 2 processes, but 1 were started; start as many"):
        project.train()
    assert "resumed at step" in output(torchrun(TRAIN))
    manifest = read_manifest(project.files().manifest)
    assert (manifest["processes"], manifest["resumed"]) == (2, 1)
    resumed = project.outs()
    assert "masks.parquet" in resumed and len(resumed) == 6

    forget(project.files())
    for node in two_nodes(torchrun):
        output(node)
    assert project.outs() == resumed


@pytest.mark.long
def test_dead_node_ends_the_other_and_the_run_can_resume(project: Any, torchrun: Any) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=1e-6, scales__smoke__train__epochs=20)
    nodes = two_nodes(torchrun)
    wait_for_checkpoint(nodes[0])
    dead = psutil.Process(nodes[1].pid)
    for process in [dead, *dead.children(recursive=True)]:
        process.kill()
    text, _ = nodes[0].communicate(timeout=PATIENCE)
    assert nodes[0].returncode != 0, text
    assert not project.files().folder.exists() and not STORE.exists()
    assert any("resumed at step" in output(node) for node in two_nodes(torchrun))


def test_parts_of_a_batch() -> None:
    batch = list(range(12))
    parts = [Processes(rank, 3).part(batch) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert [*parts[0], *parts[1], *parts[2]] == batch
    with pytest.raises(UserError, match=r"train\.batch_size must be a multiple .* \(5\), got 12"):
        Processes(0, 5).check_batch(12)
