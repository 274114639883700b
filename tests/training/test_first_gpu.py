"""What a GPU needs of training, as far as it can be tested without one."""

from typing import Any

import cv2
import pytest
import torch

from wimfris.errors import UserError
from wimfris.training import batches, checkpoint
from wimfris.training.trainer import Trainer

pytestmark = pytest.mark.slow


def test_out_of_memory_in_training_is_one_line(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")

    monkeypatch.setattr(Trainer, "_train_step", fail)
    size = project.params().settings().train.batch_size
    message = rf"with train\.batch_size {size}; lower train\.batch_size or set train\.gradient_checkpointing to true"
    with pytest.raises(UserError, match=message) as raised:
        project.train()
    assert "\n" not in str(raised.value)


def test_out_of_memory_in_validation_names_its_own_batch(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("wimfris.model.segmenter.Segmenter.forward", fail)
    monkeypatch.setattr(Trainer, "_train_step", lambda *_: type("L", (), dict.fromkeys(NAMES, torch.zeros(())))())
    with pytest.raises(UserError, match=r"with evaluate\.batch_size \d+; lower evaluate\.batch_size$"):
        project.train()


NAMES = ("total", "contrast", "dice", "align")


def test_a_checkpoint_is_read_into_the_cpus_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Every process would otherwise fill the first GPU with the leader's optimizer."""
    folder = checkpoint.CheckpointFolder(tmp_path, "full-0", "key")
    weights = {"weight": torch.ones(2)}
    folder.save(1, checkpoint.Checkpoint(weights, weights, {"step": 1}))
    read: list[Any] = []
    load = torch.load

    def note(*arguments: Any, **options: Any) -> Any:
        read.append(options["map_location"])
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", note)
    assert folder.load() is not None and read == ["cpu"]


def test_a_loader_process_keeps_to_one_thread() -> None:
    before = cv2.getNumThreads()
    try:
        batches.start_worker(0)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
