"""Train ten steps of each variant in float64, under `torchrun` or alone; the leader saves the trained weights.

`python tests/training/distributed_steps.py OUT VARIANT...`, in a project folder whose runs have ten steps.
"""

import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wimfris.data.dataset import to_device
from wimfris.runs.store import CHECKPOINTS
from wimfris.settings.params import read_params
from wimfris.settings.run import Run
from wimfris.training import batches, evaluate, run
from wimfris.training.build import build_segmenter
from wimfris.training.checkpoint import CheckpointFolder
from wimfris.training.distributed import Processes, processes
from wimfris.training.progress import make_progress
from wimfris.training.trainer import Trainer, parameter_groups


def double_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    moved = to_device(batch, device)
    return {name: value.double() if value.is_floating_point() else value for name, value in moved.items()}


def build_double(*arguments: Any) -> Any:
    """Build the model in float64, without dropout: each process draws its own."""
    segmenter = build_segmenter(*arguments).double()
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return segmenter


def watch_gradients(model: DistributedDataParallel, size: int) -> set[int]:
    """Return a set that will hold the ids of the parameters whose gradients the processes exchange."""
    exchanged: set[int] = set()

    def average(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.update(map(id, bucket.parameters()))
        work = distributed.all_reduce(bucket.buffer().div_(size), async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, average)
    return exchanged


def train(trainer: Trainer) -> None:
    with make_progress(trainer.group) as progress:
        trainer.fit(progress)
    assert trainer.step == 10


def ten_steps(variant: str, group: Processes) -> dict[str, Tensor]:
    settings = read_params().settings(variant)
    checkpoints = CheckpointFolder(CHECKPOINTS, "steps", f"{variant}-{group.size}")
    trainer, _ = run.assemble_trainer(settings, Run(variant, 0), checkpoints, group)
    if settings.model.adapters != "wimfris":
        # A bias before a batch norm has no effect. Its gradient is rounding noise, and Adam makes whole steps of it.
        groups = parameter_groups(trainer.segmenter, settings.train.backbone_factor)
        trainer.optimizer = torch.optim.SGD(groups, lr=0.1)
    if isinstance(trainer.model, DistributedDataParallel):
        exchanged = watch_gradients(trainer.model, group.size)
        train(trainer)
        assert exchanged == {id(parameter) for parameter in trainer.parameters}
        assert len(exchanged) < len(list(trainer.segmenter.parameters())) or variant == "finetune"
    else:
        assert group.size == 1
        train(trainer)
    return trainer.segmenter.trained_state()


def main(out: str, variants: list[str]) -> None:
    run.build_segmenter = build_double
    batches.to_device = evaluate.to_device = double_batch
    with processes("cpu") as group:
        states = {variant: ten_steps(variant, group) for variant in variants}
        if group.leads:
            torch.save(states, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
