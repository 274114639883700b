from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_oracle import NAMES, PER_TOKEN, inputs, naive_scan

from wimfris.errors import UserError
from wimfris.model.scan import BACKENDS, choose_backend, selective_scan
from wimfris.model.scan.backends import SMALL
from wimfris.model.scan.reference import scan_states


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


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.slow)])
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


def test_half_precision_inputs_keep_a_full_precision_state() -> None:
    values = {name: value.detach().float() for name, value in inputs(2, 200, 4, 3).items()}
    values |= {name: values[name].bfloat16() for name in PER_TOKEN}
    y = selective_scan(**values, backend="reference")
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, naive_scan(**{name: value.float() for name, value in values.items()}).bfloat16())


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
