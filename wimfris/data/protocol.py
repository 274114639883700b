"""Evaluation protocols by name: the input that the model sees, and the resolution at which its mask is scored.

| name | image | prediction | scored at |
|---|---|---|---|
| cris | letterboxed | probability > 0.35, mapped back to the image (bicubic) | the image's own size |
| lavt | squashed | argmax of the two classes at 480 x 480 | 480 x 480, with the target resized there (nearest) |
| remamber | squashed | as lavt, mapped back to the image (nearest) | the image's own size |

cris is the protocol of CRIS, ETRIS, DETRIS and WIMFRIS. lavt is that of LAVT (Yang et al. 2022, `test.py`), remamber
that of ReMamber (Yang et al. 2024, `engine.py`): they make our results comparable with rows of other papers. Both
ignore the image's aspect ratio. The input has the size and the normalisation of training, and the logits are resized to
480 x 480 as LAVT's decoder does (bilinear, align_corners=True). A logit above 0 is a probability above 0.5, which is
the argmax of two classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from wimfris.data.letterbox import (
    channels_first,
    input_probabilities,
    letterbox_image,
    letterbox_mask,
    original_probabilities,
)

CRIS_THRESHOLD = 0.35  # probability, from CRIS's evaluation
SQUASHED_SIDE = 480  # pixels: the image size of LAVT and ReMamber


@dataclass(frozen=True)
class Letterboxed:
    """Input with the image's aspect ratio, scored at the image's own size."""

    threshold: float  # probability above which a pixel belongs to the prediction

    at_original = True

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """Return an RGB image (H, W, 3) uint8 at input size, (3, size, size) uint8."""
        return letterbox_image(image, size)

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """Return a mask (H, W) at input size, (size, size) float32 in [0, 1]."""
        return letterbox_mask(mask, size)

    def scores(self, logits: torch.Tensor, size: int) -> np.ndarray:
        """Return logits (B, 1, h, w) as probabilities at input size, (B, size, size)."""
        return input_probabilities(logits, size)

    def predicted(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the mask of one sample's scores, (height, width) bool."""
        return original_probabilities(scores, height, width) > self.threshold

    def target(self, mask: np.ndarray) -> np.ndarray:
        """Return the target mask (height, width) as bool."""
        return mask.astype(bool)


@dataclass(frozen=True)
class Squashed:
    """Input without the image's aspect ratio, scored at the image's own size or at 480 x 480."""

    at_original: bool

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """Return an RGB image (H, W, 3) uint8 at input size, (3, size, size) uint8."""
        return channels_first(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)))

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """Return a mask (H, W) at input size, (size, size) float32 in [0, 1]."""
        full = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
        return np.asarray(full.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32) / np.float32(255)

    def scores(self, logits: torch.Tensor, size: int) -> np.ndarray:
        """Return logits (B, 1, h, w) resized to (B, 480, 480); the input size does not matter."""
        side = (SQUASHED_SIDE, SQUASHED_SIDE)
        scaled = F.interpolate(logits.detach().float(), size=side, mode="bilinear", align_corners=True)
        return scaled[:, 0].cpu().numpy()

    def predicted(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the mask of one sample's scores, (480, 480) or (height, width) bool."""
        if not self.at_original:
            return scores > 0
        back = F.interpolate(torch.from_numpy(scores)[None, None], size=(height, width), mode="nearest")
        return back[0, 0].numpy() > 0

    def target(self, mask: np.ndarray) -> np.ndarray:
        """Return the target mask (height, width) as bool, resized to (480, 480) where that is the scored size."""
        if self.at_original:
            return mask.astype(bool)
        side = (SQUASHED_SIDE, SQUASHED_SIDE)
        return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(side, Image.Resampling.NEAREST)) > 0


Protocol = Letterboxed | Squashed
PROTOCOLS: dict[str, Protocol] = {
    "cris": Letterboxed(CRIS_THRESHOLD),
    "lavt": Squashed(at_original=False),
    "remamber": Squashed(at_original=True),
}
