"""Pictures of a prediction."""

from pathlib import Path

import cv2
import numpy as np

from wimfris.files import replacing

OUTLINE = (255, 64, 200)  # RGB
DIMMED = 0.4  # brightness outside the mask
SMALL, SHOWN = 128, 6  # a picture of fewer pixels a side is shown this many times larger


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the RGB image (H, W, 3) uint8 with the mask (H, W) bool outlined and everything else dimmed."""
    if not mask.any():
        return image.copy()
    drawn = np.where(mask[..., None], image, DIMMED * image).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outline, -1, OUTLINE, max(1, round(min(image.shape[:2]) / 150)))
    return drawn


def enlarged(image: np.ndarray, mask: np.ndarray, factor: int = SHOWN) -> np.ndarray:
    """Return the overlay of a mask (H, W) on an image (H, W, 3), both enlarged by a whole factor."""
    size = (factor * image.shape[1], factor * image.shape[0])
    large = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    return draw_overlay(large, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool))


def write_prediction(image: np.ndarray, mask: np.ndarray, mask_path: Path, overlay_path: Path) -> None:
    """Write the mask as a black and white PNG, and the image with the mask outlined and the rest dimmed; a small image
    is enlarged.
    """
    write_png(mask.astype(np.uint8) * 255, mask_path)
    factor = SHOWN if max(image.shape[:2]) < SMALL else 1
    write_png(enlarged(image, mask, factor)[..., ::-1], overlay_path)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a grey (H, W) or BGR (H, W, 3) uint8 picture. Raises UserError where the path cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", np.ascontiguousarray(picture))[1].tobytes())
