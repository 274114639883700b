"""`auto` on CUDA, without a GPU: packages and devices are stand-ins."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wimfris.errors import UserError
from wimfris.model.scan import backends, choose_backend, trial
from wimfris.model.scan.backends import check_conv

FILES = {
    "mamba-ssm": ("mamba_ssm/ops/selective_scan_interface.py", "import selective_scan_cuda"),
    "causal-conv1d": ("causal_conv1d/__init__.py", "import causal_conv1d_cuda"),
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No choice is remembered, before and after, and the cache folder is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU of a test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    forget()
    yield
    forget()


def forget() -> None:
    backends._choose_on_cuda.cache_clear()
    backends.mamba_failure.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] in ("mamba_ssm", "causal_conv1d", "selective_scan_cuda", "causal_conv1d_cuda"):
            del sys.modules[name]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *extensions: str) -> None:
    """Install stubs of both packages, and of these extensions."""
    for file, text in (*FILES.values(), *((f"{name}.py", "") for name in extensions)):
        path = folder / "site" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(folder / "site")


def measures(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[str]:
    """Let every trial of a backend give this result or raise it; return the backends that were tried."""
    tried: list[str] = []

    def run(backend: str, device: str) -> float:
        tried.append(backend)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(trial, "_try", run)
    return tried


def test_a_build_without_its_extension_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "causal_conv1d_cuda")
    measures(monkeypatch, 1e-6)
    choice = choose_backend("auto", "cuda")
    assert choice.backend == "triton" and "mamba-ssm lacks selective_scan_cuda" in choice.reason
    with pytest.raises(UserError, match=r"mamba-ssm lacks selective_scan_cuda; install it as docs/gpu\.md says"):
        choose_backend("mamba_ssm", "cuda")


def test_mamba_ssm_is_taken_where_all_of_it_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "causal_conv1d_cuda", "selective_scan_cuda")
    tried = measures(monkeypatch, 1e-6)
    assert choose_backend("auto", "cuda").backend == "mamba_ssm" and not tried


def test_triton_is_tried_once_for_a_machine_and_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measures(monkeypatch, 3e-6)
    for _ in range(2):
        choice = choose_backend("auto", "cuda")
        assert choice.backend == "triton" and "agrees with the reference on this GPU" in choice.reason
        backends._choose_on_cuda.cache_clear()  # as in another process
    assert tried == ["triton"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another GPU")
    assert choose_backend("auto", "cuda").backend == "triton" and len(tried) == 2


@pytest.mark.parametrize(
    ("result", "reason"), [(1e-2, "differs from the reference"), (RuntimeError("no\nptxas"), "RuntimeError: no ptxas")]
)
def test_the_reference_is_taken_where_triton_is_wrong_or_fails(
    result: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures(monkeypatch, result)
    choice = choose_backend("auto", "cuda")
    assert choice.backend == "reference" and reason in choice.reason and "\n" not in choice.reason


def test_a_damaged_or_unwritable_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measures(monkeypatch, 3e-6)
    assert choose_backend("auto", "cuda").backend == "triton"
    (cached,) = (tmp_path / "cache" / "wimfris").iterdir()
    cached.write_text("{")
    backends._choose_on_cuda.cache_clear()
    assert choose_backend("auto", "cuda").backend == "triton" and len(tried) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(cached))  # a file
    backends._choose_on_cuda.cache_clear()
    assert choose_backend("auto", "cuda").backend == "triton" and len(tried) == 3


@pytest.mark.slow
def test_a_compiled_graph_takes_the_choice_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the compiler would use the GPU

    def run(x: torch.Tensor) -> torch.Tensor:
        return x + len(choose_backend("auto", "cuda").backend)

    assert torch.compile(run, backend="eager", fullgraph=True)(torch.ones(1)) == 1 + len("reference")


@pytest.mark.parametrize(("taps", "width"), [(5, 64), (1, 64), (4, 20)])
def test_the_limits_of_causal_conv1d(taps: int, width: int) -> None:
    check_conv("mamba_ssm", 4, 64)
    check_conv("triton", taps, width)
    with pytest.raises(UserError, match=f"got {taps} taps and {width} channels; set model.scan to triton or reference"):
        check_conv("mamba_ssm", taps, width)


def test_channels_that_causal_conv1d_cannot_take_go_to_another_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of channels can be narrow."""
    install(tmp_path, monkeypatch, "selective_scan_cuda", "causal_conv1d_cuda")
    measures(monkeypatch, 1e-6)
    monkeypatch.setattr(backends, "_installed", lambda *_: True)
    assert choose_backend("auto", "cuda", (8, 17, 16, 4)).backend == "mamba_ssm"
    narrow = choose_backend("auto", "cuda", (8, 17, 4, 4))
    assert narrow.backend == "triton" and "a multiple of 8 channels" in narrow.reason
