"""On a GPU the reference scan agrees with the CPU's, and mamba_ssm's kernels agree with the reference scan."""

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import scan_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wimfris.model.mamba import Mamba
from wimfris.model.scan import selective_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _gradients(block, x):
    x = x.detach().clone().requires_grad_()
    y = block(x)
    (y * torch.cos(torch.arange(y.numel(), device=y.device)).view_as(y)).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in block.named_parameters()}


def _assert_close(result, expected, tolerance):
    for name, value in expected.items():
        scale = value.abs().max().item() + 1e-12
        assert (result[name].cpu() - value.cpu()).abs().max().item() <= tolerance * scale, name


def test_reference_scan_agrees_between_devices():
    torch.manual_seed(0)
    block = Mamba(32, state=8, backend="reference")
    x = torch.randn(6, 17, 32)
    _assert_close(_gradients(copy.deepcopy(block).cuda(), x.cuda()), _gradients(block, x), 1e-4)


needs_mamba_ssm = pytest.mark.skipif(
    not (find_spec("mamba_ssm") and find_spec("causal_conv1d")), reason="mamba_ssm is not installed"
)


@needs_mamba_ssm
@pytest.mark.parametrize("length", [2, 17, 257])
def test_mamba_ssm_agrees_with_the_reference(length):
    torch.manual_seed(0)
    block = Mamba(32, state=16, backend="reference").cuda()
    other = copy.deepcopy(block)
    other.backend = "mamba_ssm"
    x = torch.randn(4, length, 32, device="cuda")
    _assert_close(_gradients(other, x), _gradients(block, x), 1e-3)


@needs_mamba_ssm
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_mamba_ssm_takes_any_shape_and_dtype(batch: int, length: int, width: int, states: int, dtype: Any) -> None:
    values, weight = oracle.single((batch, length, width, states))
    values |= {name: values[name].to(dtype) for name in oracle.PER_TOKEN}
    on_gpu = {name: value.cuda() for name, value in values.items()}
    result = {name: value.cpu() for name, value in oracle.derive(on_gpu, "mamba_ssm", weight.cuda()).items()}
    tolerance = 1e-4 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps
    oracle.assert_close(result, oracle.derive_plain(values, weight.to(dtype).double()), tolerance)


@needs_mamba_ssm
@pytest.mark.parametrize("case", ["scan_window17", "scan_long257", "scan_len1"])
def test_golden_numbers_of_mamba_ssm(golden_scan: Any, case: str) -> None:
    values, weight, expected = golden_scan(case)
    leaves = {name: value.cuda().requires_grad_() for name, value in values.items()}
    y = selective_scan(**leaves, backend="mamba_ssm")
    (y * weight.cuda()).sum().backward()
    _assert_close({"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}, expected, 1e-3)
