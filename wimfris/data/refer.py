"""Referring-expression annotations in the official REFER layout.

    <root>/<folder>/refs(<splitBy>).p    who is referred to, how, and in which split (a pickle, often from Python 2)
    <root>/<folder>/instances.json       COCO images, categories and annotations (boxes, polygons or run lengths)
    <root>/images/train2014/*.jpg        the images

The image of an object is found by its `image_id`; the `file_name` inside refs(...).p names the object, not an image.
Masks are kept as compressed COCO run lengths: columns of a (height, width) grid, as pycocotools reads and writes them.
"""

import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from wimfris.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a data set lies under the root: `<folder>/refs(<split_by>).p`."""

    folder: str
    split_by: str


LAYOUTS: Mapping[str, Layout] = {
    "scenes": Layout("scenes", "seed"),
    "refcoco": Layout("refcoco", "unc"),
    "refcoco+": Layout("refcoco+", "unc"),
    "refcocog-umd": Layout("refcocog", "umd"),
    "refcocog-google": Layout("refcocog", "google"),
}


class SegmentationError(Exception):
    """A COCO segmentation that is no mask of its image."""


@dataclass(frozen=True)
class Sentence:
    """One expression. `kind` is "" for natural language; the built-in set says attribute, superlative or relation."""

    sent_id: int
    text: str
    kind: str = ""


@dataclass(frozen=True)
class ReferredObject:
    """One referred object: its image, its mask and every sentence that names it.

    `rle_counts` is the mask as compressed run lengths of a (height, width) grid, `area` its pixels, `bbox` the
    annotation's (x, y, width, height) in pixels. `image_masks` holds those of every annotation of the image whose mask
    is usable, this object's among them, in the order of instances.json.
    """

    dataset: str
    split: str
    ref_id: int
    ann_id: int
    image_id: int
    file_name: str
    width: int
    height: int
    category: str
    bbox: tuple[float, float, float, float]
    rle_counts: str
    area: int
    sentences: tuple[Sentence, ...]
    image_masks: tuple[str, ...]


def layout(name: str) -> Layout:
    """The folder and split of data set `name`. Raises UserError for a name that is not known."""
    if name not in LAYOUTS:
        raise UserError(f"data set {name!r} is not known: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def images_folder(root: Path) -> Path:
    """Where the images of all data sets under `root` lie."""
    return Path(root) / "images" / "train2014"


def annotation_files(root: Path, name: str) -> dict[str, Path]:
    """The annotation files of a data set: {"refs": ..., "instances": ...}.

    Raises UserError, naming every file that is missing and where it belongs.
    """
    place = layout(name)
    folder = Path(root) / place.folder
    files = {"refs": folder / f"refs({place.split_by}).p", "instances": folder / "instances.json"}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        fix = (
            "`dvc repro data` draws it" if name == "scenes" else f"unpack REFER's {place.folder}.zip into {Path(root)}"
        )
        raise UserError(f"{name}: missing {' and '.join(missing)}; {fix}")
    return files


def read_refer(root: Path, name: str) -> list[ReferredObject]:
    """All referred objects of data set `name` under `root`, in the order of refs(...).p.

    Raises UserError where a file is missing, damaged or asks to run code, and, in one message for all of them, where a
    reference has no annotation, no image, no sentence or no usable mask.
    """
    files = annotation_files(root, name)
    refs = _validated(_REFS, load_plain_pickle(files["refs"]), files["refs"])
    instances = _validated(_INSTANCES, _load_json(files["instances"]), files["instances"])

    images = {image.id: image for image in instances.images}
    annotations = {annotation.id: annotation for annotation in instances.annotations}
    categories = {category.id: category.name for category in instances.categories}
    wanted = {ref.image_id for ref in refs}
    masks: dict[int, str] = {}
    masks_of_image: dict[int, list[str]] = {}
    faults: dict[int, str] = {}  # annotation id -> what is wrong with its mask
    for annotation in instances.annotations:
        image = images.get(annotation.image_id)
        if image is None or image.id not in wanted:
            continue
        try:
            counts = encode_segmentation(annotation.segmentation, image.height, image.width)
        except SegmentationError as error:
            faults[annotation.id] = str(error)
            continue
        masks[annotation.id] = counts
        masks_of_image.setdefault(image.id, []).append(counts)
    image_masks = {image_id: tuple(all_counts) for image_id, all_counts in masks_of_image.items()}

    objects: list[ReferredObject] = []
    problems: list[str] = []
    seen: set[int] = set()
    for ref in refs:
        found = annotations.get(ref.ann_id)
        image = images.get(ref.image_id)
        if ref.ref_id in seen:
            problems.append(f"ref {ref.ref_id} occurs twice")
        elif not ref.sentences:
            problems.append(f"ref {ref.ref_id} has no sentence")
        elif image is None:
            problems.append(f"ref {ref.ref_id} has no image (image_id {ref.image_id})")
        elif found is None:
            problems.append(f"ref {ref.ref_id} has no annotation (ann_id {ref.ann_id})")
        elif found.image_id != ref.image_id:
            problems.append(f"ref {ref.ref_id} is in image {ref.image_id}, its annotation in {found.image_id}")
        elif found.id in faults:
            problems.append(f"ref {ref.ref_id} has no usable mask (ann_id {found.id}: {faults[found.id]})")
        elif found.category_id not in categories:
            problems.append(f"ref {ref.ref_id} has no category (category_id {found.category_id})")
        else:
            objects.append(
                ReferredObject(
                    dataset=name,
                    split=ref.split,
                    ref_id=ref.ref_id,
                    ann_id=found.id,
                    image_id=image.id,
                    file_name=image.file_name,
                    width=image.width,
                    height=image.height,
                    category=categories[found.category_id],
                    bbox=found.bbox,
                    rle_counts=masks[found.id],
                    area=int(coco_mask.area(_rle(masks[found.id], image.height, image.width))),
                    sentences=tuple(Sentence(s.sent_id, s.sent.strip(), s.kind) for s in ref.sentences),
                    image_masks=image_masks[image.id],
                )
            )
        seen.add(ref.ref_id)
    if problems:
        raise UserError(f"{files['refs']}: {len(problems)} of {len(refs)} references cannot be used: {_some(problems)}")
    return objects


# --- masks ----------------------------------------------------------------------------------------------------------


def encode_segmentation(segmentation: Any, height: int, width: int) -> str:
    """A COCO segmentation as the compressed run lengths of one (height, width) mask.

    `segmentation` is a list of polygons (their union is taken), or {"size", "counts"} with counts as a list of runs or
    compressed. Raises SegmentationError, saying why, where it is none of them or does not fit the image.
    """
    if isinstance(segmentation, list):
        # Fewer than three points enclose nothing, and pycocotools would take a leading polygon of four numbers for a
        # box.
        polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
        if not polygons:
            raise SegmentationError("no polygon with three points")
        try:
            parts = coco_mask.frPyObjects([[float(x) for x in polygon] for polygon in polygons], height, width)
        except (TypeError, ValueError):
            raise SegmentationError("a polygon with something else than numbers") from None
        return _text(coco_mask.merge(parts)["counts"])
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise SegmentationError("neither polygons nor run lengths")
    if list(segmentation.get("size", ())) != [height, width]:
        raise SegmentationError(f"run lengths of size {segmentation.get('size')}, image of size {[height, width]}")
    counts = segmentation["counts"]
    runs: list[Any] = list(_runs(counts)) if isinstance(counts, str) else counts
    # pycocotools leaves pixels that no run covers uninitialised, so a short list must not reach it.
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise SegmentationError(f"run lengths that do not cover the {height * width} pixels of the image")
    if isinstance(counts, str):
        return counts
    return _text(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"])


def decode_rle(counts: str, height: int, width: int) -> np.ndarray:
    """The (height, width) uint8 mask of 0 and 1 that compressed run lengths stand for."""
    return np.asarray(coco_mask.decode(_rle(counts, height, width)), dtype=np.uint8)


def pairwise_iou(left: Sequence[str], right: Sequence[str], height: int, width: int) -> np.ndarray:
    """The (len(left), len(right)) float64 IoUs of two lists of masks of one image; two empty masks have IoU 0."""
    if not left or not right:
        return np.zeros((len(left), len(right)))
    rles = [[_rle(counts, height, width) for counts in side] for side in (left, right)]
    return np.asarray(coco_mask.iou(*rles, [0] * len(right)), dtype=np.float64)


def _rle(counts: str, height: int, width: int) -> Any:
    return {"size": [height, width], "counts": counts.encode("ascii")}


def _text(counts: bytes | str) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def _runs(counts: str) -> Iterator[int]:
    """The run lengths of COCO's compressed string.

    Each number is little-endian in characters of 5 bits and a continuation bit, offset by 48, and sign-extended; from
    the fourth number on it is the difference to the number two places before (maskApi.c, rleFrString).
    """
    runs: list[int] = []
    value = shift = 0
    more = False
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise SegmentationError("compressed run lengths with a foreign character")
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
        raise SegmentationError("compressed run lengths that break off")
    yield from runs


# --- files ----------------------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise _ForeignClass(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _ForeignClass("a persistent object")


class _ForeignClass(Exception):
    """What the pickle asks for."""


# What unpickling raises on bytes that break off or make no sense (`pickle`, "other exceptions may also be raised").
_DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_plain_pickle(path: Path) -> Any:
    """The content of a pickle of plain values, Python 2's byte strings turned into text (UTF-8, else Latin-1).

    Raises UserError where the pickle asks for any class or function, which is named and not imported, or is damaged.
    """
    try:
        # "bytes" leaves Python 2 strings undecoded, so that each can be decoded on its own: mirrors mix encodings.
        content = _PlainUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="bytes").load()
    except _ForeignClass as error:
        raise UserError(f"{path}: refused, the pickle asks for {error}; get the file from a source you trust") from None
    except _DAMAGED_PICKLE as error:
        raise UserError(f"{path}: not a readable pickle ({_one_line(error)}); download it again") from None
    return _with_text(content)


def _with_text(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, list | tuple):
        return [_with_text(item) for item in value]
    if isinstance(value, dict):
        return {_with_text(key): _with_text(item) for key, item in value.items()}
    return value


def _load_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({_one_line(error)}); download it again") from None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _RefSentence(_Part):
    sent_id: int
    sent: str
    kind: str = ""


class _Ref(_Part):
    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[_RefSentence]


class _Image(_Part):
    id: int
    file_name: str
    width: int
    height: int


class _Annotation(_Part):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: Any  # three forms, told apart by `encode_segmentation`


class _Category(_Part):
    id: int
    name: str


class _Instances(_Part):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


T = TypeVar("T")
_REFS = TypeAdapter(list[_Ref])
_INSTANCES = TypeAdapter(_Instances)


def _validated(adapter: TypeAdapter[T], content: Any, path: Path) -> T:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(f"{path}: {key}: {first['msg']}; is this a REFER annotation file?") from None


def _some(problems: Sequence[str], limit: int = 5) -> str:
    shown = "; ".join(problems[:limit])
    return shown if len(problems) <= limit else f"{shown}; and {len(problems) - limit} more"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
