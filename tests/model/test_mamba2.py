"""The Mamba-2 block: golden numbers of mamba_ssm, its chunks, and what it must not see."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wimfris.model.mamba2 import Mamba2
from wimfris.model.scan import ssd as ssd_module
from wimfris.model.scan.ssd import segment_decay, ssd

CASES = {
    "mamba2_d32_L17": {"width": 32, "heads": 4, "state": 16},
    "mamba2_d24_L5_groups": {"width": 24, "heads": 4, "state": 8, "groups": 2},
    "mamba2_d32_L65": {"width": 32, "heads": 1, "state": 8, "expand": 1},
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_golden_numbers_and_names_of_mamba_ssm(golden: Any, case: str, backend: str) -> None:
    arrays, block = golden("mamba2_reference.npz", case), Mamba2(**CASES[case], backend=backend)
    weights = {name[6:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("param/")}
    assert set(block.state_dict()) == set(weights)
    block.load_state_dict(weights, strict=True)
    x = torch.from_numpy(arrays["in/x"]).requires_grad_()
    y = block(x)
    expected = torch.from_numpy(arrays["out/y"])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    (y * torch.from_numpy(np.cos(np.arange(y.numel())).reshape(y.shape).astype(np.float32))).sum().backward()
    for name, value in {"x": x, **dict(block.named_parameters())}.items():
        expected = torch.from_numpy(arrays[f"grad/{name}"])
        assert value.grad is not None
        torch.testing.assert_close(value.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def draw(length: int, groups: int = 2) -> list[torch.Tensor]:
    """Return x, delta, A, B, C, D and delta_bias, in double precision."""
    random = torch.Generator().manual_seed(0)
    shapes = [(2, length, 4, 3), (2, length, 4), (4,), (2, length, groups, 5), (2, length, groups, 5), (4,), (4,)]
    values = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    values[2] = -values[2].exp()
    return values


@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (4, 4), (5, 4), (7, 2), (16, 4), (9, 64)])
def test_chunks_equal_the_recurrence(length: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_module, "CHUNK", chunk)
    x, delta, A, B, C, D, bias = draw(length)
    steps = F.softplus(delta + bias)
    state, outputs = torch.zeros(2, 4, 5, 3, dtype=torch.float64), []
    for t in range(length):
        b, c = (part[:, t].repeat_interleave(2, dim=1) for part in (B, C))
        drive = b[..., None] * (steps[:, t, :, None] * x[:, t])[:, :, None]
        state = torch.exp(steps[:, t] * A)[..., None, None] * state + drive
        outputs.append((c[..., None] * state).sum(2) + D[:, None] * x[:, t])
    torch.testing.assert_close(ssd(x, delta, A, B, C, D, bias), torch.stack(outputs, dim=1))


@pytest.mark.slow
def test_the_gradient_is_that_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_module, "CHUNK", 3)
    torch.autograd.gradcheck(ssd, [value.requires_grad_() for value in draw(5)])


def test_a_strong_decay_forgets_without_overflow() -> None:
    """The sums of logs keep their digits: exp(-1000 - 1e-3) / exp(-1000) would be lost by a difference."""
    decay = segment_decay(torch.tensor([0.0, -1000.0, -1e-3, -1000.0]))
    assert decay[2, 1] == pytest.approx(np.exp(-1e-3)) and decay[3, 0] == 0 and decay.isfinite().all()


def test_no_output_sees_a_later_token(stir: Any) -> None:
    block = stir(Mamba2(6, heads=2, state=3)).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    y = block(x)
    for t in range(9):
        (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all() and (grad[:, : t + 1] != 0).any(dim=-1).all()
    torch.testing.assert_close(block(x[:, :4]), y[:, :4])


def test_half_precision_keeps_the_state_in_full(stir: Any) -> None:
    block, x = stir(Mamba2(8, heads=2, state=3)), torch.randn(2, 9, 8)
    expected = block(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = block(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.detach().float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
