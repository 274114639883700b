"""Measures of referring segmentation as functions of per-sentence areas: mIoU, oIoU and precision at IoU thresholds."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def ious(intersection: ArrayLike, union: ArrayLike) -> NDArray[np.float64]:
    """IoU of every case: intersection / union, and 0 where the union is empty.

    `intersection` and `union` are areas in pixels, both (N,). Raises ValueError where they differ in shape, or an
    intersection is negative or larger than its union.
    """
    inside = np.asarray(intersection, dtype=np.float64)
    around = np.asarray(union, dtype=np.float64)
    if inside.shape != around.shape or inside.ndim != 1:
        raise ValueError(f"intersection {inside.shape} and union {around.shape} must be two lists of one length")
    if np.any(inside < 0) or np.any(inside > around):
        raise ValueError("an intersection is negative or larger than its union")
    return np.divide(inside, around, out=np.zeros_like(inside), where=around > 0)


def summarise(intersection: ArrayLike, union: ArrayLike) -> dict[str, float]:
    """n, miou, oiou and pr50 .. pr90 of the cases, all but n as fractions in [0, 1].

    miou is the mean of the cases' IoUs, oiou the summed intersections over the summed unions (0 where they are empty),
    prT the fraction of cases whose IoU is strictly greater than T / 100. Raises ValueError where there are no cases.
    """
    scores = ious(intersection, union)
    if scores.size == 0:
        raise ValueError("no cases to summarise")
    # Areas are summed as integers: exact, and independent of the order of the cases.
    total, whole = (int(np.asarray(areas).astype(np.int64).sum()) for areas in (intersection, union))
    summary: dict[str, float] = {
        "n": int(scores.size),
        "miou": float(scores.mean()),
        "oiou": total / whole if whole else 0.0,
    }
    for threshold in PRECISION_THRESHOLDS:
        summary[f"pr{round(100 * threshold)}"] = float(np.mean(scores > threshold))
    return summary
