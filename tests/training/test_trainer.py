"""Settings and seed alone decide a run: what it leaves, what it refuses, and its learning rate."""

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from wimfris.data.index import read_index
from wimfris.encoders.load import weights_hash
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter
from wimfris.runs.log import read_log
from wimfris.runs.manifest import read_manifest
from wimfris.runs.records import CONDITIONS, read_records
from wimfris.runs.store import CHECKPOINTS, STORE
from wimfris.settings.sections import CosineSchedule, StepSchedule
from wimfris.training.checkpoint import load_weights
from wimfris.training.evaluate import Evaluator
from wimfris.training.run import train_into
from wimfris.training.trainer import Trainer, learning_rate_factor

pytestmark = pytest.mark.slow

# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_run_leaves_its_files(trained: Any, expected: dict[str, bytes]) -> None:
    files = trained.files()
    assert set(files.folder.iterdir()) == set(files.all)
    assert trained.outs() == expected
    records = read_records(files.records)
    assert records["intersection"].sum() > 0, "with empty predictions the tests of equal bits would prove nothing"
    assert not list(trained.folder.rglob("*.partial"))
    folders = {path for path in CHECKPOINTS.iterdir() if path.is_dir()}
    assert folders == {STORE, CHECKPOINTS / "progress"}, "the checkpoints of a finished run are deleted"


def test_another_seed_gives_another_run(project: Any, expected: dict[str, bytes]) -> None:
    project.train("full-1")
    files = project.files("full-1")
    assert files.weights.read_bytes() != expected[files.weights.name]
    first_loss = json.loads(expected[files.log.name].splitlines()[0])["loss"]
    assert read_log(files.log)[0]["loss"] != first_loss


