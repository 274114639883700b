"""Triton's kernels against the plain loop in float64: compiled where there is a GPU, else by Triton's interpreter.

The interpreter must be switched on before Triton is first imported, and torch may import it. So without a GPU the tests
of this file run in a process of their own: those marked `long` by `make test-slow`, the others by `make test`.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="triton is not installed")

import scan_oracle as oracle  # noqa: E402

from wimfris.kernels.triton import BLOCK, INTERPRETED  # noqa: E402
from wimfris.model.hmf import WindowMambaFusion  # noqa: E402
from wimfris.model.mamba import Mamba  # noqa: E402
from wimfris.model.scan import causal_conv_silu  # noqa: E402
from wimfris.model.windows import window_index, window_partition, window_unpartition  # noqa: E402

kernels = pytest.mark.gpu if CUDA else pytest.mark.skipif(not INTERPRETED, reason="see the last test")
pytestmark = pytest.mark.slow
LONG = pytest.mark.long
DEVICE = "cuda" if CUDA else "cpu"


@pytest.fixture(autouse=True)
def quick_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter scan a slice at a time instead of an element, by the same function."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import ScanOps

    def by_slices(self: Any, given: Any) -> list[Any]:
        taken = [np.moveaxis(x.handle.data, self.axis, 0) for x in given]
        result = [x.copy() for x in taken]
        for t in range(1, len(taken[0])):
            steps = [
                self.to_tensor(x[i], tensor.dtype)
                for xs, i in ((result, t - 1), (taken, t))
                for x, tensor in zip(xs, given, strict=True)
            ]
            for out, value in zip(result, self.combine_fn.fn(*steps), strict=True):
                out[t] = value.handle.data
        return [self.to_tensor(np.moveaxis(x, 0, self.axis), y.dtype) for x, y in zip(result, given, strict=True)]

    if not hasattr(ScanOps, "generic_scan"):  # another version of Triton: the same result, slower
        return
    monkeypatch.setattr(ScanOps, "generic_scan", by_slices)


def on_device(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(DEVICE) for name, value in values.items()}


def off_device(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in values.items()}


# one token; a window; channels that fill no block; several chunks, with a short last one and with a whole one
SHAPES = [
    (1, 1, 1, 4),
    (3, 2, BLOCK, 8),
    pytest.param((2, 5, BLOCK + 1, 16), marks=LONG),
    pytest.param((2, 17, BLOCK - 1, 4), marks=LONG),
    (1, 33, 2, 4),
    pytest.param((2, 64, 1, 4), marks=LONG),
    pytest.param((1, 65, 2, 4), marks=LONG),
]


@kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_near_the_plain_loop_in_float64(shape: tuple[int, int, int, int]) -> None:
    values, weight = oracle.single(shape)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    oracle.assert_close(result, oracle.derive_plain(values, weight), 1e-5)


@kernels
@LONG
@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 65),
    st.integers(1, 2 * BLOCK + 1),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_dtype(batch: int, length: int, width: int, states: int, dtype: torch.dtype) -> None:
    values, weight = oracle.single((batch, length, width, states))
    values |= {name: values[name].to(dtype) for name in oracle.PER_TOKEN}
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    tolerance = 1e-5 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps
    oracle.assert_close(result, oracle.derive_plain(values, weight.to(dtype).double()), tolerance)


@kernels
@pytest.mark.parametrize("shape", [pytest.param((5, 3, BLOCK + 1, 4), marks=LONG), (3, 40, 2, 4)])
def test_several_sequences_share_a_part_of_the_sums(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens where there are more chunks than `GROUPS`; here the last group is not full."""
    monkeypatch.setattr("wimfris.kernels.triton.GROUPS", 2)
    values, weight = oracle.single(shape)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    oracle.assert_close(result, oracle.derive_plain(values, weight), 1e-5)


@kernels
@LONG
def test_sums_over_a_block_of_a_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU's block, whose threads share the exchanges of several sums; the last block has one channel."""
    monkeypatch.setattr("wimfris.kernels.triton.BLOCK_BACK", 32)
    for length in (3, 17, 19):
        values, weight = oracle.single((2, length, 33, 2))
        result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
        oracle.assert_close(result, oracle.derive_plain(values, weight), 1e-5)


@kernels
@pytest.mark.parametrize("taps", [1, 3])
def test_convolutions_of_other_lengths(taps: int) -> None:
    for length in (2, 33, 34):
        values = [value.float() for value in oracle.conv_inputs(1, length, 3, taps)]
        result = oracle.derive_conv(partial(causal_conv_silu, backend="triton"), *(x.to(DEVICE) for x in values))
        oracle.assert_close(
            off_device(result), oracle.derive_conv(oracle.convolve, *(x.double() for x in values)), 1e-5
        )


@kernels
def test_a_state_that_fades_fast_has_its_share_of_the_derivative() -> None:
    """The error is small relative to each state's own derivative, not only to the largest."""
    values, weight = oracle.single((1, 9, 1, 4))
    values |= {"A": -torch.tensor([[0.1, 5.0, 15.0, 25.0]]), "delta": torch.full((1, 9, 1), 0.5)}
    values["delta_bias"] = torch.zeros(1)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    torch.testing.assert_close(result["A"].double(), oracle.derive_plain(values, weight)["A"], rtol=1e-3, atol=0)


