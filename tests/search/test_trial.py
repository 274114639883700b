"""One trial: an ordinary run that tells of its epochs, and how it ends."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from wimfris.search import trial as worker
from wimfris.search.loop import Plan
from wimfris.search.sampler import make_pruner
from wimfris.search.space import Space, read_search
from wimfris.training.checkpoint import CHECKPOINTS
from wimfris.training.trainer import RunFiles


@pytest.fixture
def plan(project: Any, monkeypatch: pytest.MonkeyPatch) -> Plan:
    project.edit(search__train__smoke={"epochs": 2, "epoch_steps": 1})
    params = project.params()
    plan = Plan(Space("window", params, read_search(params)))
    plan.home.mkdir(parents=True)
    monkeypatch.setenv(worker.STORAGE, plan.place)
    return plan


def job(plan: Plan, overrides: dict[str, Any], *, prunes: bool = True, latency: bool = False) -> tuple[Path, int]:
    """A job and its trial, as the search writes and asks them."""
    trial = plan.open().ask()
    settings = plan.settings(plan.name(trial.number), overrides)
    told = {
        "settings": settings.model_dump(mode="json"),
        "group": settings.group,
        "seed": plan.seed,
        "study": plan.study,
        "trial": trial._trial_id,
        "prunes": prunes,
        "latency": latency,
        "parent": os.getppid(),
    }
    path = plan.home / "job.json"
    path.write_text(json.dumps(told))
    return path, trial.number


@pytest.mark.slow
def test_a_trial_is_an_ordinary_run(plan: Plan) -> None:
    path, number = job(plan, {"model": {"hmf": {"window": 2}}}, latency=True)
    assert worker.main(path) == 0
    trial = plan.open().get_trials()[number]
    files = RunFiles.of(plan.home, f"{plan.name(number)}-100")
    assert all(there.exists() for there in vars(files).values())
    log = [json.loads(line) for line in files.log.read_text().splitlines()]
    scores = [line["val_miou"] for line in log if line["event"] == "epoch"]
    assert list(trial.intermediate_values.values()) == scores and log[-1]["step"] == 2
    settings = json.loads(files.manifest.read_text())["settings"]
    assert settings["train"]["epoch_steps"] == 1 and settings["model"]["hmf"]["window"] == 2
    assert 0 < trial.user_attrs["latency_ms"] < 1e4


@pytest.mark.slow
def test_a_trial_that_is_pruned_leaves_nothing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Prunes(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.last_step == 1

    monkeypatch.setattr(worker, "make_pruner", lambda *_: Prunes())
    path, number = job(plan, {})
    assert worker.main(path) == worker.PRUNED
    assert list(plan.open().get_trials()[number].intermediate_values) == [1]
    assert not RunFiles.of(plan.home, f"{plan.name(number)}-100").weights.exists()
    assert not list(CHECKPOINTS.glob("*window_tpe*/*"))
    path, number = job(plan, {}, prunes=False)
    assert worker.main(path) == 0, "of several objectives, nothing is pruned"


@pytest.mark.slow
def test_a_trial_that_diverges(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = job(plan, {"train": {"learning_rate": 1e30}})
    assert worker.main(path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("wimfris: run window_tpe_0000-100: the loss is ") and "lower train.learning_rate" in last


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no more"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_trial_that_wants_memory(
    plan: Plan, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "train_run", train)
    assert worker.main(job(plan, {})[0]) == worker.MEMORY
    assert capsys.readouterr().err.startswith("wimfris: out of memory: ")


def test_what_is_no_ones_fault_keeps_its_traceback(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "train_run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.main(job(plan, {})[0])


def test_hyperband_prunes_what_is_worst() -> None:
    """Of trials that are told in the same order as they were asked, the worst do not see their last epoch."""
    pruner = make_pruner(4, True)
    study = optuna.create_study(study_name="trials", direction="maximize", pruner=pruner)  # brackets go by the name
    pruned = []
    for number in range(24):
        trial = study.ask()
        score = 0.5 if number % 2 else 0.1
        for epoch in (1, 2, 3, 4):
            trial.report(score, epoch)
            if trial.should_prune():
                assert epoch == 2, "at half of a trial, not before"
                pruned.append(number)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, score)
    assert len(pruned) >= 3 and sum(number % 2 == 0 for number in pruned) > len(pruned) / 2
