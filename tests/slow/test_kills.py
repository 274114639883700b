"""`make repro` killed at random moments ends with the bits of an uninterrupted one. `make test-slow` runs this file."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.long
KILLS, SEED = 20, 0
BIN = Path(sys.executable).parent
COMMAND = ("make", "--old-file", "setup", "repro", f"BIN={BIN}", "JOBS=2")
TRAIN = {"epochs": 3, "checkpoint_seconds": 1e-9}
PATIENCE = 3600.0  # seconds after which a command hangs


def shorten(folder: Path) -> None:
    """Leave the stages from the data to the tables, and let the runs save a checkpoint after each step."""
    for name in ("dvc.yaml", "params.yaml"):
        content = yaml.safe_load((folder / name).read_text())
        if name == "dvc.yaml":
            del content["stages"]["figures"], content["stages"]["page"], content["plots"]
            content["stages"]["study"]["matrix"] = {"name": ["core"]}
        else:
            content["scales"]["smoke"]["train"] |= TRAIN
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))


def results(folder: Path) -> dict[str, bytes]:
    """Return what the command leaves and that holds no times: weights, records, losses, evidence and tables."""
    core, reports = folder / "runs" / "scenes-smoke" / "core", folder / "reports"
    paths = [path for path in core.rglob("*.*") if path.name not in ("manifest.json", ".gitignore")]
    paths += [reports / "records" / f"scenes-smoke{end}" for end in (".parquet", "-emphasis.csv")]
    paths += (reports / "records" / "scenes-smoke-metrics").iterdir()
    paths += (reports / "tables" / "scenes-smoke").glob("*.*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def start(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE"))}
    with log.open("ab") as file:
        return subprocess.Popen(
            COMMAND,
            cwd=folder,
            env=env | {"PATH": f"{BIN}:{env['PATH']}", "PYTHONPATH": str(folder), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def at_work(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in this folder, the orphans of a killed command among them."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                processes.append(process)
    return processes


def label(process: psutil.Process) -> str:
    """Return what a process is, in a word or two."""
    with contextlib.suppress(psutil.Error):
        words = [Path(word).name for word in process.cmdline()[:6]]
        for name in ("wimfris", "dvc"):
            if name in words and words[0] not in ("sh", "bash"):
                return " ".join(words[words.index(name) :][:2])
        return words[0] if words else "a process that ends"
    return "a process that ended"


def wait(folder: Path, patience: float = PATIENCE) -> None:
    """Wait until no process works in the folder."""
    until = time.monotonic() + patience
    while processes := at_work(folder):
        assert time.monotonic() < until, f"these go on: {[label(process) for process in processes]}"
        time.sleep(0.2)


def test_killed_at_random_moments_the_same_command_ends_with_the_same_bits(
    clone: Callable[..., Path], done: Callable[..., str], tmp_path: Path
) -> None:
    """Kill one process of the command's tree, or all, and start the command again; begin anew where it has ended."""
    folder, log = clone(), tmp_path / "log"
    shorten(folder)
    done(folder, "git", "commit", "--quiet", "--all", "--message", "short")
    began = time.monotonic()
    assert start(folder, log).wait(PATIENCE) == 0, log.read_text()[-5000:]
    seconds = time.monotonic() - began
    expected = results(folder)
    assert len([name for name in expected if name.endswith("weights.safetensors")]) == 2

    drawn = random.Random(SEED)
    kills, rounds, unfinished, orphans = 0, 0, False, list[psutil.Process]()
    while kills < KILLS or unfinished:
        if not unfinished:
            rounds += 1
            wait(folder)
            done(folder, "git", "clean", "-ffdxq")
            done(folder, "git", "checkout", "--quiet", ".")
        process, was_killed = start(folder, log), False
        while kills < KILLS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(drawn.uniform(0, 0.4 * seconds))
                break
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            victims = tree if drawn.random() < 0.3 else [drawn.choice(tree)]
            names = ", ".join(label(victim) for victim in victims)
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
            kills, was_killed = kills + 1, True
            print(f"round {rounds}, kill {kills} of {KILLS}: {names}", flush=True)
        unfinished = process.wait(PATIENCE) != 0
        # A command that was not killed may fail only where it met the orphans of an earlier one.
        assert was_killed or not unfinished or orphans, log.read_text()[-5000:]
        if not was_killed:
            wait(folder)
        orphans = at_work(folder)
        if not unfinished:
            wait(folder)
            assert results(folder) == expected, f"round {rounds}"
