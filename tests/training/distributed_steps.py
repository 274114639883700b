"""Under `torchrun` or alone: ten training steps of each variant in float64; the leader saves the trained weights
(`python tests/distributed_steps.py OUT VARIANT...`, in a project folder).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wimfris.data.source import source_images
from wimfris.settings.params import read_params
from wimfris.training import trainer as training
from wimfris.training.checkpoint import CHECKPOINTS, CheckpointFolder
from wimfris.training.distributed import Processes, processes

build, move = training.build_segmenter, training.to_device


def double(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.double() if value.is_floating_point() else value for name, value in move(batch, device).items()}


def ten_steps(variant: str, group: Processes) -> dict[str, torch.Tensor]:
    settings = read_params().settings(variant)
    folder = CheckpointFolder(CHECKPOINTS, "steps", f"{variant}-{group.size}")
    trainer = training.Trainer(settings, 0, variant, source_images(settings), folder, Path("live"), group)
    if settings.model.adapters != "wimfris":
        # a bias before a batch norm does nothing, its gradient is rounding, and Adam would make whole steps of it
        trainer.optimizer = torch.optim.SGD(trainer._groups(), lr=0.1)
    if group.size > 1:
        exchanged = trainer.model._get_ddp_logging_data()["num_parameter_tensors"]
        assert exchanged == len(trainer.parameters) < len(list(trainer.segmenter.parameters())) or variant == "finetune"
    trainer.segmenter.train()
    while trainer.step < 10:
        for batch, cases in trainer._batches(trainer.step // trainer.steps_per_epoch, 0):
            trainer._train_step(batch, cases)
            trainer.step += 1
            if trainer.step == 10:
                break
    return trainer.segmenter.trained_state()


def build_still(*arguments: Any) -> Any:
    """The model in float64, without dropout: each process draws its own."""
    segmenter = build(*arguments).double()
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return segmenter


def main(out: str, variants: list[str]) -> None:
    training.build_segmenter = build_still
    training.to_device = double
    with processes("cpu") as group:
        states = {variant: ten_steps(variant, group) for variant in variants}
        if group.leads:
            torch.save(states, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
