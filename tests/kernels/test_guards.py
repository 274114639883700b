"""What is checked before a CUDA kernel starts, without a GPU: packages and devices are stand-ins."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wimfris.errors import UserError
from wimfris.model.scan import Choice, causal_conv_silu, dispatch


def test_mamba_ssm_is_not_called_with_sizes_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(weight.shape))
        return x

    monkeypatch.setattr(dispatch, "choose_backend", lambda *_, **__: Choice("mamba_ssm", "a stand-in"))
    monkeypatch.setattr(dispatch, "load_backend", lambda _: SimpleNamespace(causal_conv_silu=conv))
    for width, taps in ((20, 4), (16, 5), (16, 1)):
        with pytest.raises(UserError, match=f"got {taps} taps and {width} channels"):
            causal_conv_silu(torch.zeros(1, 3, width), torch.zeros(width, 1, taps), torch.zeros(width))
    assert not calls
    causal_conv_silu(torch.zeros(1, 3, 16), torch.zeros(16, 1, 4), torch.zeros(16))
    assert calls == [(16, 1, 4)]


@pytest.fixture
def kernels() -> Any:
    pytest.importorskip("triton", reason="triton is not installed")
    from wimfris.kernels import triton

    return triton


def test_triton_launches_on_the_device_of_the_first_tensor(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []

    @contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    launch = kernels.on_device(lambda *_: list(current))
    first, second = (SimpleNamespace(is_cuda=True, device=f"cuda:{number}") for number in (1, 0))
    assert launch(first, second) == ["cuda:1"] and not current
    assert launch(torch.zeros(1), second) == []
    for name in ("scan", "scan_backward", "conv", "conv_backward"):
        assert hasattr(getattr(kernels, name), "__wrapped__"), name


def test_triton_refuses_windows_on_another_device(kernels: Any) -> None:
    """A kernel would read memory of another device."""
    length, width, states = 5, 4, 2
    cells = torch.zeros(1, length - 1, dtype=torch.int64, device="meta")
    wide, narrow, row = torch.zeros(1, length, width), torch.zeros(1, length, states), torch.zeros(width)
    match = r"cells must be on the device of the tokens \(cpu\), got meta"
    with pytest.raises(ValueError, match=match):
        kernels.scan(wide, wide, torch.zeros(width, states), narrow, narrow, row, wide, row, False, cells)
    with pytest.raises(ValueError, match=match):
        kernels.conv(wide, torch.zeros(width, 1, 4), row, wide[:, :1], cells)
