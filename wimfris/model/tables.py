"""Cache tables of indices and positions, which depend on shapes alone, on each device."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made", covariant=True)
CPU = torch.device("cpu")
_caches: list[Callable[[], None]] = []


class Table(Protocol[Made]):
    """A function of integers that keeps its results on each device."""

    def __call__(self, *arguments: Any, device: torch.device = CPU) -> Made:
        """Return the table of these arguments on a device."""


def table(make: Callable[..., Made]) -> Table[Made]:
    """Cache the tensor, or the tuple of tensors, that a function makes on the CPU, by arguments and device.

    A copy in every step would make the host wait for the GPU. torch.compile takes the table as a constant.
    """

    @lru_cache(maxsize=64)
    @torch.inference_mode(False)  # a table that an evaluation makes first must serve training too
    def kept(arguments: tuple[Any, ...], device: torch.device) -> Any:
        made: Any = make(*arguments)
        return made.to(device) if isinstance(made, Tensor) else tuple(part.to(device) for part in made)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @wraps(make)
    def read(*arguments: Any, device: torch.device = CPU) -> Any:
        return kept(arguments, device)

    _caches.append(kept.cache_clear)
    return cast("Table[Made]", read)


def forget_tables() -> None:
    """Empty the caches: a fake tensor must not serve a real model, nor the other way round."""
    for clear in _caches:
        clear()
