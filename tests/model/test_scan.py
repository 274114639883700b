import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from wimfris.errors import UserError
from wimfris.model.scan import BACKENDS, choose_backend, selective_scan
from wimfris.model.scan.backends import SMALL
from wimfris.model.scan.reference import scan_states

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
PER_TOKEN = ("u", "delta", "B", "C", "z")


def naive_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """Run the recurrence as written, one token at a time, differentiated by autograd."""
    delta = F.softplus(delta + delta_bias)
    state, outputs = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        driven = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        state = torch.exp(delta[:, t, :, None] * A) * state + driven
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return (torch.stack(outputs, dim=1) + D * u) * F.silu(z)


def inputs(batch: int, length: int, width: int, state: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    wide, narrow = (batch, length, width), (batch, length, state)
    shapes = {
        "u": wide,
        "delta": wide,
        "A": (width, state),
        "B": narrow,
        "C": narrow,
        "D": (width,),
        "z": wide,
        "delta_bias": (width,),
    }
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    values["A"] = -torch.exp(values["A"])
    return {name: value.requires_grad_() for name, value in values.items()}


@pytest.mark.parametrize(
    ("batch", "length", "width", "state"), [(2, 5, 3, 2), (1, 1, 2, 3), (2, 4, 1, 1), (1, 3, 2, 1)]
)
def test_the_backward_is_the_derivative_of_the_forward(batch: int, length: int, width: int, state: int) -> None:
    values = inputs(batch, length, width, state)
    assert torch.autograd.gradcheck(scan_states, [values[name] for name in ("u", "delta", "A", "B", "C")])
    assert torch.autograd.gradcheck(
        lambda *args: selective_scan(*args, backend="reference"), [values[name] for name in NAMES]
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_value_and_gradients_are_those_of_the_naive_loop(
    batch: int, length: int, width: int, state: int, seed: int
) -> None:
    values = inputs(batch, length, width, state, seed)
    ours, naive = selective_scan(**values, backend="reference"), naive_scan(**values)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(naive)
    grads = torch.autograd.grad((ours * weight).sum(), list(values.values()))
    expected = torch.autograd.grad(
        (naive * weight).sum(), list(values.values()), allow_unused=True, materialize_grads=True
    )
    for name, grad, other in zip(NAMES, grads, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-9, atol=1e-9, msg=f"the gradient of {name} differs")


def test_strided_inputs_and_gradients_change_nothing() -> None:
    values = {name: value.detach() for name, value in inputs(3, 6, 4, 2).items()}
    strided = {name: value.mT.contiguous().mT if value.dim() == 3 else value for name, value in values.items()}
    for tensors in (values, strided):
        tensors["u"].requires_grad_()
    weight = torch.randn(6, 3, 4, dtype=torch.float64).transpose(0, 1)
    (grad,), (other,) = (torch.autograd.grad((selective_scan(**t) * weight).sum(), t["u"]) for t in (values, strided))
    torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", ["scan_window17", "scan_long257", "scan_len1"])
def test_golden_numbers_of_mamba_ssm(golden_scan: Any, case: str, backend: str) -> None:
    values, weight, expected = golden_scan(case)
    leaves = {name: values[name].requires_grad_() for name in NAMES}
    y = selective_scan(**leaves, backend=backend)
    (y * weight).sum().backward()
    result = {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
    for name, value in result.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half_precision_inputs_keep_a_full_precision_state(backend: str) -> None:
    values = {name: value.detach().float() for name, value in inputs(2, 200, 4, 3).items()}
    values |= {name: values[name].bfloat16() for name in PER_TOKEN}
    y = selective_scan(**values, backend=backend)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, naive_scan(**{name: value.float() for name, value in values.items()}).bfloat16())


def test_a_past_token_decays_as_the_equation_says() -> None:
    values = {name: value.detach() for name, value in inputs(1, 5, 1, 1).items()}
    values |= {"delta": torch.zeros(1, 5, 1), "delta_bias": torch.zeros(1), "A": -torch.ones(1, 1), "D": torch.zeros(1)}
    values |= {name: torch.ones(1, 5, 1) for name in ("B", "C", "z")}
    values["u"] = F.one_hot(torch.tensor([0]), 5).float()[..., None]  # an impulse at the first token
    y = selective_scan(**values, backend="reference").flatten()
    step = math.log(2)  # softplus(0)
    torch.testing.assert_close(y, F.silu(torch.ones(5)) * step * torch.exp(-step * torch.arange(5)))


def test_auto_chooses_by_device_shape_and_dtype_and_gives_a_reason() -> None:
    large = (256, 17, 64, 8)
    assert choose_backend("auto", "cpu", large).backend == "cpu"
    assert choose_backend("auto", "cpu", (1, 1, 1, SMALL - 1)).backend == "reference"
    assert choose_backend("auto", "cpu", large, torch.float64).backend == "reference"
    assert choose_backend("auto", "meta", large).backend == "reference"
    assert choose_backend("auto", "cuda", large).backend in ("mamba_ssm", "reference")
    for device in ("cpu", "cuda", "meta"):
        reason = choose_backend("auto", device, large).reason
        assert reason and "\n" not in reason
        assert choose_backend("reference", device).backend == "reference"


def test_auto_takes_the_reference_where_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wimfris.model.scan.backends._installed", lambda *packages: False)
    choice = choose_backend("auto", "cpu", (256, 17, 64, 8))
    assert choice.backend == "reference" and "numba" in choice.reason
    with pytest.raises(UserError, match="pip install numba"):
        choose_backend("cpu", "cpu")


def test_a_backend_that_cannot_run_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    errors = [
        ("mamba_ssm", "cpu", "CUDA"),
        ("triton", "cpu", "needs"),
        ("cpu", "cuda", "CPU only"),
        ("numba", "cpu", f"must be one of {', '.join(BACKENDS)}"),
    ]
    for backend, device, hint in errors:
        with pytest.raises(UserError, match=hint) as raised:
            choose_backend(backend, device)
        assert "\n" not in str(raised.value) and backend in str(raised.value)
    with pytest.raises(UserError):
        selective_scan(**inputs(1, 1, 1, 1), backend="mamba_ssm")


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_an_error(power: int) -> None:
    values = inputs(2, 3, 2, 2)
    y = scan_states(*(values[name] for name in ("u", "delta", "A", "B", "C")))
    (grad,) = torch.autograd.grad((y**power).sum(), values["delta"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        grad.square().sum().backward()
