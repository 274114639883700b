"""The best score that a model can get: the targets themselves, at the size of the logits, taken back by the protocol.

Training shows the model its targets at the logits' size (nearest), and evaluation takes the logits to the image's size
(bicubic, then the inverse letterbox). What gets lost on the way no model wins back; the smaller the image, the more.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from wimfris.data.index import decode_mask
from wimfris.data.protocol import PROTOCOLS
from wimfris.metrics import summarise
from wimfris.settings.schema import Settings

SURE = 1e-4  # distance of a perfect model's probabilities from 0 and 1


def ceiling(settings: Settings, rows: pd.DataFrame) -> dict[str, float]:
    """mIoU, oIoU and precisions over the sentences of these index rows, where the logits are the resized target."""
    size, protocol = settings.data.image_size, PROTOCOLS[settings.evaluate.protocol]
    areas = []
    for row in rows.to_dict("records"):
        mask = decode_mask(row)
        target = protocol.target(mask)
        boxed = torch.from_numpy(protocol.mask(mask, size))[None, None]
        small = F.interpolate(boxed, size=(4 * settings.grid, 4 * settings.grid), mode="nearest")
        scores = protocol.scores(torch.logit(small, eps=SURE), size)[0]
        predicted = protocol.predicted(scores, mask.shape[0], mask.shape[1])
        case = (int((predicted & target).sum()), int((predicted | target).sum()))
        areas += [case] * len(row["sentences"])
    intersection, union = np.array(areas).T
    return summarise(intersection, union)
