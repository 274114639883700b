"""The CPU kernels where numba may write nowhere: they compile without a cache, and say so once."""

import warnings
from typing import Any

import pytest

from wimfris.kernels import numba_kernels


def test_kernels_compile_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it, asked = numba_kernels.njit, []

    def njit(**options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'twice': no locator available for file 'x.py'")
        return compile_it(**options)

    def twice(x: float) -> float:
        return 2 * x

    monkeypatch.setattr(numba_kernels, "njit", njit)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        kernels = [numba_kernels._compiled(twice) for _ in range(3)]
    assert [kernel(2.0) for kernel in kernels] == [4.0] * 3
    assert asked == [True, False] * 3
    assert [str(warning.message) for warning in shown] == [numba_kernels.NO_CACHE]
