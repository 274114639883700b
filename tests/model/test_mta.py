from typing import Any

import torch
from torch.nn import functional as F

from wimfris.model.mta import MambaTextAdapter


def test_the_equation(build: Any, stir: Any) -> None:
    """0.2 Up(Proj_out(SSM(SiLU(Conv1D(Proj_in(x_fc)))) * SiLU(Proj_in'(x_fc))) + x_fc), x_fc = ReLU(Down(x))."""
    mta = stir(build["mta"]()).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    x_fc = F.relu(x @ mta.down.weight.T + mta.down.bias)
    inner = mta.mamba(x_fc) + x_fc
    torch.testing.assert_close(mta(x), 0.2 * (inner @ mta.up.weight.T + mta.up.bias))


def test_it_is_causal(build: Any, stir: Any) -> None:
    mta = stir(build["mta"]()).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] = 7.0
    torch.testing.assert_close(mta(changed)[:, :4], mta(x)[:, :4], rtol=0, atol=0)
    assert (mta(changed)[:, 4:] != mta(x)[:, 4:]).any()


def test_untrained_it_adds_nothing_and_still_learns(build: Any) -> None:
    mta, x = build["mta"]("zero"), torch.randn(2, 5, 16)
    y = mta(x)
    assert (y == 0).all()
    (y * torch.randn_like(y)).sum().backward()
    assert mta.up.weight.grad.abs().max() > 0  # the first step moves Up, the next all that lies before it
    assert (build["mta"]("kaiming")(x) != 0).any()


def test_six_at_base_have_188_thousand_parameters() -> None:
    one = MambaTextAdapter(512, 24, state=16, conv=4, expand=2, scale=0.2, init="zero")
    assert abs(6 * sum(p.numel() for p in one.parameters()) - 188_000) < 1_000