@kernels
def test_an_empty_batch_has_no_derivatives() -> None:
    values, weight = oracle.single((1, 3, 4, 4))
    empty = {name: value[:0] if name in oracle.PER_TOKEN else value for name, value in values.items()}
    result = oracle.derive(on_device(empty), "triton", weight[:0].to(DEVICE))
    assert result["y"].shape == (0, 3, 4) and not any(value.any() for value in result.values())


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_borders_alone(dtype: torch.dtype) -> None:
    values, weight = oracle.single((2, 9, 3, 4))
    values |= {name: values[name].to(dtype) for name in oracle.PER_TOKEN}
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    assert all(result[name].dtype == value.dtype for name, value in values.items())
    oracle.assert_close(result, oracle.derive_plain(values, weight.to(dtype).double()), 2 * torch.finfo(dtype).eps)


@kernels
def test_the_same_bits_again_and_any_strides() -> None:
    values, weight = oracle.single((2, 6, 3, 2))
    values, weight = on_device(values), weight.to(DEVICE)
    expected = oracle.derive(values, "triton", weight)
    halves = torch.cat([values["u"], values["z"]], dim=2)
    strided = {name: value.mT.contiguous().mT if value.dim() == 3 else value for name, value in values.items()}
    for other in (values, values | {"u": halves[..., :3], "z": halves[..., 3:]}, strided):
        result = oracle.derive(other, "triton", weight)
        assert all(torch.equal(result[name], expected[name]) for name in expected)


@kernels
def test_steps_of_every_size() -> None:
    values, weight = oracle.single((1, 9, 2, 2))
    values["A"] = -torch.logspace(-6, 2, 4).view(2, 2)
    values["delta"] = torch.linspace(-40, 40, 18).view(1, 9, 2)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    oracle.assert_close(result, oracle.derive_plain(values, weight), 1e-5)


@kernels
def test_small_steps_behind_large_ones_across_chunks() -> None:
    """The decay from a token to its chunk's end is by the steps after it, however large its own step is."""
    values, weight = oracle.single((1, 40, 2, 2))
    values["A"] = -torch.logspace(-6, 2, 4).view(2, 2)
    values["delta"] = torch.linspace(-40, 40, 80)[torch.randperm(80)].view(1, 40, 2)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    oracle.assert_close(result, oracle.derive_plain(values, weight), 1e-5)


