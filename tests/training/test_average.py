"""The average of the weights: its formula, and that it takes no part in the training."""

from typing import Any

import pytest
import torch

from wimfris.training.average import WeightAverage


class Weights(torch.nn.Module):
    """One parameter, one buffer of integers, and the two methods of a segmenter that the average uses."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.tensor(0))

    def trained_state(self) -> dict[str, torch.Tensor]:
        return self.state_dict()

    def load_trained(self, state: dict[str, torch.Tensor]) -> None:
        self.load_state_dict(state)


def test_the_average_is_the_weighted_sum_of_all_steps() -> None:
    model: Any = Weights()
    average, expected = WeightAverage(model, 0.5), 0.0
    for step in range(1, 12):
        with torch.no_grad():
            model.w.fill_(float(step**2))
            model.seen.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
        assert average.state["w"].tolist() == pytest.approx([expected] * 2)
        assert int(average.state["seen"]) == step, "integers are those of the last step"


def test_the_own_weights_come_back() -> None:
    model: Any = Weights()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.w.fill_(1.0)
    with average.in_place():
        assert model.w.tolist() == [0.0, 0.0]
    assert model.w.tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_average(project: Any, steps: Any, forget: Any) -> None:
    project.edit(scales__smoke__train__average=0.9)
    project.train()
    whole = project.outs()
    forget(project.files())
    project.edit(scales__smoke__train__checkpoint_seconds=1e-9)
    steps.stop(7, project)
    project.train()
    assert project.outs() == whole
