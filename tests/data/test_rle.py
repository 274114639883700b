"""Masks as COCO run lengths: both forms round-trip, and other segmentations are refused with the reason."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from wimfris.data.rle import SegmentationError, decode_rle, encode_segmentation, mask_area, pairwise_iou

MASKS = npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


@given(MASKS)
def test_both_run_length_forms_give_the_mask_back(mask: np.ndarray) -> None:
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    column_major = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(column_major)) + 1
    runs = np.diff([0, *edges, mask.size]).tolist()
    if column_major[0]:
        runs = [0, *runs]
    for counts in (compressed, runs):
        encoded = encode_segmentation({"size": [height, width], "counts": counts}, height, width)
        assert np.array_equal(decode_rle(encoded, height, width), mask)
        assert mask_area(encoded, height, width) == mask.sum()


@given(MASKS, st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=12))
def test_run_lengths_that_do_not_cover_the_image_are_refused(mask: np.ndarray, text: str) -> None:
    height, width = mask.shape
    try:
        encoded = encode_segmentation({"size": [height, width], "counts": text}, height, width)
    except SegmentationError:
        return
    assert decode_rle(encoded, height, width).max() <= 1  # uninitialised pixels would be larger


def test_polygons_are_a_union() -> None:
    left, right = [0, 0, 6, 0, 6, 8, 0, 8], [4, 0, 10, 0, 10, 8, 4, 8]
    both = decode_rle(encode_segmentation([left, right], 8, 12), 8, 12)
    parts = [decode_rle(encode_segmentation([polygon], 8, 12), 8, 12) for polygon in (left, right)]
    assert both.max() == 1
    assert np.array_equal(both, parts[0] | parts[1])
    assert both.sum() == 80
    # Four numbers are two points, which enclose nothing; they are not a box.
    assert np.array_equal(decode_rle(encode_segmentation([[0, 0, 12, 8], left], 8, 12), 8, 12), parts[0])


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "neither"),
        ({"size": [4, 5]}, "neither"),
        ([], "no polygon"),
        ([[1, 2, 3, 4]], "no polygon"),
        ([["a"] * 6], "numbers"),
        ({"size": [5, 4], "counts": [20]}, "size"),
        ({"size": [4, 5], "counts": [19]}, "cover the 20 pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "cover"),
        ({"size": [4, 5], "counts": "P"}, "truncated"),
        ({"size": [4, 5], "counts": "é"}, "invalid character"),
    ],
)
def test_a_segmentation_that_is_not_a_mask_is_refused_with_the_reason(segmentation: Any, reason: str) -> None:
    with pytest.raises(SegmentationError, match=reason):
        encode_segmentation(segmentation, 4, 5)


def test_pairwise_iou_is_that_of_the_pixels() -> None:
    masks = np.random.default_rng(0).random((4, 9, 7)) < 0.5
    masks[3] = False
    counts = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"].decode() for m in masks]
    union = (masks[:, None] | masks[None]).sum((2, 3))
    expected = (masks[:, None] & masks[None]).sum((2, 3)) / np.maximum(union, 1)
    assert np.allclose(pairwise_iou(counts, counts, 9, 7), expected)
    assert pairwise_iou([], counts, 9, 7).shape == (0, 4)