def test_log_and_metrics(trained: Any) -> None:
    files = trained.files()
    log = read_log(files.log)
    epochs = [line for line in log if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert {"loss", "contrast", "dice", "align", "learning_rate", "val_miou", "val_oiou", "val_pr50"} <= set(epochs[0])
    assert set(epochs[0]["emphasis"]) == {"1"}
    steps = [line for line in log if line["event"] == "step"]
    assert steps[0]["step"] == 1
    for line in log:
        total = 0.5 * line["contrast"] + 0.3 * line["dice"] + 0.2 * line["align"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    best = max(epochs, key=lambda line: line["val_miou"])
    metrics = json.loads(files.metrics.read_text())
    assert metrics["val"]["sentence"]["miou"] == best["val_miou"], "the best epoch by all validation sentences"
    assert read_manifest(files.manifest)["best_epoch"] == best["epoch"]
    assert {split: tuple(scores) for split, scores in metrics.items()} == dict.fromkeys(
        ("val", "testA", "testB"), CONDITIONS
    )


def test_epochs_are_those_of_the_log(trained: Any) -> None:
    files = trained.files()
    header, *rows = files.epochs.read_text().splitlines()
    epochs = [line for line in read_log(files.log) if line["event"] == "epoch"]
    assert {"epoch", "loss", "val_miou"} <= set(header.split(","))
    for row, line in zip(rows, epochs, strict=True):
        assert row.split(",") == [str(line[name]) for name in header.split(",")]


def test_run_keeps_its_best_epoch(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.5, 0.5])  # of two equal epochs the first one is the best
    states = []

    def score(self: Evaluator, segmenter: Segmenter, *arguments: Any) -> dict[str, float]:
        states.append({name: value.clone() for name, value in segmenter.trained_state().items()})
        return {"n": 1, "miou": next(scores)} | dict.fromkeys(("oiou", "pr50", "pr60", "pr70", "pr80", "pr90"), 0.0)

    monkeypatch.setattr(Evaluator, "score", score)
    project.train()
    weights, _ = load_weights(project.files().weights)
    assert weights.keys() == states[1].keys()
    assert all(torch.equal(weights[name], states[1][name]) for name in weights)
    assert any(not torch.equal(weights[name], states[2][name]) for name in weights)
    assert read_manifest(project.files().manifest)["best_epoch"] == 2


def test_weights_hold_the_trained_parameters(trained: Any) -> None:
    state, metadata = load_weights(trained.files().weights)
    assert not [name for name in state if "backbone" in name]
    parts = {name.split(".")[0] for name in state}
    assert parts == {"text", "vision", "neck", "decoder", "projector", "alignment"}
    encoders = json.loads((trained.runs / "encoders.json").read_text())
    assert metadata["text_encoder"] == encoders["text"]["sha256"]
    assert metadata["vision_encoder"] == encoders["vision"]["sha256"]
    assert (metadata["run"], metadata["variant"], metadata["scale"]) == ("full-0", "full", "smoke")


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Return the trainers that this process has started."""
    trainers, fit = [], Trainer.fit

    def remembered(self: Trainer, *arguments: Any) -> None:
        trainers.append(self)
        fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", remembered)
    return trainers


def test_training_leaves_the_backbones_unchanged(project: Any, trainers: list[Trainer]) -> None:
    project.train()
    encoders = json.loads((project.runs / "encoders.json").read_text())
    for name in ("text", "vision"):
        backbone = getattr(trainers[0].segmenter, name).backbone
        assert weights_hash(backbone) == encoders[name]["sha256"]


def test_train_into_a_folder(project: Any, expected: dict[str, bytes]) -> None:
    """A run outside the store has the same files, and `after_epoch` gets each epoch and its validation mIoU."""
    scores = {}
    train_into(project.params().settings(), 0, project.files("elsewhere-0").folder, scores.__setitem__)
    assert project.outs("elsewhere-0") == expected
    log = read_log(project.files("elsewhere-0").log)
    assert scores == {line["epoch"]: line["val_miou"] for line in log if line["event"] == "epoch"}
    assert not STORE.exists() and not project.files().folder.exists()


def test_error_in_after_epoch_ends_the_run_without_files(project: Any) -> None:
    class Pruned(Exception):
        pass

    def prune(epoch: int, score: float) -> None:
        if epoch == 2:
            raise Pruned

    folder = project.files("pruned-0").folder
    with pytest.raises(Pruned):
        train_into(project.params().settings(), 0, folder, prune)
    assert not folder.exists()


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor; on a GPU, each makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket is torch.ops.aten._local_scalar_dense
        return function(*args, **kwargs or {})


def test_a_step_reads_no_number_from_a_tensor(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, step = [], Trainer._train_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        with Reads() as reads:
            losses = step(self, *arguments)
        counts.append(reads.count)
        with reads:
            losses.total.item()
        assert reads.count == counts[-1] + 1, "a read is seen"
        return losses

    monkeypatch.setattr(Trainer, "_train_step", watched)
    project.train()
    assert counts and not any(counts)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_non_finite_loss_names_the_objects(project: Any) -> None:
    project.edit(scales__smoke__train__learning_rate=1e30, scales__smoke__train__clip_norm=None)
    with pytest.raises(
        UserError, match=r"run full-0: the loss is (nan|inf) at step \d+, in the batch of ref_ids (\d+, )+"
    ) as error:
        project.train()
    message = str(error.value)
    assert "\n" not in message
    ids = {int(word) for word in message.split("ref_ids ")[1].split(";")[0].split(", ")}
    index = read_index(project.runs / "index" / "index.parquet")
    assert len(ids) == 8 and ids <= set(index[index["split"] == "train"]["ref_id"])
    assert not project.files().folder.exists()


def test_batch_larger_than_the_data(project: Any) -> None:
    project.edit(scales__smoke__train__batch_size=1000)
    with pytest.raises(
        UserError, match=r"train\.batch_size must be at most the size of the train split \(\d+ objects\), got 1000"
    ):
        project.train()


def test_encoder_that_was_not_recorded(project: Any) -> None:
    path = project.runs / "encoders.json"
    content = json.loads(path.read_text())
    content["vision"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"encoders\.vision: .*dvc repro -f encoders"):
        project.train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device(project: Any) -> None:
    project.edit(scales__smoke__train__device="cuda")
    with pytest.raises(UserError, match=r"scales\.smoke\.train\.device"):
        project.train()


# --- the learning rate ------------------------------------------------------------------------------------------------


def train_settings(schedule: Any) -> Any:
    return SimpleNamespace(schedule=schedule, epochs=10)


def test_cosine_schedule() -> None:
    train = train_settings(CosineSchedule(kind="cosine", warmup=4))
    factors = [learning_rate_factor(train, step, 5) for step in range(50)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[27] == pytest.approx(0.5)  # halfway between the end of the warm-up and the end of training
    assert all(a > b for a, b in pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.01
    assert learning_rate_factor(train_settings(CosineSchedule(kind="cosine", warmup=0)), 0, 5) == 1.0


def test_step_schedule() -> None:
    """It equals torch's MultiStepLR, stepped once per epoch."""
    train = train_settings(StepSchedule(kind="step", milestones=(3, 7), factor=0.1))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], 0.1)
    for epoch in range(10):
        expected = optimizer.param_groups[0]["lr"]
        for step in range(epoch * 5, epoch * 5 + 5):
            assert learning_rate_factor(train, step, 5) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_backbone_parameters_learn_slower(project: Any, trainers: list[Trainer]) -> None:
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    project.train("finetune-0")
    hook.remove()
    (trainer,) = trainers
    assert len(rates) == trainer.total_steps
    assert all(inside == pytest.approx(0.1 * outside) for outside, inside in rates)
    _, inside = trainer.optimizer.param_groups
    backbones = trainer.segmenter.text.backbone, trainer.segmenter.vision.backbone
    trained = {id(p) for backbone in backbones for p in backbone.parameters() if p.requires_grad}
    assert {id(p) for p in inside["params"]} == trained
    assert len(trained) > 20


def test_a_warm_up_longer_than_the_training_is_refused(project: Any) -> None:
    project.edit(scales__smoke__train__schedule={"kind": "cosine", "warmup": 10_000})
    with pytest.raises(UserError, match=r"train\.schedule\.warmup must be less than the steps .* \(\d+\), got 10000"):
        project.train()
