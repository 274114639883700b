from typing import Any

import torch
from torch.nn import functional as F


def test_the_equation(build: Any, stir: Any) -> None:
    """0.2 Up(Proj_out(SSM(SiLU(Conv1D(Proj_in(x_fc)))) * SiLU(Proj_in'(x_fc))) + x_fc), x_fc = ReLU(Down(x))."""
    mta = stir(build["mta"]()).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    x_fc = F.relu(x @ mta.down.weight.T + mta.down.bias)
    inner = mta.mamba(x_fc) + x_fc
    torch.testing.assert_close(mta(x), 0.2 * (inner @ mta.up.weight.T + mta.up.bias))


def test_untrained_it_adds_nothing_and_still_learns(build: Any) -> None:
    mta, x = build["mta"]("zero"), torch.randn(2, 5, 16)
    y = mta(x)
    assert (y == 0).all()
    (y * torch.randn_like(y)).sum().backward()
    assert mta.up.weight.grad.abs().max() > 0  # the first step moves Up, the next all that lies before it
    assert (build["mta"]("kaiming")(x) != 0).any()
