"""Many runs side by side: in a small DVC project of the same shape, what is left is what a sequential `dvc repro`
leaves, whatever fails, is killed or runs at the same time.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]  # DVC's own dependency
import pytest
import yaml

from wimfris.errors import UserError
from wimfris.matrix import local as matrix
from wimfris.matrix import repro
from wimfris.matrix.costs import Costs, duration, estimate, wall_seconds
from wimfris.matrix.local import run_matrix, select_runs
from wimfris.matrix.repro import LockFiles, Work, outdated
from wimfris.settings.run import Run
from wimfris.training.checkpoint import CHECKPOINTS

ROOT = Path(__file__).parents[2]
RUNS = ["full-0", "full-1", "plain-0", "plain-1"]
STAGES = [f"train@{run}" for run in RUNS]

GRAPH = """
stages:
  data:
    cmd: python work.py data.txt
    deps: [work.py]
    outs: [data.txt]
  prepare:
    cmd: python work.py index.txt
    deps: [data.txt]
    outs: [index.txt]
  encoders:
    cmd: python work.py encoders.txt
    deps: [work.py]
    outs: [encoders.txt]
  train:
    matrix: {variant: "${variants}", seed: "${seeds}"}
    cmd: python work.py --run ${item.variant}-${item.seed} && true  # no shell replaces itself by the command
    params: ["variants.${item.variant}"]
    deps: [index.txt, encoders.txt]
    outs:
      - runs/records/${item.variant}-${item.seed}.txt
      - runs/manifests/${item.variant}-${item.seed}.json: {cache: false}
"""

STUDIES = """
stages:
  train:
    matrix: {variant: [odd], seed: [0]}
    wdir: ..
    cmd: python work.py --run ${item.variant}-${item.seed}
    deps: [index.txt, encoders.txt]
    outs: ["runs/records/${item.variant}-${item.seed}.txt"]
"""

# A stage: `seconds` holds how long a run takes without a file `release`, `fail-<run>` makes one fail; each leaves
# its lines in `trained`.
WORK = """
import os, sys, time
from pathlib import Path

if sys.argv[1] != "--run":
    Path(sys.argv[1]).write_text(sys.argv[1])
    sys.exit()
run = sys.argv[2]

def note(word):
    with open("trained", "a") as file:
        file.write(f"{word} {run} {os.getpid()} {os.getppid()}\\n")

seconds = float(Path("seconds").read_text())
note("begin")
until = time.monotonic() + seconds
while time.monotonic() < until and not Path("release").exists():
    time.sleep(0.02)
if Path(f"fail-{run}").exists():
    sys.exit("wimfris: no luck with " + run)
for path, text in ((f"runs/records/{run}.txt", run), (f"runs/manifests/{run}.json", '{"wall_seconds": 60}')):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
note("end")
"""


class Fake:
    """What the matrix asks of params.yaml."""

    variants: dict[str, Any] = {"full": {}, "plain": {}}  # noqa: RUF012
    seeds = (0, 1)
    extended: dict[str, Any] = {"odd": {}}  # noqa: RUF012
    extended_seeds = (0,)

    def stage(self, run: Run) -> str:
        return f"studies/dvc.yaml:train@{run}" if run.variant == "odd" else f"train@{run}"

    def settings(self, variant: str = "full") -> Any:
        train = SimpleNamespace(threads=1, workers=0, device="cpu", epochs=2, steps=lambda objects: objects // 8)
        return SimpleNamespace(folder=Path("runs"), outs=Path("runs"), train=train)

    def settings_of(self, run: Run) -> Any:
        return self.settings(run.variant)

    def runs_of(self, variant: str) -> list[Run]:
        return [Run(variant, seed) for seed in self.seeds]


PARAMS: Any = Fake()


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def done(folder: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with all but its runs done; only to be copied."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path_factory.mktemp("matrix") / "project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "studies").mkdir()
    (folder / "studies" / "dvc.yaml").write_text(STUDIES)
    (folder / "work.py").write_text(WORK)
    (folder / "seconds").write_text("0.3")
    (folder / "params.yaml").write_text(
        yaml.safe_dump({"variants": {"full": {"a": 1}, "plain": {"a": 2}}, "seeds": [0, 1]})
    )
    done(folder, "git", "init", "--quiet")
    done(folder, "dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    (folder / ".gitignore").write_text(".dvc-site-cache/\n.checkpoints/\n")
    done(folder, "dvc", "repro", "data", "prepare", "encoders")
    return folder


@pytest.fixture(scope="module")
def sequential(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after a sequential `dvc repro`; only to be read."""
    folder = tmp_path_factory.mktemp("sequential") / "project"
    shutil.copytree(prepared, folder)
    (folder / "seconds").write_text("0")
    done(folder, "dvc", "repro")
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared project of the test's own, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def lock(folder: Path) -> Any:
    return yaml.safe_load((folder / "dvc.lock").read_text())


