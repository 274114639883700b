"""The annotated objects of every image: which of them does a predicted mask overlap most?

Stage `prepare` writes them as objects.parquet beside the index, whose hash they do not change. A crowd annotation
(`iscrowd`) is a region of many objects, so it counts as an object only if a reference names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from wimfris.data.refer import ReferredObject
from wimfris.data.rle import decode_rle, encode_mask, pairwise_iou
from wimfris.errors import UserError

if TYPE_CHECKING:  # it imports torch, which the index does without
    from wimfris.data.protocol import Protocol

OBJECTS = "objects.parquet"
"""The file's name, in the folder of the index."""

NO_OBJECT = -1
"""The annotation id of a prediction that overlaps no object."""

OBJECT_COLUMNS: Mapping[str, str] = {
    "dataset": "str",
    "image_id": "int64",
    "ann_id": "int64",
    "category": "str",
    "rle_counts": "str",  # compressed COCO run lengths, of the image's size
}


@dataclass(frozen=True)
class Candidates:
    """The objects of one image at the size at which a protocol judges, and those that one reference names."""

    ann_ids: tuple[int, ...]
    masks: tuple[str, ...]  # compressed run lengths
    targets: frozenset[int]
    distractors: int  # objects of a target's class that are no target

    def best(self, counts: str, height: int, width: int) -> dict[str, Any]:
        """Return the object with the highest IoU for a predicted mask of this size: the records' columns of objects.

        `best_object` is its annotation id, `NO_OBJECT` without overlap; `right_object` says whether it is a target. Of
        objects with equal IoU a target counts as the best.
        """
        overlaps = pairwise_iou([counts], self.masks, height, width).ravel()
        best_iou = float(overlaps.max(initial=0.0))
        tied = [ann_id for ann_id, iou in zip(self.ann_ids, overlaps, strict=True) if iou == best_iou > 0]
        best = next((ann_id for ann_id in tied if ann_id in self.targets), tied[0] if tied else NO_OBJECT)
        return {
            "best_object": best,
            "best_iou": best_iou,
            "right_object": best in self.targets,
            "distractors": self.distractors,
        }


class ImageObjects:
    """The objects of many images, from `read_objects`, as a protocol judges them."""

    def __init__(self, objects: pd.DataFrame, protocol: "Protocol") -> None:
        self._images: dict[Any, list[Mapping[Any, Any]]] = {}
        for row in objects.to_dict("records"):
            self._images.setdefault((row["dataset"], row["image_id"]), []).append(row)
        self._protocol = protocol
        self._masks = lru_cache(maxsize=2)(self._judged_masks)  # references of one image mostly follow each other

    def candidates(self, row: Mapping[Any, Any]) -> Candidates:
        """Return what the predictions for a row of the index are compared with."""
        key = row["dataset"], row["image_id"]
        objects, targets = self._images.get(key, []), frozenset(row["ann_ids"])
        classes = {one["category"] for one in objects if one["ann_id"] in targets}
        others = [one for one in objects if one["category"] in classes and one["ann_id"] not in targets]
        masks = self._masks(key, int(row["height"]), int(row["width"]))
        return Candidates(tuple(one["ann_id"] for one in objects), masks, targets, len(others))

    def _judged_masks(self, key: Any, height: int, width: int) -> tuple[str, ...]:
        masks = [one["rle_counts"] for one in self._images.get(key, [])]
        if self._protocol.at_original:
            return tuple(masks)
        return tuple(encode_mask(self._protocol.target(decode_rle(counts, height, width))) for counts in masks)


def objects_table(objects: Sequence[ReferredObject]) -> pd.DataFrame:
    """Return `OBJECT_COLUMNS`, one row per annotated object of the images of these referred objects."""
    images = {(o.dataset, o.image_id): o.image_objects for o in objects}
    rows = [
        (dataset, image_id, one.ann_id, one.category, one.rle_counts)
        for (dataset, image_id), others in images.items()
        for one in others
    ]
    return pd.DataFrame(rows, columns=list(OBJECT_COLUMNS)).astype(dict(OBJECT_COLUMNS))


def read_objects(folder: Path) -> pd.DataFrame:
    """Return the objects beside the index in a folder. Raises UserError if their file is missing or damaged."""
    path = folder / OBJECTS
    if not path.is_file():
        raise UserError(f"{path}: missing, the data was prepared by an earlier version; run `wimfris data prepare`")
    try:
        return pd.read_parquet(path)[list(OBJECT_COLUMNS)]
    except (ValueError, OSError, KeyError):
        raise UserError(f"{path}: not a table of objects; run `wimfris data prepare`") from None
