"""The letterbox: image and mask to the encoder's square input, and logits back to a mask of the original image.

The protocol is that of CRIS and DETRIS: the image is scaled to fit, centred, and padded with CLIP's mean colour.
Coordinates are pixels in cv2's convention (x right, y down).
"""

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional

# RGB mean and standard deviation of CLIP's training images (openai/CLIP, clip.py, `Normalize`).
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])
WHITE = 255  # of 8-bit images and masks


class Geometry(NamedTuple):
    """The affine maps, (2, 3) float64, from the original's coordinates to the input's (forward) and back (inverse)."""

    forward: np.ndarray
    inverse: np.ndarray


def geometry(height: int, width: int, size: int) -> Geometry:
    """Scale (height, width) by min(size / height, size / width) and centre it in (size, size)."""
    scale = min(size / height, size / width)
    left, top = (size - width * scale) / 2, (size - height * scale) / 2
    # Both matrices come from float32 corner points, as in CRIS. The analytic ones differ by 1e-6, which changes single
    # pixels.
    original = np.array([[0, 0], [width, 0], [0, height]], dtype=np.float32)
    corners = [[left, top], [width * scale + left, top], [left, height * scale + top]]
    boxed = np.array(corners, dtype=np.float32)
    forward, inverse = cv2.getAffineTransform(original, boxed), cv2.getAffineTransform(boxed, original)
    return Geometry(np.asarray(forward), np.asarray(inverse))


def letterbox_image(image: np.ndarray, size: int) -> np.ndarray:
    """Return an RGB image (H, W, 3) uint8 at input size: (3, size, size) uint8; `normalise` makes the input of it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an RGB image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    place = geometry(image.shape[0], image.shape[1], size)
    border = [float(value) for value in CLIP_MEAN * WHITE]
    boxed = cv2.warpAffine(image, place.forward, (size, size), flags=cv2.INTER_CUBIC, borderValue=border)
    return channels_first(np.asarray(boxed))


def channels_first(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) as (3, H, W), contiguous."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def normalise(image: torch.Tensor) -> torch.Tensor:
    """Normalise RGB (..., 3, H, W) uint8 by CLIP's mean and standard deviation to float32, on its device.

    Every device gives the same bits.
    """
    white, mean, std = _normalisation(image.device)
    return (image.float() / white - mean) / std


def fraction(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask in uint8, 255 inside, as float32 in [0, 1], on its device."""
    return mask.float() / _normalisation(mask.device)[0]


@cache
def _normalisation(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return white, mean and standard deviation on a device.

    White is a tensor too: CUDA multiplies by the reciprocal of a number, which rounds differently from a division.
    """
    white = torch.tensor(WHITE, dtype=torch.float32, device=device)
    return white, *(torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))


def letterbox_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask (H, W) at input size: (size, size) float32 in [0, 1], with soft edges."""
    return letterbox_mask_uint8(mask, size).astype(np.float32) / np.float32(WHITE)


def letterbox_mask_uint8(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask (H, W) at input size: (size, size) uint8, 255 inside, with soft edges."""
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got {mask.shape}")
    place = geometry(mask.shape[0], mask.shape[1], size)
    # CRIS warps 8-bit masks.
    full = np.where(mask, np.uint8(WHITE), np.uint8(0))
    boxed = cv2.warpAffine(full, place.forward, (size, size), flags=cv2.INTER_LINEAR, borderValue=[0.0])
    return np.asarray(boxed)


def input_probabilities(logits: torch.Tensor, size: int) -> np.ndarray:
    """Return logits (B, 1, h, w) as probabilities at input size, (B, size, size).

    Bicubic interpolation takes some of them slightly outside [0, 1].
    """
    probabilities = torch.sigmoid(logits.detach().float())
    # align_corners=False would change hundreds of pixels of a prediction.
    scaled = functional.interpolate(probabilities, size=(size, size), mode="bicubic", align_corners=True)
    return scaled[:, 0].cpu().numpy()


def original_probabilities(probabilities: np.ndarray, height: int, width: int) -> np.ndarray:
    """Map probabilities (size, size) at input size back to the original image: (height, width) float32."""
    place = geometry(height, width, probabilities.shape[0])
    back = cv2.warpAffine(probabilities, place.inverse, (width, height), flags=cv2.INTER_CUBIC, borderValue=[0.0])
    return np.asarray(back)