def cached(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / ".dvc" / "cache").rglob("*") if path.is_file()}


def assert_as(sequential: Path, project: Path) -> None:
    assert lock(project) == lock(sequential)
    assert cached(project) == cached(sequential)
    assert outdated(["data", "prepare", "encoders", *STAGES]) == []


def trained(word: str) -> list[str]:
    """The runs that began or ended, in order."""
    lines = Path("trained").read_text().splitlines() if Path("trained").exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == word]


def process_of(run: str) -> tuple[int, int, int]:
    """Of a run at work: its process, the shell's and dvc's."""
    until = time.monotonic() + 120  # a machine with other work on it takes its time over DVC's start
    while time.monotonic() < until:
        lines = Path("trained").read_text().splitlines() if Path("trained").exists() else []
        for line in lines:
            word, name, process, parent = line.split()
            if (word, name) == ("begin", run):
                return int(process), int(parent), psutil.Process(int(parent)).ppid()
        time.sleep(0.05)
    raise AssertionError(f"{run} did not begin")


def start(jobs: int, *runs: str) -> "subprocess.Popen[str]":
    """`wimfris matrix` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(jobs), *runs],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_gone(pids: list[int]) -> None:
    until = time.monotonic() + 5
    while living := [pid for pid in pids if repro._lives(pid)]:
        assert time.monotonic() < until, living
        time.sleep(0.05)


# --- what is left -----------------------------------------------------------------------------------------------------


def test_parallel_leaves_what_sequential_leaves(
    project: Path, sequential: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "seconds").write_text("1")
    assert run_matrix(PARAMS, RUNS, 2) == []
    assert_as(sequential, project)
    assert sorted(trained("end")) == RUNS
    words = [line.split()[0] for line in Path("trained").read_text().splitlines()]
    assert ("begin", "begin") in pairwise(words), "never two at once"
    told = capsys.readouterr().err
    for run in RUNS:
        assert re.search(rf"^{run}: started; \d of 4 done", told, re.M) and re.search(rf"^{run}: done in", told, re.M)
    assert "4 of 4 done, about 0 s left" in told
    assert "up to date" in done(project, "dvc", "repro")
    assert run_matrix(PARAMS, RUNS, 2) == []
    assert "4 runs: all up to date" in capsys.readouterr().out
    assert len(trained("begin")) == 4


def test_parents_are_done_first(project: Path, sequential: Path) -> None:
    for name in ("data.txt", "index.txt", "dvc.lock"):
        (project / name).unlink()
    shutil.rmtree(project / ".dvc" / "cache")
    (project / "seconds").write_text("0")
    run_matrix(PARAMS, RUNS[:1], 1)
    told = lock(sequential)["stages"]
    assert lock(project)["stages"] == {name: told[name] for name in ("data", "prepare", "encoders", STAGES[0])}


def test_extended_runs_are_stages_of_the_studies(project: Path) -> None:
    before = lock(project)
    (project / "seconds").write_text("0")
    assert run_matrix(PARAMS, ["odd-0"], 1) == []
    assert outdated(["studies/dvc.yaml:train@odd-0"]) == []
    assert lock(project) == before
    assert set(lock(project / "studies")["stages"]) == {"train@odd-0"}


def test_a_run_that_fails_is_told_and_the_others_go_on(
    project: Path, sequential: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "fail-full-1").touch()
    [failed] = run_matrix(PARAMS, RUNS, 2)
    log = Path(".checkpoints/logs/full-1.log")
    assert str(failed) == f"full-1: exit code 1: wimfris: no luck with full-1; log: {log}"
    assert capsys.readouterr().err.splitlines()[-1] == f"wimfris: {failed}"
    assert "no luck" in log.read_text()
    assert sorted(trained("end")) == ["full-0", "plain-0", "plain-1"]
    (project / "fail-full-1").unlink()
    assert run_matrix(PARAMS, RUNS, 2) == []
    assert len(trained("end")) == 4
    assert_as(sequential, project)


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["shell", "dvc"])
def test_killed_trainer_and_its_killed_parents(project: Path, sequential: Path, other: str) -> None:
    """The others go on, no trainer is left behind, and the same command does the rest."""
    (project / "seconds").write_text("60")
    process = start(2, *RUNS)
    killed, (trainer, shell, dvc) = process_of("full-0")[0], process_of("full-1")
    (project / "seconds").write_text("0")
    os.kill(killed, signal.SIGKILL)
    os.kill({"shell": shell, "dvc": dvc}[other], signal.SIGKILL)
    told, _ = process.communicate()
    assert process.returncode == 1, told
    failures = [line for line in told.splitlines() if line.startswith("wimfris: ")]
    assert sorted(re.findall(r"full-\d: killed by signal 9", "\n".join(failures))) == [
        f"full-{seed}: killed by signal 9" for seed in (0, 1)
    ], told + Path(".checkpoints/logs/full-0.log").read_text()
    assert_gone([trainer])
    assert sorted(trained("end")) == ["plain-0", "plain-1"]
    assert run_matrix(PARAMS, RUNS, 2) == []
    assert_as(sequential, project)


def test_killed_matrix_leaves_workers_that_another_waits_for(project: Path, sequential: Path) -> None:
    (project / "seconds").write_text("120")
    process = start(2, *RUNS)
    for run in RUNS[:2]:
        process_of(run)
    process.kill()
    process.wait()
    (project / "seconds").write_text("0")
    log = Path(".checkpoints/logs/full-0.log")

    def release() -> None:
        until = time.monotonic() + 100
        while "is busy" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        (project / "release").touch()

    threading.Thread(target=release).start()
    assert run_matrix(PARAMS, RUNS, 2) == []
    assert sorted(trained("begin")) == RUNS, "a run was trained twice"
    assert "is busy" in log.read_text()
    assert_as(sequential, project)


def test_two_at_once(project: Path, sequential: Path) -> None:
    (project / "seconds").write_text("0.5")
    processes = [start(2, *RUNS), start(2, *RUNS)]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    assert sorted(trained("end")) == RUNS, "a run was trained twice"
    assert_as(sequential, project)


def test_interrupted_ends_its_workers_and_says_how_to_go_on(project: Path) -> None:
    (project / "seconds").write_text("30")
    process = start(2, *RUNS)
    pids = [pid for run in RUNS[:2] for pid in process_of(run)]
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate()
    assert time.monotonic() - started < 10
    assert process.returncode == 128 + signal.SIGTERM
    assert told.splitlines()[-1] == "wimfris: interrupted; the same command again goes on from the runs' checkpoints"
    assert "Traceback" not in told
    assert_gone(pids)
    rwlock = json.loads(Path(".dvc/tmp/rwlock").read_text())
    assert not any(rwlock.values()), "dvc gave back its locks"


# --- DVC's record -----------------------------------------------------------------------------------------------------


def test_lock_file_that_is_cut_off_or_shortened_is_brought_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / "dvc.lock"
    whole = file.read_text().replace("  prepare:\n", "  prepare:\n    params: {params.yaml: {rate: 3e-05}}\n")
    file.write_text(whole)
    told = lock(project)
    files = LockFiles(["data", *STAGES])
    files.keep()
    for cut in ("", whole[: len(whole) // 2].rstrip()):
        file.write_text(cut)
        LockFiles(["data", *STAGES]).keep()  # as a process that starts after the kill
        assert file.read_text() == whole
        assert "dvc.lock: cut off" in capsys.readouterr().err
    file.write_text(conflict := "<<<<<<< HEAD\n" + whole)
    LockFiles(["data", *STAGES]).keep()
    assert file.read_text() == conflict, "not ours to mend"
    del told["stages"]["prepare"]  # as a dvc leaves it that read a part
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    files.keep()
    assert set(lock(project)["stages"]) == {"data", "prepare", "encoders"}
    assert lock(project)["stages"] == yaml.safe_load(whole)["stages"]
    assert "rate: 3e-05" in file.read_text(), "a number as DVC writes it"


def test_list_of_users_that_a_kill_cut_off_is_begun_anew(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = project / ".dvc" / "tmp" / "rwlock"
    (project / "seconds").write_text("0")
    for run, cut in ("full-0", ""), ("full-1", '{"write": {"'):
        users.write_text(cut)
        assert run_matrix(PARAMS, [run], 1) == []
        assert capsys.readouterr().err.count("rwlock: cut off by a kill, begun anew") == 1
    users.write_text(cut)  # while others are at work
    work = Work("plain-0", Path("plain-0.log"))
    assert repro.reproduce(work, ["-s", "train@plain-0"], environment(), repro.Stop()) is None
    assert "Unable to read RWLock-file" in work.log.read_text()
    assert sorted(trained("end")) == ["full-0", "full-1", "plain-0"]


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """measured(run, seconds): leave the manifest of a run; in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def leave(run: str, seconds: float) -> None:
        path = tmp_path / "runs" / "manifests" / f"{run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"wall_seconds": seconds}))

    return leave


