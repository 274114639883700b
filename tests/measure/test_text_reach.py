"""The reach of the text token is exact against autograd, its bound holds, and the fit recovers a known rate."""

import numpy as np
import pytest
import torch

from wimfris.measure.text_reach import directions, fit_rate, text_reach, unroll
from wimfris.model.mamba import Mamba
from wimfris.model.mamba2 import Mamba2


@pytest.fixture(params=["Mamba", "Mamba-2"])
def mamba(stir, request):  # type: ignore[no-untyped-def]
    if request.param == "Mamba":
        return stir(Mamba(8, state=3, conv=4, expand=2)).double()
    return stir(Mamba2(8, heads=2, state=3, conv=4, expand=2)).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 9, 8, dtype=torch.float64)


def test_unrolled_is_the_block(mamba: Mamba | Mamba2, x: torch.Tensor) -> None:
    assert torch.allclose(unroll(mamba, x).output, mamba(x), atol=1e-12)


def test_norms_are_those_of_the_jacobian(mamba: Mamba | Mamba2, x: torch.Tensor) -> None:
    reach = text_reach(mamba, x, directions(8, 8))
    for k in range(len(x)):

        def outputs(prefix: torch.Tensor, rest: torch.Tensor = x[k, 1:]) -> torch.Tensor:
            return unroll(mamba, torch.cat([prefix[None], rest])[None]).output[0]

        jacobian = torch.autograd.functional.jacobian(outputs, x[k, 0])  # (L, C, C)
        assert torch.allclose(reach.norms[k], jacobian.flatten(1).norm(dim=1), rtol=1e-9)


@pytest.mark.slow
def test_random_directions_give_the_norm_in_expectation(mamba: Mamba | Mamba2, x: torch.Tensor) -> None:
    x = x[:1, :6]
    exact = text_reach(mamba, x, directions(8, 8)).norms
    drawn = torch.stack([text_reach(mamba, x, directions(8, 2, seed)).norms.square() for seed in range(100)])
    error = drawn.std(dim=0) / 100**0.5
    assert ((drawn.mean(dim=0) - exact.square()).abs() < 5 * error).all()


@pytest.mark.parametrize("length", [2, 4, 5, 40])
def test_the_bound_bounds(mamba: Mamba | Mamba2, length: int) -> None:
    x = 3 * torch.randn(5, length, 8, dtype=torch.float64)
    reach = text_reach(mamba, x, directions(8, 8))
    assert reach.bound[:, :4].isnan().all()  # the convolution shows the prefix to these
    assert (reach.norms[:, 4:] <= reach.bound[:, 4:] * (1 + 1e-9)).all()
    decay = unroll(mamba, x).decay[:, 1:]
    assert torch.allclose(reach.rate, decay.flatten(1).amax(dim=1)) and (reach.rate < 1).all()


def test_the_bound_is_reached_by_one_channel_of_one_state() -> None:
    """With one channel and state, a constant step and a constant sequence, decay and bound are the same geometric
    sequence.
    """
    mamba = Mamba(1, state=1, conv=1, expand=1).double()
    with torch.no_grad():
        for weight in (mamba.in_proj.weight, mamba.x_proj.weight, mamba.out_proj.weight):
            weight.fill_(1.0)
        mamba.conv1d.weight.fill_(1.0)
        mamba.dt_proj.weight.zero_()  # Delta = softplus(bias)
    x = torch.full((1, 12, 1), 0.7, dtype=torch.float64)
    reach = text_reach(mamba, x, directions(1, 1))
    assert torch.allclose(reach.norms[0, 1:], reach.bound[0, 1:])
    fit = fit_rate(reach.norms.numpy(), 1)
    assert fit is not None and fit.rate == pytest.approx(float(reach.rate)) and fit.explained == pytest.approx(1)


def test_the_rate_of_a_geometric_sequence_is_recovered() -> None:
    rates = np.array([0.5, 0.8])
    norms = np.array([3.0, 0.2])[:, None] * rates[:, None] ** np.arange(20)
    norms[:, :4] = 7.0  # before the fit begins
    fit = fit_rate(norms, 4)
    assert fit is not None and (fit.first, fit.last) == (4, 19)
    assert fit.rates == pytest.approx(rates) and fit.rate == pytest.approx(np.sqrt(0.4))
    assert fit.half == pytest.approx(np.log(0.5) / np.log(np.sqrt(0.4))) and fit.explained == pytest.approx(1)
    assert fit_rate(norms[:, :6], 4) is None
