"""The chunk lengths and the memory layout that the backends share."""

from torch import Tensor

CPU_CHUNK = 32  # tokens between two saved states
GPU_CHUNK = 16  # the same in Triton, counted from a sequence's second token


def saved_states(length: int, backend: str) -> int:
    """Return how many states of a sequence the forward saves for the backward."""
    return max(length - 2, 0) // GPU_CHUNK if backend == "triton" else (length - 1) // CPU_CHUNK


def evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    """Return x (batch, L, width) with all tokens at one distance and channels side by side, and that distance.

    x is copied only where it must be.
    """
    step = x.stride(1)
    if x.is_contiguous():
        step = x.shape[2]  # the stride of a dimension of size 1 can be anything
    elif x.stride(2) != 1 or x.stride(0) != x.shape[1] * step or step < x.shape[2]:
        x, step = x.contiguous(), x.shape[2]
    return x, step
