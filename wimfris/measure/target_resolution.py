"""The score of the targets themselves: resized to the logits as in training, and taken back as in evaluation.

Training resizes the targets to the size of the logits (nearest); evaluation takes the logits to the size of the image
(bicubic, then the inverse letterbox). The score is what this resizing costs, the more the smaller the image. It is no
upper bound: logits that are fitted to the target at its own size score higher.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from wimfris.data.index import decode_mask
from wimfris.data.protocol import PROTOCOLS
from wimfris.metrics import summarise
from wimfris.settings.schema import Settings

SURE = 1e-4  # distance of the probabilities from 0 and 1


def ceiling(settings: Settings, rows: pd.DataFrame) -> dict[str, float]:
    """Return mIoU, oIoU and precisions over the sentences of these index rows, with the resized target as logits."""
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