def test_costs_are_the_variant_s_then_all_runs(measured: Callable[[str, float], None]) -> None:
    assert estimate(PARAMS, ["full-0"], 1) is None
    measured("full-0", 100)
    measured("full-1", 120)
    measured("plain-0", 400)
    Path("runs/manifests/plain-1.json").write_text("<<<<<<< not JSON")
    costs = Costs(PARAMS, ["full-9", "plain-9", "odd-0"])
    assert [costs.of(run) for run in ("full-9", "plain-9", "odd-0")] == [110, 400, 120]
    costs.ended("odd-0", 7)
    assert costs.of("odd-1") == 7
    costs.ended("full-9", 55)
    assert [costs.of(run) for run in ("full-8", "plain-9")] == [55, 200], "what was measured before, at this pace"
    assert Costs(PARAMS, ["full-0", "full-1"]).of("full-0") == 110, "what is out of date is better than nothing"
    assert Costs(PARAMS, ["full-1"]).of("full-1") == 100
    cost = estimate(PARAMS, ["full-8", "full-9", "plain-9"], 2)
    assert cost and (cost.core_minutes, cost.wall_minutes) == (pytest.approx(620 / 60), pytest.approx(510 / 60))


def test_wall_time_is_that_of_workers_who_take_the_next_run() -> None:
    assert wall_seconds([3, 3, 3], 1) == 9
    assert wall_seconds([3, 3, 3], 2) == 6
    assert wall_seconds([5, 1, 1, 1], 2) == 5
    assert wall_seconds([4], 2, running=[10, 1]) == 10
    assert wall_seconds([], 2, running=[2]) == 2
    assert wall_seconds([], 2) == 0
    assert [duration(s) for s in (0.4, 59.6, 185, 7800)] == ["0 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]


def test_dry_run_tells_and_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lock(project)
    assert run_matrix(PARAMS, RUNS, 2, dry_run=True) == []
    told = capsys.readouterr().out
    assert "4 of 4 runs are missing or out of date:\n  full-0\n  full-1\n" in told and "no estimate" in told
    assert lock(project) == before and not Path("trained").exists()
    (project / "runs" / "manifests").mkdir(parents=True)
    (project / "runs" / "manifests" / "full-0.json").write_text('{"wall_seconds": 90}')
    run_matrix(PARAMS, RUNS, 2, dry_run=True)
    assert "about 6 core-minutes, 3 min 00 s with 2 at once" in capsys.readouterr().out


def test_which_runs() -> None:
    assert select_runs(PARAMS) == RUNS
    assert select_runs(PARAMS, extended=True) == [*RUNS, "odd-0"]
    assert select_runs(PARAMS, ["plain"], [1]) == ["plain-1"]
    assert select_runs(PARAMS, seeds=[0], extended=True) == ["full-0", "plain-0", "odd-0"]
    with pytest.raises(UserError, match=r"--variants odd: not in params.yaml; there are: full, plain$"):
        select_runs(PARAMS, ["odd"])
    with pytest.raises(UserError, match=r"--seeds 7: .* 0, 1$"):
        select_runs(PARAMS, seeds=[7])


def test_what_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"^--jobs 0: needs at least one$"):
        run_matrix(PARAMS, RUNS, 0)
    with pytest.raises(UserError, match=r"^dvc.yaml: no stage train@full-7"):
        run_matrix(PARAMS, ["full-7"], 1)


