"""The best score that a model can get: the targets themselves, at the size of the logits, taken back by the protocol.

Training shows the model its targets at the logits' size (nearest), and evaluation takes the logits to the image's size
(bicubic, then the inverse letterbox). What gets lost on the way no model wins back; the smaller the image, the more.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from wimfris.data.index import decode_mask
from wimfris.data.letterbox import letterbox_mask, predicted_mask
from wimfris.evaluate import THRESHOLDS
from wimfris.metrics import summarise
from wimfris.params import Settings

SURE = 1e-4  # distance of a perfect model's probabilities from 0 and 1


def ceiling(settings: Settings, rows: pd.DataFrame) -> dict[str, float]:
    """mIoU, oIoU and precisions over the sentences of these index rows, where the logits are the resized target."""
    size, threshold = settings.data.image_size, THRESHOLDS[settings.evaluate.protocol]
    areas = []
    for row in rows.to_dict("records"):
        target = decode_mask(row).astype(bool)
        boxed = torch.from_numpy(letterbox_mask(target, size))[None, None]
        small = F.interpolate(boxed, size=(4 * settings.grid, 4 * settings.grid), mode="nearest")
        logits = torch.logit(small, eps=SURE)[0, 0]
        predicted = predicted_mask(logits, target.shape[0], target.shape[1], size, threshold)
        case = (int((predicted & target).sum()), int((predicted | target).sum()))
        areas += [case] * len(row["sentences"])
    intersection, union = np.array(areas).T
    return summarise(intersection, union)
