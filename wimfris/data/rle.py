"""Masks as COCO run lengths: encode, decode and compare them.

A mask of a (height, width) image is a string of compressed run lengths, counted column by column (pycocotools' format).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


class SegmentationError(Exception):
    """Raised for a COCO segmentation that is not a mask of its image."""


def encode_segmentation(segmentation: Any, height: int, width: int) -> str:
    """Return a COCO segmentation as the compressed run lengths of one (height, width) mask.

    `segmentation` is a list of polygons, whose union is taken, or {"size", "counts"} where counts is a list of run
    lengths or a compressed string. Raises SegmentationError, with the reason, for anything else.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise SegmentationError("neither polygons nor run lengths")
    if segmentation.get("size") != [height, width]:
        raise SegmentationError(f"run lengths have size {segmentation.get('size')}, the image {[height, width]}")
    counts = segmentation["counts"]
    runs: list[Any] = _decompress(counts) if isinstance(counts, str) else counts
    # pycocotools leaves pixels that no run covers uninitialised.
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise SegmentationError(f"run lengths do not cover the {height * width} pixels of the image")
    if isinstance(counts, str):
        return counts
    return _as_text(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"])


def decode_rle(counts: str, height: int, width: int) -> np.ndarray:
    """Return the (height, width) uint8 mask of zeros and ones of compressed run lengths."""
    return np.asarray(coco_mask.decode(_as_coco(counts, height, width)), dtype=np.uint8)


def encode_mask(mask: np.ndarray) -> str:
    """Return a bool mask (height, width) as compressed run lengths."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def mask_area(counts: str, height: int, width: int) -> int:
    """Return the number of mask pixels of compressed run lengths."""
    return int(coco_mask.area(_as_coco(counts, height, width)))


def pairwise_iou(left: Sequence[str], right: Sequence[str], height: int, width: int) -> np.ndarray:
    """Return the (len(left), len(right)) float64 IoUs of two lists of masks of one image; 0 for two empty masks."""
    if not left or not right:
        return np.zeros((len(left), len(right)))
    rles = [[_as_coco(counts, height, width) for counts in side] for side in (left, right)]
    return np.asarray(coco_mask.iou(*rles, [0] * len(right)), dtype=np.float64)


def merge_masks(masks: Sequence[str], height: int, width: int) -> str:
    """Return the union of masks of one image as compressed run lengths; without masks, the empty mask."""
    if len(masks) == 1:
        return masks[0]
    empty = {"size": [height, width], "counts": [height * width]}
    rles = [_as_coco(counts, height, width) for counts in masks]
    return _as_text((coco_mask.merge(rles) if rles else coco_mask.frPyObjects(empty, height, width))["counts"])


def short_polygons(segmentation: Any) -> int:
    """Return how many polygons have fewer than three points, so that `encode_segmentation` leaves them out."""
    return sum(len(polygon) < 6 for polygon in segmentation) if isinstance(segmentation, list) else 0


def _encode_polygons(segmentation: list[Any], height: int, width: int) -> str:
    if not all(isinstance(polygon, list) for polygon in segmentation):
        raise SegmentationError("a polygon is no list of coordinates")
    for polygon in segmentation:
        _check_polygon(polygon, height, width)
    # Fewer than three points enclose nothing, and pycocotools would read a first polygon of four numbers as a box.
    polygons = [[float(x) for x in polygon] for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        raise SegmentationError("no polygon has three points")
    return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"])


def _check_polygon(polygon: list[Any], height: int, width: int) -> None:
    """Raise SegmentationError for coordinates that pycocotools does not survive, or reads as something else."""
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in polygon):
        raise SegmentationError("a polygon holds something other than numbers")
    if len(polygon) % 2:
        raise SegmentationError(f"a polygon has an odd number of coordinates ({len(polygon)})")
    sides = (width, height) * (len(polygon) // 2)
    outside = [x for x, side in zip(polygon, sides, strict=True) if not (math.isfinite(x) and -side <= x <= 2 * side)]
    if outside:
        worst = next((x for x in outside if not math.isfinite(x)), max(outside, key=abs))
        raise SegmentationError(f"coordinate {worst:g} lies far outside the image of {width} x {height} pixels")


def _decompress(counts: str) -> list[int]:
    """Return the run lengths of COCO's compressed string.

    Each number is little-endian in characters of 5 bits and a continuation bit, offset by 48, and sign-extended. From
    the fourth number on it is the difference to the number two places before (maskApi.c, rleFrString).
    """
    runs: list[int] = []
    value = shift = 0
    more = False
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise SegmentationError("compressed run lengths have an invalid character")
        value |= (code & 0x1F) << shift
        shift += 5
        more = bool(code & 0x20)
        if more:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if more:
        raise SegmentationError("compressed run lengths are truncated")
    return runs


def _as_coco(counts: str, height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": counts.encode("ascii")}


def _as_text(counts: bytes | str) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")
