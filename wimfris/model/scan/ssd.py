"""The scan of Mamba-2 (Dao & Gu, 2024), state-space duality: a matrix product within a chunk, states between chunks.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t^T        y_t = C_t h_t + D x_t

with one decay a head and delta = softplus(delta + delta_bias). Within a chunk, y = (L * C B^T) (delta x), where L_ij is
the decay from token j to token i. All steps are matrix products, also the sums of the decays: a running sum of floats
has no deterministic CUDA kernel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # tokens of a chunk, at most: products within a chunk grow with it, those between chunks with their number


def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Scan x (batch, L, H, P), delta (batch, L, H), B, C (batch, L, G, N), A, D, delta_bias (H,) -> x's shape.

    G groups of heads share B and C. The state has A's precision, and the output x's dtype.
    """
    state, groups = A.dtype, B.shape[2]
    with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):  # there is none for meta tensors
        inputs = x.to(state)
        delta = F.softplus(delta.to(state) + delta_bias)
        drive, logs = inputs * delta[..., None], delta * A
        by_group = (drive.unflatten(2, (groups, -1)), logs.unflatten(2, (groups, -1)))
        y = _scan(*by_group, B.to(state), C.to(state)).flatten(2, 3)
        return (y + D[:, None] * inputs).to(x.dtype)


def _scan(drive: Tensor, logs: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan drive (n, L, G, R, P), logs of the decay (n, L, G, R), B, C (n, L, G, N) -> (n, L, G, R, P)."""
    length = drive.shape[1]
    chunks = -(-length // CHUNK)
    size = -(-length // chunks)

    def cut(part: Tensor) -> Tensor:
        """(n, L, ...) -> (n, chunks, ..., size, last): the last chunk is filled with tokens that change nothing."""
        blank = part.new_zeros(part.shape[0], chunks * size - length, *part.shape[2:])
        return torch.cat([part, blank], dim=1).unflatten(1, (chunks, size)).movedim(2, -2)

    drive, B, C = cut(drive), cut(B)[:, :, :, None], cut(C)[:, :, :, None]  # B and C for all R heads of a group
    logs = cut(logs[..., None])[..., 0]  # (n, chunks, G, R, size)
    decay = segment_decay(logs)
    y = (C @ B.mT * decay) @ drive
    if chunks > 1:
        states = B.mT @ (decay[..., -1, :, None] * drive)  # what each chunk adds, at its end: (n, chunks, G, R, N, P)
        between = segment_decay(logs.sum(-1).movedim(1, -1)).movedim((-2, -1), (1, 2))  # (n, chunks, chunks, G, R)
        ends = torch.einsum("nijgr,njgrab->nigrab", between, states)
        before = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
        from_start = decay[..., 0] * logs[..., :1].exp()
        y = y + from_start[..., None] * (C @ before)
    return y.movedim(-2, 2).flatten(1, 2)[:, :length]


def segment_decay(logs: Tensor) -> Tensor:
    """Return exp of the sum of logs over j < k <= i, 0 where j > i: (..., L) -> (..., L, L).

    The sums are a product of triangular matrices. A difference of running sums would lose digits.
    """
    lower = logs.new_ones(logs.shape[-1], logs.shape[-1]).tril()
    return ((logs[..., None, :] * lower) @ lower.tril(-1)).exp() * lower
