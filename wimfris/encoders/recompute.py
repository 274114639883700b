"""Gradient checkpointing (Chen et al., 2016): a layer stores its inputs only and is computed again in backward."""

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


@partial(torch.compiler.disable, recursive=False)  # the layer is compiled, this wrapper is not
def recompute(layer: Callable[..., Tensor], *inputs: Any, within: Context | None = None, **options: Any) -> Tensor:
    """Return layer(*inputs, **options), and compute it again in backward, with the same dropout and autocast.

    `within` makes the context of the second computation, anew for every backward. It must restore whatever state of the
    layer has changed since forward, and undo what would otherwise change twice.
    """
    contexts = (nullcontext(), _FreshContext(within or nullcontext))
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: contexts, **options)


class _FreshContext:
    """Enters a new context each time, because a retained graph is recomputed more than once."""

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
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Restore the running statistics of the module's batch norms when the block ends."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    saved = [(value, value.clone()) for norm in norms for value in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, before in saved:
                value.copy_(before)
