"""Every Triton kernel compiles for every GPU generation since Ampere, also where an integer argument is 1."""

import importlib.util
import os
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile"),
]
KERNELS = {
    "scan_forward": (16, 64),
    "scan_backward": (16, 32),
    "chunk_ends": (16, 64),
    "pass_on": (16, 64),
    "conv_forward": (32, 64),
    "conv_backward": (32, 32),
}
INTEGERS = ("length", "width", "chunks", "windows", "area", "total", "group", "members", "between")


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles(name: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from wimfris.kernels import triton_conv, triton_scan

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    path = Path(__file__).parents[2] / "benchmarks" / "compiled.py"
    spec = importlib.util.spec_from_file_location("compiled", path)
    assert spec and spec.loader
    compiled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiled)
    kernel = (vars(triton_scan) | vars(triton_conv))[name]
    tokens, block = KERNELS[name]
    sizes = {"N": 16, "PADDED": 4, "K": 4, "T": tokens, "BLOCK": block, "ROUNDS": 4, "WINDOWED": True}
    for chunked in (False, True):
        constants = sizes | {"CHUNKED": chunked, "REVERSE": chunked}
        present = [argument for argument in INTEGERS if argument in kernel.arg_names]
        for ones in ((), *((argument,) for argument in present)):
            assert compiled.compiled(kernel, constants, capability, ones)
