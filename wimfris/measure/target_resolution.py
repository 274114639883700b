"""Score the true masks without a model: drawn at the resolution of the logits, and taken back as in evaluation.

Evaluation takes the logits to the size of the image (bicubic, then the inverse letterbox). Each way of drawing a target
at the size of the logits gives a score. Only the fitted logits come near a bound; training with targets sampled by
nearest aims at the lowest of these scores.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.data.audit import random_object_miou
from wimfris.data.index import decode_mask
from wimfris.data.protocol import CRIS_THRESHOLD, PROTOCOLS
from wimfris.metrics import summarise
from wimfris.settings.schema import Settings

GUESS = "a random object"
SURE = 1e-4  # distance of the probabilities from 0 and 1
FIT_STEPS, SHARPNESS = 60, 20.0


def _nearest(boxed: Tensor, size: int) -> Tensor:
    return torch.logit(F.interpolate(boxed, size=(size, size), mode="nearest"), eps=SURE)


def _area(boxed: Tensor, size: int) -> Tensor:
    return torch.logit(F.interpolate(boxed, size=(size, size), mode="area"), eps=SURE)


def _bilinear(boxed: Tensor, size: int) -> Tensor:
    """Sample bilinearly with aligned corners, which is how the evaluation takes the cells back."""
    small = F.interpolate(boxed, size=(size, size), mode="bilinear", align_corners=True)
    return torch.logit(small, eps=SURE)


def _fitted(boxed: Tensor, size: int) -> Tensor:
    """Fit the logits, so that protocol cris's threshold of their bicubic map parts target and background."""
    logits = _bilinear(boxed, size).clamp(-3, 3).requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        full = F.interpolate(torch.sigmoid(logits), size=boxed.shape[-2:], mode="bicubic", align_corners=True)
        value = F.binary_cross_entropy_with_logits(SHARPNESS * (full - CRIS_THRESHOLD), (boxed > 0.5).float())
        value.backward()
        return value

    optimiser.step(loss)
    return logits.detach()


WAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nearest": _nearest,
    "area (means)": _area,
    "aligned bilinear": _bilinear,
    "fitted logits": _fitted,
}
"""How a target is drawn: (1, 1, S, S) in [0, 1] and the size of the logits -> logits (1, 1, size, size)."""


def ceiling(settings: Settings, rows: pd.DataFrame, way: str = "nearest") -> dict[str, float]:
    """Return mIoU, oIoU and precisions over the sentences of these index rows, with the target drawn in one of `WAYS`
    as logits.
    """
    size, protocol = settings.data.image_size, PROTOCOLS[settings.evaluate.protocol]
    areas = []
    for row in rows.to_dict("records"):
        mask = decode_mask(row)
        target = protocol.target(mask)
        boxed = torch.from_numpy(protocol.mask(mask, size))[None, None].float()
        scores = protocol.scores(WAYS[way](boxed, 4 * settings.grid), size)[0]
        predicted = protocol.predicted(scores, mask.shape[0], mask.shape[1])
        case = (int((predicted & target).sum()), int((predicted | target).sum()))
        areas += [case] * len(row["sentences"])
    intersection, union = np.array(areas).T
    return summarise(intersection, union)


def scores_without_model(settings: Settings, index: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of each split: of a guess, and of the true masks drawn in each of `WAYS`.

    Columns: split, mask, n (sentences), mIoU, oIoU and precisions as fractions. The guess is one of the image's
    annotated objects, picked uniformly at random, with a perfect mask. It has an expected mIoU alone.
    """
    rows: list[dict[str, object]] = []
    for split in settings.data.splits:
        part = index[index["split"] == split]
        sentences = int(part["sentences"].map(len).sum())
        rows.append({"split": split, "mask": GUESS, "n": sentences, "miou": random_object_miou(part)})
        rows += [{"split": split, "mask": way, **ceiling(settings, part, way)} for way in WAYS]
    return pd.DataFrame(rows).astype({"n": int})
