"""Evaluation protocols by name: how the model is shown an image, and where its mask is judged.

| name | image | predicted where | judged at |
|---|---|---|---|
| cris | letterboxed | probability > 0.35, taken back to the image (bicubic) | the image's own size |
| lavt | squashed | argmax of the two classes at 480 x 480 | 480 x 480, the target brought there with nearest |
| remamber | squashed | the same, taken back to the image with nearest | the image's own size |

cris is the protocol of CRIS, ETRIS, DETRIS and WIMFRIS. lavt is that of LAVT (Yang et al. 2022, `test.py`), remamber
that of ReMamber (Yang et al. 2024, `engine.py`): to compare rows of other papers like with like. Both show the image
without its aspect ratio; a model is shown it at the size it was trained with, normalised as it was trained, and its
logits are brought to 480 x 480 as LAVT's decoder does (bilinear, align_corners=True). A logit above 0 is the argmax of
two classes and a probability above 0.5.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from wimfris.data.letterbox import (
    CRIS_THRESHOLD,
    input_probabilities,
    letterbox_image,
    letterbox_mask,
    normalise,
    original_probabilities,
)

SQUASHED_SIDE = 480  # pixels: the image size of LAVT and ReMamber


@dataclass(frozen=True)
class Letterboxed:
    """The aspect ratio is kept; judged at the image's own size."""

    threshold: float  # probability above which a pixel is predicted

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """RGB (H, W, 3) uint8 -> what the model sees, (3, size, size) float32."""
        return letterbox_image(image, size)

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A mask (H, W) as it lies in what the model sees: (size, size) float32 in [0, 1]."""
        return letterbox_mask(mask, size)

    def scores(self, logits: torch.Tensor, size: int) -> np.ndarray:
        """Logits (B, 1, h, w) of inputs of this size -> one map a sample: probabilities (B, size, size)."""
        return input_probabilities(logits, size)

    def predicted(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """One map of `scores` -> the predicted mask where it is judged: (height, width) bool."""
        return original_probabilities(scores, height, width) > self.threshold

    def target(self, mask: np.ndarray) -> np.ndarray:
        """The mask (height, width) where it is judged: as it is, bool."""
        return mask.astype(bool)


@dataclass(frozen=True)
class Squashed:
    """The aspect ratio is lost; judged at the image's own size, or at 480 x 480."""

    at_original: bool

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """RGB (H, W, 3) uint8 -> what the model sees, (3, size, size) float32."""
        return normalise(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)))

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A mask (H, W) as it lies in what the model sees: (size, size) float32 in [0, 1]."""
        full = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
        return np.asarray(full.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32) / np.float32(255)

    def scores(self, logits: torch.Tensor, size: int) -> np.ndarray:
        """Logits (B, 1, h, w) of inputs of this size -> one map a sample: logits (B, 480, 480)."""
        side = (SQUASHED_SIDE, SQUASHED_SIDE)
        scaled = F.interpolate(logits.detach().float(), size=side, mode="bilinear", align_corners=True)
        return scaled[:, 0].cpu().numpy()

    def predicted(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """One map of `scores` -> the predicted mask where it is judged: (480, 480) or (height, width) bool."""
        if not self.at_original:
            return scores > 0
        back = F.interpolate(torch.from_numpy(scores)[None, None], size=(height, width), mode="nearest")
        return back[0, 0].numpy() > 0

    def target(self, mask: np.ndarray) -> np.ndarray:
        """The mask (height, width) where it is judged: as it is, or with nearest at (480, 480); bool."""
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
