"""A run is decided by its settings and its seed alone: repeated, interrupted or killed, it leaves the same bits."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from wimfris.encoders.load import weights_hash
from wimfris.errors import UserError
from wimfris.runs.records import read_records
from wimfris.settings.schema import CosineSchedule, StepSchedule
from wimfris.training import trainer as training
from wimfris.training.checkpoint import CHECKPOINTS, CheckpointFolder, load_weights
from wimfris.training.trainer import Trainer, learning_rate_factor, train_run


class Interrupted(Exception):
    """The plug is pulled."""


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """interrupt_at(n): the n-th training step from now on raises before it changes anything; 0 takes that back."""
    step = Trainer._train_step
    left = 0

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted
        return step(self, *arguments)

    def arm(steps: int) -> None:
        nonlocal left
        left = steps

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    return arm


def checkpoints() -> list[Path]:
    return [path for path in CHECKPOINTS.glob("*/*") if path.is_dir()]


@pytest.fixture(scope="session")
def expected(trained_folder: Path) -> dict[str, bytes]:
    """What the uninterrupted run left."""
    runs = trained_folder / "runs" / "scenes-smoke"
    files = [p for p in runs.rglob("full-0*") if p.is_file() and p.parent.name != "manifests"]
    files += [p for p in (runs / "live" / "full-0").rglob("*") if p.is_file()]
    return {str(path.relative_to(runs)): path.read_bytes() for path in files}


def test_leaves_its_outs(trained: Any, expected: dict[str, bytes]) -> None:
    assert {name.split("/")[0] for name in expected} >= {"weights", "records", "logs", "metrics"}
    assert trained.outs() == expected
    records = read_records(trained.runs / "records" / "full-0.parquet")
    assert records["intersection"].sum() > 0, "a run that predicts nothing shows nothing in the tests below"
    assert not list(trained.folder.rglob("*.partial"))
    assert not checkpoints(), "the checkpoint of an ended run is of no use"


def test_same_seed_same_bits(project: Any, expected: dict[str, bytes]) -> None:
    project.train()
    assert project.outs() == expected


def test_other_seed_other_run(project: Any, expected: dict[str, bytes]) -> None:
    project.train("full-1")
    name = "weights/{}.safetensors"
    assert project.outs("full-1")[name.format("full-1")] != expected[name.format("full-0")]
    first, second = (
        [line["loss"] for line in map(json.loads, log.splitlines())]
        for log in (project.outs("full-1")["logs/full-1.jsonl"], expected["logs/full-0.jsonl"])
    )
    assert first[0] != second[0]


def test_log_and_metrics(trained: Any) -> None:
    log = [json.loads(line) for line in (trained.runs / "logs" / "full-0.jsonl").read_text().splitlines()]
    epochs = [line for line in log if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert {"loss", "contrast", "dice", "align", "learning_rate", "val_miou", "val_oiou", "val_pr50"} <= set(epochs[0])
    assert set(epochs[0]["emphasis"]) == {"1"}
    steps = [line for line in log if line["event"] == "step"]
    assert steps[0]["step"] == 1
    for line in log:
        total = 0.5 * line["contrast"] + 0.3 * line["dice"] + 0.2 * line["align"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    # the best epoch by all validation sentences is the one that is kept and reported
    best = max(epochs, key=lambda line: line["val_miou"])
    metrics = json.loads((trained.runs / "metrics" / "full-0.json").read_text())
    assert metrics["val"]["sentence"]["miou"] == best["val_miou"]
    manifest = json.loads((trained.runs / "manifests" / "full-0.json").read_text())
    assert manifest["best_epoch"] == best["epoch"]
    assert {split: set(told) for split, told in metrics.items()} == {
        split: {"sentence", "shuffled", "empty"} for split in ("val", "testA", "testB")
    }


def test_best_epoch_is_kept_not_the_last(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.5, 0.5])  # of two equal epochs the first

    def score(self: Any, *arguments: Any) -> dict[str, float]:
        return {"n": 1, "miou": next(scores)} | dict.fromkeys(("oiou", "pr50", "pr60", "pr70", "pr80", "pr90"), 0.0)

    states = []
    end_epoch = Trainer._end_epoch

    def remember(self: Trainer, *arguments: Any) -> None:
        states.append({name: value.clone() for name, value in self.segmenter.trained_state().items()})
        end_epoch(self, *arguments)

    monkeypatch.setattr("wimfris.training.evaluate.Evaluator.score", score)
    monkeypatch.setattr(Trainer, "_end_epoch", remember)
    project.train()
    kept, _ = load_weights(project.runs / "weights" / "full-0.safetensors")
    assert kept.keys() == states[1].keys()
    assert all(torch.equal(kept[name], states[1][name]) for name in kept)
    assert json.loads((project.runs / "manifests" / "full-0.json").read_text())["best_epoch"] == 2


def test_weights_hold_what_was_trained(trained: Any) -> None:
    state, metadata = load_weights(trained.runs / "weights" / "full-0.safetensors")
    names = set(state)
    assert not [name for name in names if "backbone" in name]
    parts = {name.split(".")[0] for name in names}
    assert parts == {"text", "vision", "neck", "decoder", "projector", "alignment"}
    encoders = json.loads((trained.runs / "encoders.json").read_text())
    assert metadata["text_encoder"] == encoders["text"]["sha256"]
    assert metadata["vision_encoder"] == encoders["vision"]["sha256"]
    assert (metadata["run"], metadata["variant"], metadata["scale"]) == ("full-0", "full", "smoke")


def test_backbones_stay_as_they_were(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *rest: (fit(self, *rest), trainers.append(self)))
    project.train()
    encoders = json.loads((project.runs / "encoders.json").read_text())
    for name in ("text", "vision"):
        backbone = getattr(trainers[0].segmenter, name).backbone
        assert weights_hash(backbone) == encoders[name]["sha256"]


# --- interrupted runs -------------------------------------------------------------------------------------------------

EVERY_STEP = 1e-9  # seconds between checkpoints


@pytest.mark.parametrize("step", [2, 5, 6, 8, 12], ids=lambda step: f"in step {step}")
def test_resumed_run_equals_uninterrupted(
    step: int, project: Any, expected: dict[str, bytes], interrupt_at: Callable[[int], None]
) -> None:
    """Five steps an epoch: interrupted within epochs, just after one and just before its end."""
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    interrupt_at(step)
    with pytest.raises(Interrupted):
        project.train()
    assert [path.name for path in checkpoints()] == [f"{step - 1:09d}"], "the newest checkpoint alone is kept"
    assert project.outs() == {} or all(name.startswith("live/") for name in project.outs())
    shutil.rmtree(project.runs / "live", ignore_errors=True)  # as DVC removes a stage's outs
    interrupt_at(0)
    torch.manual_seed(1234)  # nothing hangs on the state of the process that goes on
    project.train()
    assert project.outs() == expected
    manifest = json.loads((project.runs / "manifests" / "full-0.json").read_text())
    assert manifest["resumed"] == 1
    assert not checkpoints()


def test_interrupted_often(project: Any, expected: dict[str, bytes], interrupt_at: Callable[[int], None]) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    interruptions = 0
    while True:
        interrupt_at(3)
        try:
            project.train()
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == 7
    assert project.outs() == expected


def test_interrupted_between_checkpoints(
    project: Any, expected: dict[str, bytes], interrupt_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done after the last checkpoint is done again, and leaves nothing twice."""
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    save = Trainer._save
    monkeypatch.setattr(Trainer, "_save", lambda self: save(self) if self.step <= 4 else None)
    interrupt_at(12)
    with pytest.raises(Interrupted):
        project.train()
    monkeypatch.setattr(Trainer, "_save", save)
    interrupt_at(0)
    project.train()
    assert project.outs() == expected


