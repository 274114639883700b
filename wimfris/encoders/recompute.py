"""Gradient checkpointing (Chen et al., 2016): a layer keeps its inputs, and the rest is computed again in backward."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Context = Callable[[], AbstractContextManager[None]]


@partial(torch.compiler.disable, recursive=False)  # a compiled model has its layers compiled, and this around them
def recompute(layer: Callable[..., Tensor], *inputs: Any, within: Context | None = None, **options: Any) -> Tensor:
    """layer(*inputs, **options), computed a second time in backward under `within`, with the same dropout and autocast.

    What of the state of the layer changes between its pass and backward, or would change twice, `within` has to set as
    it was; it is entered anew for every backward.
    """
    contexts = (nullcontext(), _EachTime(within or nullcontext))
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: contexts, **options)


class _EachTime:
    """A context of a factory each time that it is entered: a graph that is retained is recomputed more than once."""

    def __init__(self, make: Context) -> None:
        self.make = make
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self.make()
        context.__enter__()
        self.entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self.entered.pop().__exit__(kind, error, trace)


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, batch norms count nothing: their running statistics are at its end what they were."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    kept = [(value, value.clone()) for norm in norms for value in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