@kernels
@pytest.mark.parametrize("length", [pytest.param(1, marks=LONG), 5, pytest.param(34, marks=LONG)])
def test_a_block_has_the_gradients_of_the_reference(length: int, stir: Any) -> None:
    block = stir(Mamba(2, state=2, backend="reference"))
    x = torch.randn(2, length, 2, requires_grad=True)
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    block, x = block.to(DEVICE), x.detach().to(DEVICE).requires_grad_()
    block.backend = "triton"
    result = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for grad, other in zip(result, expected, strict=True):
        torch.testing.assert_close(grad.cpu(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@kernels
@pytest.mark.parametrize("groups", [pytest.param(128, marks=LONG), 3])
@pytest.mark.parametrize(("grid", "window"), [((2, 4), (2, 2)), pytest.param((3, 3), (2, 2), marks=LONG)])
def test_windows_cut_inside_the_kernels_are_those_cut_before(
    grid: tuple[int, int], window: tuple[int, int], groups: int, stir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wimfris.kernels.triton.GROUPS", groups)
    block = stir(Mamba(2, state=2, backend="reference"))
    tokens, text = torch.randn(2, grid[0] * grid[1], 2), torch.randn(2, 1, 2)

    def derive(device: str, run: Any) -> list[torch.Tensor]:
        leaves = [x.to(device).requires_grad_() for x in (tokens, text)]
        out = run(*leaves)
        return [out, *torch.autograd.grad(out.square().sum(), [*leaves, *block.parameters()])]

    def apart(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        lead = text.repeat_interleave(len(cells), dim=0)
        scanned = block(torch.cat([lead, window_partition(tokens, cells)], dim=1))
        return window_unpartition(scanned[:, 1:], cells, places)

    cells, places = window_index(*grid, window)
    expected = derive("cpu", apart)
    cells = cells.int().to(DEVICE)
    block = block.to(DEVICE)
    block.backend = "triton"
    result = derive(DEVICE, lambda tokens, text: block.forward_windows(tokens, text, cells))
    for value, other in zip(result, expected, strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@kernels
@pytest.mark.parametrize(
    ("grid", "window", "options"),
    [
        ((2, 4), 2, {}),
        ((3, 3), 2, {"direction": "bidirectional"}),  # the windows at two borders are short
        # two chunks, and windows of which one is padding
        pytest.param((7, 6), 6, {"direction": "bidirectional"}, marks=LONG),
        pytest.param((5, 7), None, {"norm": False}, marks=LONG),
        pytest.param((3, 3), 2, {"passes": 2, "direction": "cross"}, marks=LONG),
    ],
)
def test_the_fusion_cuts_its_windows_inside_the_kernels(
    grid: tuple[int, int], window: int | None, options: dict[str, Any], stir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z and every gradient agree with the reference in float64, and the map is never cut."""
    sizes: dict[str, Any] = {"heads": 1, "state": 2, "conv": 4, "expand": 1, "gate": "none", "backend": "reference"}
    sizes |= {"norm": True} | options
    wmf = stir(WindowMambaFusion(4, 3, window=window, **sizes))
    scanning = [p for name, p in wmf.named_parameters() if not name.startswith("coordinates")]
    tokens, sentence = torch.randn(2, grid[0] * grid[1], 4), torch.randn(2, 3)

    def derive(*where: Any) -> list[torch.Tensor]:
        leaves = [x.to(*where).requires_grad_() for x in (tokens, sentence)]
        z = wmf.scan(*leaves, grid)
        return [z, *torch.autograd.grad(z.square().sum(), [*leaves, *scanning])]

    wmf.double()
    expected = [value.float() for value in derive(torch.float64)]
    wmf.to(DEVICE, torch.float32)
    for mamba in filter(None, (wmf.mamba, wmf.backwards, wmf.down, wmf.up)):
        mamba.backend = "triton"
    monkeypatch.setattr("wimfris.model.scan.dispatch.window_partition", None)
    for value, other in zip(derive(DEVICE), expected, strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@kernels
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_graph_holds_the_windows_whole(precision: torch.dtype, stir: Any) -> None:
    block = stir(Mamba(2, state=2, backend="triton")).to(DEVICE)
    leaves = [
        torch.randn(2, 8, 2, device=DEVICE).requires_grad_(),
        torch.randn(2, 1, 2, device=DEVICE).requires_grad_(),
    ]
    cells = window_index(2, 4, (2, 2))[0].int().to(DEVICE)

    def run(tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            return block.forward_windows(tokens, text, cells).float().square().sum()

    expected = torch.autograd.grad(run(*leaves), [*leaves, *block.parameters()])
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    result = torch.autograd.grad(compiled(*leaves), [*leaves, *block.parameters()])
    assert all(map(torch.equal, result, expected))


@kernels
def test_the_convolution_is_well_formed() -> None:
    x, weight = torch.randn(1, 2, 2, device=DEVICE), torch.randn(2, 1, 2, device=DEVICE)
    conv = [x.requires_grad_(), weight.requires_grad_(), torch.zeros(2, device=DEVICE, requires_grad=True)]
    torch.library.opcheck(torch.ops.wimfris.causal_conv.default, (*conv, None, "triton", None))


@kernels
@pytest.mark.parametrize("case", ["scan_window17", "scan_len1"] + ["scan_long257"] * CUDA)
def test_golden_numbers_of_mamba_ssm(golden_scan: Any, case: str) -> None:
    values, weight, expected = golden_scan(case)
    result = off_device(oracle.derive(on_device(values), "triton", weight.to(DEVICE)))
    oracle.assert_close(result, expected, 1e-4)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    ("name", "tokens", "block", "trips"),
    [
        ("scan_forward", 16, 64, [16]),
        ("scan_backward", 16, 32, [3, 16]),
        ("chunk_ends", 16, 64, [16]),
        ("pass_on", 16, 64, [1, 1]),  # one loop, unrolled, and its remainder
        ("conv_forward", 32, 64, []),
        ("conv_backward", 32, 32, [3]),
    ],
)
def test_compiles_for_a_gpu_that_need_not_be_there(
    name: str,
    tokens: int,
    block: int,
    trips: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The kernels compile at the paper's sizes in bf16 for compute capability 9.0, with few exchanges between threads.

    The interpreter accepts more than the compiler does. And the compiler could lay tiles out so that a recurrence runs
    across threads: correct, and many times slower.
    """
    from wimfris.kernels import triton_conv, triton_scan

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = importlib.util.spec_from_file_location("compiled", Path(__file__).parents[2] / "benchmarks" / "compiled.py")
    assert spec and spec.loader
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    sizes = {"N": 16, "PADDED": 4, "K": 4, "T": tokens, "BLOCK": block, "ROUNDS": 4, "WINDOWED": True}
    for chunked in (False, True):
        constants = sizes | {"CHUNKED": chunked, "REVERSE": chunked}
        counted = compiled.count_instructions((vars(triton_scan) | vars(triton_conv))[name], constants, trips)
        assert 0 < counted.special < counted.issued
        if name in ("scan_forward", "chunk_ends"):
            assert counted.memory < 0.1 * counted.issued  # no shuffles
        if name == "scan_backward":  # the sums over channels, three a number, and what the registers do not hold
            assert counted.memory < 3 * 16 * (2 * tokens + 1) * 5


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests above run in this process")
@pytest.mark.parametrize("part", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_these_by_the_interpreter(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", part, __file__]
    process = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert " passed" in process.stdout
