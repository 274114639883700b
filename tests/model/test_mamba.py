from typing import Any

import numpy as np
import pytest
import torch

from wimfris.model.mamba import DELTA_RANGE, Mamba
from wimfris.model.scan import causal_conv_silu

CASES: dict[str, dict[str, int]] = {
    "mamba_d32_L17": {"width": 32},
    "mamba_d24_L2": {"width": 24},
    "mamba_d32_L65": {"width": 32, "state": 8, "expand": 1},
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_golden_numbers_and_names_of_mamba_ssm(golden: Any, case: str, backend: str) -> None:
    arrays, mamba = golden("mamba_reference.npz", case), Mamba(**CASES[case], backend=backend)
    weights = {
        name.removeprefix("param/"): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith("param/")
    }
    assert set(mamba.state_dict()) == set(weights)
    mamba.load_state_dict(weights, strict=True)
    x = torch.from_numpy(arrays["in/x"]).requires_grad_()
    y = mamba(x)
    expected = torch.from_numpy(arrays["out/y"])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    (y * torch.from_numpy(np.cos(np.arange(y.numel())).reshape(y.shape).astype(np.float32))).sum().backward()
    for name, value in {"x": x, **dict(mamba.named_parameters())}.items():
        expected = torch.from_numpy(arrays[f"grad/{name}"])
        assert value.grad is not None
        torch.testing.assert_close(value.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_no_output_sees_a_later_token(stir: Any) -> None:
    mamba = stir(Mamba(6, state=3)).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    y = mamba(x)
    for t in range(9):
        (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all() and (grad[:, : t + 1] != 0).any(dim=-1).all()
    torch.testing.assert_close(mamba(x[:, :4]), y[:, :4])


@pytest.mark.parametrize("conv", [1, 2, 4])
def test_the_convolution_is_the_causal_conv1d_whose_weights_it_holds(conv: int) -> None:
    own = Mamba(4, conv=conv).conv1d
    u = torch.randn(2, 7, 8)
    expected = torch.nn.functional.silu(own(u.mT)[..., :7].mT)
    torch.testing.assert_close(causal_conv_silu(u, own.weight, own.bias, backend="reference"), expected)


def test_initial_steps_lie_in_the_range_of_mamba_ssm() -> None:
    step = torch.nn.functional.softplus(Mamba(64).dt_proj.bias)
    low, high = DELTA_RANGE
    assert step.min() >= low * 0.999 and step.max() <= high * 1.001
    torch.testing.assert_close(step.log().mean().exp(), torch.tensor((low * high) ** 0.5), rtol=0.5, atol=0)


def test_under_autocast_the_state_stays_in_float32():
    torch.manual_seed(0)
    block, x = Mamba(16, state=4, backend="reference"), torch.randn(3, 9, 16)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        result = block(x)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
