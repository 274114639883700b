"""The CPU kernels against the plain loop in float64: values, gradients, dtypes, strides, bits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_oracle import (
    NAMES,
    PER_TOKEN,
    assert_close,
    conv_inputs,
    convolve,
    derive,
    derive_conv,
    derive_plain,
    inputs,
    single,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wimfris.kernels.layout import CPU_CHUNK
from wimfris.kernels.ops import fused_scan
from wimfris.model.scan import causal_conv_silu, conv_flops, scan_flops, selective_scan

pytestmark = pytest.mark.slow

SHAPES = [  # around the edges of chunk and block: one token, a window, several chunks, more sequences than tasks
    (1, 1, 1, 1),
    (3, 1, 5, 4),
    (2, CPU_CHUNK, 3, 2),
    (2, CPU_CHUNK + 1, 130, 3),
    (35, 17, 24, 8),
    (1, 2 * CPU_CHUNK + 1, 300, 16),
]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run on this number of threads, however little work there is."""
    monkeypatch.setattr("wimfris.kernels.cpu.GRAIN", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_cpu_in_float32_is_near_the_plain_loop_in_float64(shape: tuple[int, int, int, int]) -> None:
    values, weight = single(shape)
    assert_close(derive(values, "cpu", weight), derive_plain(values, weight), 2e-6 * shape[1] ** 0.5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_cpu_in_float64_is_the_plain_loop(batch: int, length: int, width: int, state: int, seed: int) -> None:
    values = inputs(batch, length, width, state, seed)
    weight = torch.randn(batch, length, width, dtype=torch.float64)
    assert_close(derive(values, "cpu", weight), derive_plain(values, weight), 1e-12)


def test_cpu_reads_and_rounds_bfloat16_as_torch_does() -> None:
    """The kernels give the same bits as copies to float32 and back."""
    values, weight = single((3, 40, 130, 4))
    values |= {name: values[name].bfloat16() for name in PER_TOKEN}
    values["u"][0, 0, 0], values["u"][1, 0, 0] = torch.nan, torch.inf
    result = derive(values, "cpu", weight.bfloat16())
    whole = derive({name: value.float() for name, value in values.items()}, "cpu", weight.bfloat16().float())
    for name, value in result.items():
        expected = whole[name].to(value.dtype)
        assert torch.equal(value.nan_to_num(7.0), expected.nan_to_num(7.0)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_rounds_half_precision_at_its_borders_alone(dtype: torch.dtype) -> None:
    values, weight = single((4, 40, 6, 4))
    values |= {name: values[name].to(dtype) for name in PER_TOKEN}
    result = derive(values, "cpu", weight)
    assert all(result[name].dtype == value.dtype for name, value in values.items())
    weight = weight.to(dtype).double()
    assert_close(result, derive_plain(values, weight), 2 * torch.finfo(dtype).eps)


def test_cpu_takes_halves_of_a_projection_and_any_other_strides() -> None:
    values, weight = single((3, 6, 4, 2))
    expected = derive(values, "cpu", weight)
    halves = torch.stack([values["u"], values["z"]], dim=2).flatten(2)
    strided = {name: value.mT.contiguous().mT if value.dim() == 3 else value for name, value in values.items()}
    for other in (values | {"u": halves[..., :4], "z": halves[..., 4:]}, strided):
        result = derive(other, "cpu", weight.transpose(0, 1).contiguous().transpose(0, 1))
        assert all(torch.equal(result[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shape", [(35, 17, 24, 8), (1, 70, 300, 4), (2, 3, 4, 2)])
def test_cpu_gives_the_same_bits_again_and_with_any_number_of_threads(
    shape: tuple[int, int, int, int], threads: int
) -> None:
    values, weight = single(shape)
    result, again = derive(values, "cpu", weight), derive(values, "cpu", weight)
    torch.set_num_threads(1)
    alone = derive(values, "cpu", weight)
    assert all(torch.equal(result[name], again[name]) and torch.equal(result[name], alone[name]) for name in result)


def test_cpu_shows_numbers_that_are_not_numbers() -> None:
    for name in NAMES:
        values, _ = single((2, 3, 4, 2))
        values[name].view(-1)[0] = torch.nan
        assert selective_scan(**values, backend="cpu").isnan().any(), name


def test_cpu_is_exact_for_rates_and_steps_of_every_size() -> None:
    values, weight = single((2, 9, 8, 2))
    values["A"] = -torch.logspace(-6, 6, 16).view(8, 2)
    values["delta"] = torch.linspace(-40, 40, 144).view(2, 9, 8)
    values["z"] = torch.linspace(-200, 200, 144).view(2, 9, 8)
    assert_close(derive(values, "cpu", weight), derive_plain(values, weight), 1e-5)


def test_cpu_of_an_empty_batch_is_empty() -> None:
    values, weight = single((1, 3, 4, 2))
    empty = {name: value[:0] if name in PER_TOKEN else value for name, value in values.items()}
    result = derive(empty, "cpu", weight[:0])
    assert result["y"].shape == (0, 3, 4)
    assert all(result[name].shape == value.shape and not result[name].any() for name, value in empty.items())
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((0, 3, 4), (4, 1, 2), (4,)))
    grads = torch.autograd.grad(causal_conv_silu(x, weight, bias, backend="cpu").sum(), [x, weight, bias])
    assert not any(grad.any() for grad in grads)


def test_cpu_saves_nothing_of_the_size_of_the_states() -> None:
    values, _ = single((4, 3 * CPU_CHUNK, 16, 8))
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    leaves = {name: value.requires_grad_() for name, value in values.items()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        selective_scan(**leaves, backend="cpu")
    read = sum(value.numel() for value in values.values())
    assert sum(saved) - read == 4 * 2 * 16 * 8  # the states before the second and third chunk
    saved.clear()
    with torch.no_grad():
        selective_scan(**leaves, backend="cpu")
    assert not saved


def test_a_second_derivative_is_refused() -> None:
    values = inputs(2, 3, 2, 2)
    (grad,) = torch.autograd.grad(
        selective_scan(**values, backend="cpu").square().sum(), values["delta"], create_graph=True
    )
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()


def test_autocast_narrows_what_tokens_have_and_nothing_else() -> None:
    values, weight = single((2, 40, 6, 4))
    narrow = {name: value.bfloat16() if name in PER_TOKEN else value for name, value in values.items()}
    expected = derive(narrow, "cpu", weight.bfloat16())
    x, taps, bias, by = (value.float() for value in conv_inputs(2, 9, 6, 4))
    conv = derive_conv(cpu_conv, x.bfloat16(), taps, bias, by.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        result, result_conv = (
            derive(values, "cpu", weight.bfloat16()),
            derive_conv(cpu_conv, x, taps, bias, by.bfloat16()),
        )
        whole = derive({name: value.double() for name, value in values.items()}, "cpu", weight)
    for own, other in ((result, expected), (result_conv, conv)):
        assert own["y"].dtype == torch.bfloat16
        for name in other:
            assert name == "y" or own[name].dtype == torch.float32
            assert torch.equal(own[name].float(), other[name].float()), name
    assert {value.dtype for value in whole.values()} == {torch.float64}  # as in torch's own operations


def test_the_operation_is_well_formed_and_counted() -> None:
    values, _ = single((2, 5, 4, 3))
    arguments = [values[name].requires_grad_() for name in NAMES]
    torch.library.opcheck(torch.ops.wimfris.fused_scan.default, (*arguments, True, "cpu", None))
    with FlopCounterMode(display=False) as counter:
        fused_scan(*arguments, backend="cpu").sum().backward()
    assert counter.get_total_flops() == 4 * scan_flops(2, 5, 4, 3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_graph_holds_the_operation_whole(precision: torch.dtype) -> None:
    values, weight = single((2, 5, 4, 3))
    leaves = [values[name].requires_grad_() for name in NAMES]

    def run(*arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return (fused_scan(*arguments, backend="cpu") * weight.float()).sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(run(*leaves), leaves)
    assert all(map(torch.equal, torch.autograd.grad(compiled(*leaves), leaves), expected))


def cpu_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv_silu(x, weight, bias, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 4), (3, 2, 5, 4), (2, 9, 130, 3), (35, 17, 24, 4), (1, 40, 300, 1), (2, 70, 65, 4)]
)
def test_cpu_convolution_is_that_of_torch(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    values = conv_inputs(*shape)
    result = derive_conv(cpu_conv, *(value.to(dtype) for value in values))
    assert_close(result, derive_conv(convolve, *values), 1e-5 if dtype == torch.float32 else 1e-13)


def test_cpu_convolution_takes_bfloat16_and_halves_of_a_projection() -> None:
    x, weight, bias, by = (value.float() for value in conv_inputs(3, 9, 4, 4))
    expected = derive_conv(cpu_conv, x, weight, bias, by)
    for other in (torch.cat([by, x], dim=2)[..., 4:], x.mT.contiguous().mT):
        result = derive_conv(cpu_conv, other, weight, bias, by)
        assert all(torch.equal(result[name], expected[name]) for name in expected)
    half, by = x.bfloat16(), by.bfloat16()
    result = derive_conv(cpu_conv, half, weight, bias, by)
    assert [result[name].dtype for name in ("y", "x", "weight")] == [torch.bfloat16, torch.bfloat16, torch.float32]
    expected = derive_conv(convolve, *(value.double() for value in (half, weight, bias, by)))
    assert_close(result, expected, 2 * torch.finfo(torch.bfloat16).eps)


def test_cpu_convolution_gives_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    for shape in [(35, 17, 24, 4), (1, 70, 300, 4)]:
        values = [value.float() for value in conv_inputs(*shape)]
        result = derive_conv(cpu_conv, *values)
        torch.set_num_threads(1)
        alone = derive_conv(cpu_conv, *values)
        torch.set_num_threads(threads)
        assert all(torch.equal(result[name], alone[name]) for name in result)


def test_cpu_convolution_is_well_formed_and_takes_an_empty_batch() -> None:
    x, weight, bias, _ = (value.float().requires_grad_() for value in conv_inputs(2, 5, 3, 4))
    torch.library.opcheck(torch.ops.wimfris.causal_conv.default, (x, weight, bias, None, "cpu", None))
    with FlopCounterMode(display=False) as counter:
        cpu_conv(x, weight, bias).sum().backward()
    assert counter.get_total_flops() == 4 * conv_flops(2, 5, 3, 4)
    assert cpu_conv(x[:0], weight, bias).shape == (0, 5, 3)
