"""Predict the mask of a sentence in an image with a trained run."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from wimfris.data.protocol import PROTOCOLS
from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter
from wimfris.runs.files import RunFiles
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter
from wimfris.training.checkpoint import load_weights

OVERLAY = np.array([204, 0, 140])  # RGB colour of a prediction


@dataclass
class Predictor:
    """A trained run: its model in eval mode and its tokenizer."""

    settings: Settings
    segmenter: Segmenter
    tokenizer: Tokenizer

    @classmethod
    def load(cls, settings: Settings, run: str) -> "Predictor":
        """Load the run's weights on its frozen encoders, on the CPU.

        Raises UserError if the weights do not fit the encoders or the settings.
        """
        path = RunFiles(settings.outs / run).weights
        state, metadata = load_weights(path)
        tokenizer = load_tokenizer(settings)
        segmenter = build_segmenter(settings, tokenizer)
        for name, loaded in segmenter.encoders.items():
            if metadata.get(f"{name}_encoder") != loaded:
                raise UserError(f"{path}: was trained on another {name} encoder; train the run again with `dvc repro`")
        try:
            segmenter.load_trained(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path}: does not fit the settings ({str(error).splitlines()[0]}); "
                "train the run again with `dvc repro`"
            ) from None
        return cls(settings, segmenter.eval(), tokenizer)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """Return the mask (H, W) bool of a sentence in an RGB image (H, W, 3) uint8, letterboxed as in training.

        Raises UserError for a word that the tokenizer does not know.
        """
        size, protocol = self.settings.data.image_size, PROTOCOLS["cris"]
        token_ids = torch.from_numpy(self.tokenizer.encode(sentence))[None]
        logits = self.segmenter(torch.from_numpy(protocol.image(image, size))[None], token_ids).logits
        height, width = image.shape[:2]
        return protocol.predicted(protocol.scores(logits, size)[0], height, width)


def write_prediction(image: np.ndarray, mask: np.ndarray, mask_path: Path, overlay_path: Path) -> None:
    """Write the mask as a black and white PNG, and the image with the mask tinted and outlined."""
    tinted = np.where(mask[..., None], 0.5 * image + 0.5 * OVERLAY, image).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tinted, outline, -1, OVERLAY.tolist(), max(1, round(min(image.shape[:2]) / 300)))
    for path, picture in ((mask_path, mask.astype(np.uint8) * 255), (overlay_path, tinted[..., ::-1])):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), np.ascontiguousarray(picture)):
            raise UserError(f"{path}: cannot be written; name a PNG file in a writable folder")