def test_killed_after_training_before_its_outs(
    project: Any, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = training.write_text

    def fail(path: Path, text: str) -> None:
        raise Interrupted

    monkeypatch.setattr(training, "write_text", fail)
    with pytest.raises(Interrupted):
        project.train()
    assert [path.name for path in checkpoints()] == [f"{15:09d}"]
    monkeypatch.setattr(training, "write_text", write)
    monkeypatch.setattr(Trainer, "_train_step", None)  # there is nothing left to train
    project.train()
    assert project.outs() == expected


def test_partial_checkpoint_is_ignored(
    project: Any, expected: dict[str, bytes], interrupt_at: Callable[[int], None]
) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    interrupt_at(7)
    with pytest.raises(Interrupted):
        project.train()
    (whole,) = checkpoints()
    partial = whole.parent / "partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half of")
    interrupt_at(0)
    project.train()
    assert project.outs() == expected


def test_checkpoint_half_deleted_is_ignored(
    project: Any, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the ended run's checkpoint was being deleted: DVC starts the run once more."""

    def die_halfway(path: Path, **rest: Any) -> None:
        for file in path.rglob("weights.safetensors"):
            file.unlink()
            raise Interrupted

    delete = CheckpointFolder.delete

    def halfway(self: CheckpointFolder) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("wimfris.training.checkpoint.shutil.rmtree", die_halfway)
            delete(self)

    monkeypatch.setattr(CheckpointFolder, "delete", halfway)
    with pytest.raises(Interrupted):
        project.train()
    monkeypatch.setattr(CheckpointFolder, "delete", delete)
    for name in project.outs():
        (project.runs / name).unlink()
    project.train()
    assert project.outs() == expected


def test_a_damaged_checkpoint_is_told_in_one_line(project: Any, interrupt_at: Callable[[int], None]) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    interrupt_at(7)
    with pytest.raises(Interrupted):
        project.train()
    (folder,) = checkpoints()
    interrupt_at(0)
    for path in folder.iterdir():
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(UserError) as told:
                project.train()
            assert re.fullmatch(rf"{folder}: a damaged checkpoint \(.+\); delete it, .*anew", str(told.value))
        path.write_bytes(whole)


def test_checkpoint_of_other_settings_is_not_taken(
    project: Any, expected: dict[str, bytes], interrupt_at: Callable[[int], None]
) -> None:
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP, loss__dice=0.4)
    interrupt_at(7)
    with pytest.raises(Interrupted):
        project.train()
    project.edit(loss__dice=0.3, scales__smoke__train__checkpoint_seconds=20)
    interrupt_at(0)
    project.train()
    assert project.outs() == expected


