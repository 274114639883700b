"""A worker of a search: an ordinary run that writes its progress, and the ways in which it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from wimfris.runs.store import CHECKPOINTS
from wimfris.search import trial as worker
from wimfris.search.plan import Plan
from wimfris.search.sampler import make_pruner
from wimfris.search.space import Space, read_search
from wimfris.settings.schema import Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(project: Any) -> Plan:
    project.edit(search__train__smoke={"epochs": 2, "epoch_steps": 2, "checkpoint_seconds": 1e-6})
    params = project.params()
    return Plan(Space("window", params, read_search(params)))


def write_job(plan: Plan, overrides: dict[str, Any], **options: Any) -> tuple[Path, Settings]:
    """Write a job as the search does; return its folder and the settings of its run."""
    settings = plan.settings(plan.name(0), overrides)
    content = {"settings": settings.model_dump(mode="json") | {"group": settings.group}, "seed": plan.seed}
    folder = plan.folder / "jobs" / settings.variant
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps(content | {"latency": False, "limits": None, "parent": os.getppid()} | options)
    )
    return folder, settings


def test_a_trial_is_an_ordinary_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, settings = write_job(plan, {"model": {"hmf": {"window": 2}}}, latency=True)
    assert worker.main(folder) == 0
    files = plan.files(settings)
    assert all(path.exists() for path in files.all)
    log = [json.loads(line) for line in files.log.read_text().splitlines()]
    progress = worker.read_progress(folder)
    assert progress["epochs"] == {str(line["epoch"]): line["val_miou"] for line in log if line["event"] == "epoch"}
    assert list(progress["epochs"]) == ["1", "2"] and log[-1]["step"] == 4
    recorded = json.loads(files.manifest.read_text())["settings"]
    assert recorded["train"]["epoch_steps"] == 2 and recorded["model"]["hmf"]["window"] == 2
    assert 0 < progress["latency_ms"] < 1e4
    monkeypatch.setattr(worker, "train_into", None)
    assert worker.main(folder) == 0, "a complete run is not trained again"
    assert worker.read_progress(folder) == progress


@pytest.fixture
def interrupted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Settings]:
    """A job whose worker was interrupted after its first epoch."""
    folder, settings = write_job(plan, {})
    train_into = worker.train_into

    def train(settings: Settings, seed: int, target: Path, after_epoch: Any) -> None:
        def interrupt(epoch: int, score: float) -> None:
            after_epoch(epoch, score)
            raise KeyboardInterrupt

        train_into(settings, seed, target, interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "train_into", train)
        with pytest.raises(KeyboardInterrupt):
            worker.main(folder)
    assert list(worker.read_progress(folder)["epochs"]) == ["1"]
    return folder, settings


def test_an_interrupted_trial_goes_on_from_its_checkpoint(plan: Plan, interrupted: tuple[Path, Settings]) -> None:
    folder, settings = interrupted
    assert worker.main(folder) == 0
    assert list(worker.read_progress(folder)["epochs"]) == ["1", "2"]
    assert json.loads(plan.files(settings).manifest.read_text())["resumed"] == 1


def test_the_checkpoints_of_a_trial_can_be_deleted(plan: Plan, interrupted: tuple[Path, Settings]) -> None:
    _, settings = interrupted
    assert list(CHECKPOINTS.glob("*window_tpe*/*")) and not plan.files(settings).folder.exists()
    worker.delete_checkpoints(settings, plan.seed)
    assert not list(CHECKPOINTS.glob("*window_tpe*/*"))


def test_a_trial_that_diverges(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = write_job(plan, {"train": {"learning_rate": 1e30}})
    assert worker.main(folder) == worker.FAILED
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("wimfris: ") and "window_tpe_0000-100: the loss is " in last
    assert "train.learning_rate" in last


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_trial_that_runs_out_of_memory(
    plan: Plan, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "train_into", train)
    assert worker.main(write_job(plan, {})[0]) == worker.FAILED
    assert capsys.readouterr().err.startswith("wimfris: out of memory: ")


def test_any_other_error_keeps_its_traceback(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "train_into", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.main(write_job(plan, {})[0])


def test_a_worker_ends_with_its_search(plan: Plan) -> None:
    folder, _ = write_job(plan, {}, parent=0)
    code = "import sys, time; from wimfris.search import trial; trial.train_into = lambda *_: time.sleep(600)\n"
    code += "from pathlib import Path; trial.main(Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=False).returncode == 1


def test_the_pruner_stops_the_worst_trials_at_half_of_their_epochs() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner(4, prunes=True))
    pruned = []
    for number in range(24):
        trial = study.ask()
        for epoch in (1, 2, 3, 4):
            trial.report(0.1 if number % 6 == 5 and epoch <= 2 else 0.5 + number / 100, epoch)
            if trial.should_prune():
                assert epoch == 2
                pruned.append(number)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, 0.5)
    assert pruned == [11, 17, 23], "none among the first trials"
