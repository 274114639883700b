"""Pictures of a prediction."""

from pathlib import Path

import cv2
import numpy as np

from wimfris.errors import UserError
from wimfris.files import replacing

OVERLAY = np.array([204, 0, 140])  # RGB colour of a prediction


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the RGB image (H, W, 3) uint8 with the mask (H, W) bool tinted and outlined."""
    tinted = np.where(mask[..., None], 0.5 * image + 0.5 * OVERLAY, image).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tinted, outline, -1, OVERLAY.tolist(), max(1, round(min(image.shape[:2]) / 300)))
    return tinted


def write_prediction(image: np.ndarray, mask: np.ndarray, mask_path: Path, overlay_path: Path) -> None:
    """Write the mask as a black and white PNG, and the image with the mask tinted and outlined."""
    for path, picture in (
        (mask_path, mask.astype(np.uint8) * 255),
        (overlay_path, draw_overlay(image, mask)[..., ::-1]),
    ):
        write_png(picture, path)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a grey (H, W) or BGR (H, W, 3) uint8 picture. Raises UserError where the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(cv2.imencode(".png", np.ascontiguousarray(picture))[1].tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a writable folder with --out") from None