def start(project: Any, run: str = "full-0") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from wimfris.cli.app import main; main()", "train", "--run", run],
        cwd=project.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_bits(project: Any) -> None:
    """kill -9 in mid-epoch, twice; the run that goes on ends like the one that was left alone."""
    project.edit(scales__smoke__train__epochs=12)
    project.train()
    expected = project.outs()
    for name in expected:
        (project.runs / name).unlink()
    (project.runs / "manifests" / "full-0.json").unlink()
    # every step writes a checkpoint; the number of seconds between them is no part of the result
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    for reached in (8, 27):
        process = start(project)
        wait_for(lambda at=reached: any(int(p.name) >= at for p in checkpoints() if p.name.isdigit()), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert "weights/full-0.safetensors" not in project.outs()
    project.train()
    assert project.outs() == expected
    assert json.loads((project.runs / "manifests" / "full-0.json").read_text())["resumed"] == 2


@pytest.mark.slow
def test_second_trainer_waits_and_does_not_train_again(project: Any) -> None:
    project.edit(scales__smoke__train__epochs=30, scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    first = start(project)
    wait_for(checkpoints, first)
    started = time.monotonic()
    project.train()  # returns when the first has ended
    assert first.wait() == 0, first.stderr and first.stderr.read().decode()
    manifest = json.loads((project.runs / "manifests" / "full-0.json").read_text())
    assert manifest["resumed"] == 0
    assert time.monotonic() - started < 60


def test_waiting_trainer_takes_over_a_dead_one(project: Any, expected: dict[str, bytes]) -> None:
    """Nothing but the lock was left behind: the run is trained."""
    CHECKPOINTS.mkdir(exist_ok=True)
    lock = FileLock(CHECKPOINTS / "scenes-smoke-full-0.lock")
    lock.acquire()
    lock.release()
    project.train()
    assert project.outs() == expected


def test_waiting_trainer_refuses_the_result_of_other_settings(
    project: Any, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed `dvc repro` leaves its trainer running; meanwhile params.yaml is edited and `dvc repro` called again."""
    project.edit(loss__dice=0.4)
    params_before = project.params()
    project.edit(loss__dice=0.3)
    acquire, calls = FileLock.acquire, []

    def contested(self: FileLock, timeout: float | None = None, **rest: Any) -> Any:
        calls.append(timeout)
        if len(calls) == 1:
            raise training.Timeout(self.lock_file)
        if len(calls) == 2:  # the other trainer ends, and leaves its outs
            train_run(params_before.settings("full"), 0, project.runs / "refer" / "images" / "train2014")
        return acquire(self, timeout, **rest)

    monkeypatch.setattr(FileLock, "acquire", contested)
    project.train()
    assert project.outs() == expected


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_non_finite_loss_stops_with_the_objects_at_fault(project: Any) -> None:
    project.edit(scales__smoke__train__learning_rate=1e30, scales__smoke__train__clip_norm=None)
    with pytest.raises(
        UserError, match=r"run full-0: the loss is (nan|inf) at step \d+, batch of ref_ids (\d+, )+"
    ) as e:
        project.train()
    assert "\n" not in str(e.value)
    ids = {int(word) for word in str(e.value).split("ref_ids ")[1].split(";")[0].split(", ")}
    index = training.read_index(project.runs / "index" / "index.parquet")
    assert len(ids) == 8 and ids <= set(index[index["split"] == "train"]["ref_id"])
    assert not (project.runs / "records").exists()


def test_batch_larger_than_the_data(project: Any) -> None:
    project.edit(scales__smoke__train__batch_size=1000)
    with pytest.raises(UserError, match=r"train\.batch_size: 1000 is more than the train split has \(\d+\)"):
        project.train()


def test_encoder_that_was_not_recorded(project: Any) -> None:
    path = project.runs / "encoders.json"
    content = json.loads(path.read_text())
    content["vision"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"encoders\.vision: .*dvc repro -f encoders"):
        project.train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there(project: Any) -> None:
    project.edit(scales__smoke__train__device="cuda")
    with pytest.raises(UserError, match=r"scales\.smoke\.train\.device"):
        project.train()


# --- the learning rate ------------------------------------------------------------------------------------------------


def schedule(kind: Any, epochs: int = 10) -> Any:
    return SimpleNamespace(schedule=kind, epochs=epochs)


def test_cosine_schedule() -> None:
    train = schedule(CosineSchedule(kind="cosine", warmup=4))
    factors = [learning_rate_factor(train, step, 5) for step in range(50)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[27] == pytest.approx(0.5)  # halfway between the warm-up and the end
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.01
    assert learning_rate_factor(schedule(CosineSchedule(kind="cosine", warmup=0)), 0, 5) == 1.0


def test_step_schedule() -> None:
    """As torch's MultiStepLR, stepped once an epoch."""
    train = schedule(StepSchedule(kind="step", milestones=(3, 7), factor=0.1))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], 0.1)
    for epoch in range(10):
        expected = optimizer.param_groups[0]["lr"]
        for step in range(epoch * 5, epoch * 5 + 5):
            assert learning_rate_factor(train, step, 5) == pytest.approx(expected)
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adam", "schedule": {"kind": "step", "milestones": [1], "factor": 0.1}, "clip_norm": None},
        {"precision": "bf16"},
        {"workers": 2},
    ],
    ids=["the paper's optimizer", "bf16", "workers"],
)
def test_other_ways_to_train_resume_too(
    changed: dict[str, Any], project: Any, interrupt_at: Callable[[int], None]
) -> None:
    project.edit(**{f"scales__smoke__train__{key}": value for key, value in changed.items()})
    project.train()
    expected = project.outs()
    for name in expected:
        (project.runs / name).unlink()
    project.edit(scales__smoke__train__checkpoint_seconds=EVERY_STEP)
    interrupt_at(8)
    with pytest.raises(Interrupted):
        project.train()
    interrupt_at(0)
    project.train()
    assert project.outs() == expected


def test_what_is_inside_the_backbones_learns_slower(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = Trainer._train_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        losses = step(self, *arguments)
        rates.append([(group["lr"], len(group["params"])) for group in self.optimizer.param_groups])
        return losses

    monkeypatch.setattr(Trainer, "_train_step", watched)
    project.train("finetune-0")
    for (rate, _), (inside, count) in rates:
        assert inside == pytest.approx(0.1 * rate)
        assert count > 20