def test_more_threads_than_cores_is_told(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(matrix, "cores", lambda: 2)
    run_matrix(PARAMS, RUNS, 3, dry_run=True)
    assert "3 jobs x 1 threads on 2 cores" in capsys.readouterr().err
    run_matrix(PARAMS, RUNS[:2], 3, dry_run=True)
    assert capsys.readouterr().err == "", "no more jobs than runs"


def test_jobs_by_default_fill_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "cores", lambda: 12)
    settings: Any = SimpleNamespace(train=SimpleNamespace(threads=8, device="cpu"))
    params: Any = SimpleNamespace(settings=lambda: settings)
    assert matrix.default_jobs(params) == 1
    settings.train.threads = 3
    assert matrix.default_jobs(params) == 4
    settings.train.device = "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert matrix.default_jobs(params) == 2
    assert repro.environment("3")["CUDA_VISIBLE_DEVICES"] == "3"


def test_progress_is_read_from_checkpoints_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repro.CHECKPOINTS == CHECKPOINTS
    seen = matrix.Matrix.__new__(matrix.Matrix)
    seen.params, seen._train_rows = PARAMS, 85
    work = Work("full-0", tmp_path / "log", started=time.time() - 1)
    assert seen._steps(work) == (0, 20)
    work.log.write_text("full-0: goes on from step 7 of 20\n")
    assert seen._steps(work) == (7, 20)
    work.log.write_text("full-0 epoch 1/2: loss 1.000, val mIoU 0.500\n")
    assert seen._steps(work) == (10, 20)
    (CHECKPOINTS / f"runs-full-0-{'0a' * 8}" / f"{13:09d}").mkdir(parents=True)
    (CHECKPOINTS / f"runs-full-0-{'0a' * 8}-deleted" / f"{19:09d}").mkdir(parents=True)
    assert seen._steps(work) == (13, 20)
    work.started += 60
    assert seen._steps(work) == (10, 20), "a checkpoint of before"


def test_the_full_model_s_table_does_not_wait_for_the_others(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(_: Any) -> None:
        shown.append((project / "trained").read_text())

    shown: list[str] = []
    monkeypatch.setattr("wimfris.runs.records.read_runs", lambda _, runs: shown.append(str(runs)))
    monkeypatch.setattr("wimfris.results.tables.main_table", lambda records: records)
    monkeypatch.setattr("wimfris.results.tables.print_table", show)
    assert run_matrix(PARAMS, RUNS, 1) == []
    runs, trained = shown
    assert runs == "['full-0', 'full-1']"
    assert "end full-1" in trained
    assert "end plain-0" not in trained


def test_a_worker_that_breaks_is_a_failure(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(work: Work, *_: Any) -> None:
        work.log.parent.mkdir(parents=True, exist_ok=True)
        work.log.touch()
        if work.name == "full-0":
            raise OSError("disk full")

    monkeypatch.setattr(matrix, "reproduce", break_down)
    [failed] = run_matrix(PARAMS, RUNS, 2)
    assert str(failed).startswith("full-0: OSError: disk full")


if __name__ == "__main__":
    sys.exit(bool(run_matrix(PARAMS, sys.argv[2:], int(sys.argv[1]))))
