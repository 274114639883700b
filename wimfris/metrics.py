"""Metrics of referring segmentation from areas per sentence: mIoU, oIoU, precisions, and gRefCOCO's measures."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NO_TARGET_PIXELS = 50  # a smaller prediction says that the sentence names nothing (Liu et al. 2023, GRES)


def ious(intersection: ArrayLike, union: ArrayLike) -> NDArray[np.float64]:
    """Return the IoU of every case, (N,): intersection / union, or 0 for an empty union.

    `intersection` and `union` are areas in pixels, both (N,). Raises ValueError if their shapes differ, or if an
    intersection is negative or larger than its union.
    """
    inside = np.asarray(intersection, dtype=np.float64)
    around = np.asarray(union, dtype=np.float64)
    if inside.shape != around.shape or inside.ndim != 1:
        raise ValueError(f"intersection and union must be (N,) of one length, got {inside.shape} and {around.shape}")
    if np.any(inside < 0) or np.any(inside > around):
        raise ValueError("an intersection must be at least 0 and at most its union")
    return np.divide(inside, around, out=np.zeros_like(inside), where=around > 0)


def summarise(intersection: ArrayLike, union: ArrayLike) -> dict[str, float]:
    """Return n, miou, oiou and pr50 .. pr90 of the cases, all but n as fractions in [0, 1].

    miou is the mean IoU of the cases, oiou the sum of intersections over the sum of unions (0 if that is empty), prT
    the fraction of cases with an IoU strictly above T / 100. Raises ValueError without cases.
    """
    scores = ious(intersection, union)
    if scores.size == 0:
        raise ValueError("no cases to summarise")
    # Integer sums are exact and do not depend on the order of the cases.
    total, whole = (int(np.asarray(areas).astype(np.int64).sum()) for areas in (intersection, union))
    summary: dict[str, float] = {
        "n": int(scores.size),
        "miou": float(scores.mean()),
        "oiou": total / whole if whole else 0.0,
    }
    for threshold in PRECISION_THRESHOLDS:
        summary[f"pr{round(100 * threshold)}"] = float(np.mean(scores > threshold))
    return summary


def summarise_generalised(intersection: ArrayLike, union: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """Return gRefCOCO's measures of cases of which some name nothing, as fractions (Liu et al. 2023, GRES).

    giou is the mean IoU of the cases, ciou the sum of intersections over the sum of unions, n_acc the fraction of cases
    without a target that the prediction recognises as such, and t_acc that of the others. A case without a target
    counts as IoU 1, and adds nothing to ciou, where the prediction says that there is none; with a target such a
    prediction counts as IoU 0. `target` is the area of the true mask in the pixels of the other two. n_acc and t_acc
    are NaN without such cases.
    """
    inside, around, area = (np.asarray(areas, dtype=np.int64) for areas in (intersection, union, target))
    scores = ious(inside, around)
    none, says_none = area == 0, around + inside - area < NO_TARGET_PIXELS
    scores = np.where(none, says_none, np.where(says_none, 0, scores))
    whole = int(around[~(none & says_none)].sum())
    return {
        "giou": float(scores.mean()),
        "ciou": int(inside[~says_none].sum()) / whole if whole else 0.0,
        "n_acc": float(np.mean(says_none[none])) if none.any() else float("nan"),
        "t_acc": float(np.mean(~says_none[~none])) if not none.all() else float("nan"),
    }
