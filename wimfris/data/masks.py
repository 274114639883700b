"""Predicted masks of any system as files: COCO's results format, or a folder of PNGs.

The file holds one mask per sentence, {"sent_id", "segmentation": {"size": [height, width], "counts"}}, as a JSON list
or one object a line (JSON Lines). The counts are run lengths, compressed or not. `ref_id` is needed where ids of
sentences repeat; further keys are ignored. A PNG is named <sent_id>.png or <ref_id>_<sent_id>.png, and every pixel that
is not 0 belongs to the mask.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from wimfris.data.rle import SegmentationError, encode_mask, encode_segmentation
from wimfris.errors import UserError
from wimfris.files import read_bytes, write_text

Key = tuple[int, int]
"""ref_id and sent_id."""

_FIXES = {
    "unreadable": "write each mask as run lengths {size, counts} of its image, or as a PNG",
    "without ref_id": "add ref_id, because ids of sentences repeat",
    "unknown": "leave out what the splits do not hold, or add their split with --split",
    "double": "keep one mask per sentence",
    "of the wrong size": "write masks at the image's own height and width",
    "missing": "write a mask for every sentence, an empty one where nothing is predicted",
}  # the faults, and what to do
_SHOWN = 5  # of the faults of one kind, how many a message lists


@dataclass(frozen=True)
class Asked:
    """A sentence that needs a mask, and the size of its image."""

    ref_id: int
    sent_id: int
    height: int
    width: int


@dataclass(frozen=True)
class Mask:
    """A predicted mask as compressed run lengths."""

    counts: str
    height: int
    width: int


class _Fault(Exception):
    """Raised for one entry with the kind of its fault, a key of `_FIXES`."""


def write_masks(records: pd.DataFrame, path: Path) -> None:
    """Write the column `mask` of these records as JSON Lines, one sentence a line."""
    rows = zip(records["split"], records["ref_id"], records["sent_id"], records["mask"], strict=True)
    lines = [
        json.dumps({"split": split, "ref_id": int(ref_id), "sent_id": int(sent_id), "segmentation": mask})
        for split, ref_id, sent_id, mask in rows
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_masks(path: Path, sentences: Sequence[Asked], side: int | None = None) -> dict[Key, Mask]:
    """Return the mask of every sentence. A mask has the size of its image, or with `side` also (side, side).

    Raises UserError that counts and lists what is missing, double, unknown, of the wrong size or unreadable, by
    sent_id; then no mask is returned.
    """
    asked = {(one.ref_id, one.sent_id): one for one in sentences}
    refs: dict[int, list[int]] = {}
    for ref_id, sent_id in asked:
        refs.setdefault(sent_id, []).append(ref_id)
    masks: dict[Key, Mask] = {}
    seen: set[Key] = set()
    faults: dict[str, list[str]] = {kind: [] for kind in _FIXES}
    for entry in _entries(path):
        try:
            key = _key(entry, refs)
            if key not in asked:
                raise _Fault("unknown")
            if key in seen:
                raise _Fault("double")
            seen.add(key)
            masks[key] = _mask(entry, asked[key], side)
        except _Fault as fault:
            faults[str(fault)].append(str(entry.get("sent_id", entry)) if isinstance(entry, dict) else str(entry)[:40])
    faults["missing"] = [str(sent_id) for ref_id, sent_id in asked if (ref_id, sent_id) not in seen]
    problems = [f"{len(ids)} {kind} ({_few(ids)}): {_FIXES[kind]}" for kind, ids in faults.items() if ids]
    if problems:
        raise UserError(f"{path}: nothing was taken in; {'; '.join(problems)}")
    return masks


def _few(ids: Sequence[str]) -> str:
    return f"sent_id {', '.join(ids[:_SHOWN])}{', ...' if len(ids) > _SHOWN else ''}"


def _entries(path: Path) -> Iterator[Any]:
    """Yield the entries of a file, or of a folder of PNGs, where `segmentation` is the path of the image."""
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        if not files:
            raise UserError(f"{path}: holds no PNG; name each <sent_id>.png or <ref_id>_<sent_id>.png")
        for file in files:
            ids = re.fullmatch(r"(?:(\d+)_)?(\d+)", file.stem)
            named = {"sent_id": int(ids[2]) if ids else file.name, "segmentation": file}
            yield named | ({"ref_id": int(ids[1])} if ids and ids[1] else {})
        return
    try:
        text = read_bytes(path).decode("utf-8").strip()
        lines = [text] if text.startswith("[") else [line for line in text.splitlines() if line.strip()]
        entries = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: neither a JSON list nor JSON Lines ({error}); write one object per sentence"
        ) from None
    yield from entries[0] if text.startswith("[") else entries


def _key(entry: Any, refs: Mapping[int, list[int]]) -> Key:
    if not isinstance(entry, dict) or type(entry.get("sent_id")) is not int:
        raise _Fault("unreadable")
    owners = refs.get(entry["sent_id"], [])
    ref_id = entry.get("ref_id", owners[0] if len(owners) == 1 else None)
    if ref_id is None:
        raise _Fault("without ref_id" if owners else "unknown")
    return ref_id, entry["sent_id"]


def _mask(entry: Mapping[str, Any], asked: Asked, side: int | None) -> Mask:
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, Path):
        try:
            with Image.open(segmentation) as picture:
                pixels = np.asarray(picture.convert("L") if picture.mode not in ("1", "L", "P", "I") else picture) > 0
        except (OSError, ValueError):
            raise _Fault("unreadable") from None
        segmentation = {"size": list(pixels.shape), "counts": encode_mask(pixels)}
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("size"), list):
        raise _Fault("unreadable")
    size = segmentation["size"]
    if size not in ([asked.height, asked.width], [side, side]):
        raise _Fault("of the wrong size")
    try:
        return Mask(encode_segmentation(segmentation, *size), *size)
    except SegmentationError:
        raise _Fault("unreadable") from None
