"""Referring-expression annotations in the official REFER layout.

    <root>/<folder>/refs(<split_by>).p    references: object, sentences, split (a pickle, often from Python 2)
    <root>/<folder>/instances.json        COCO images, categories and annotations (boxes, polygons or run lengths)
    <root>/images/train2014/*.jpg         images

An object's image is looked up by `image_id`: the `file_name` in refs(...).p names the object, not an image file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from wimfris.data.pickles import load_plain_pickle
from wimfris.data.rle import SegmentationError, encode_segmentation, mask_area
from wimfris.errors import UserError, one_line


@dataclass(frozen=True)
class Layout:
    """Location of a data set under the root: `<folder>/refs(<split_by>).p`."""

    folder: str
    split_by: str


LAYOUTS: Mapping[str, Layout] = {
    "scenes": Layout("scenes", "seed"),
    "refcoco": Layout("refcoco", "unc"),
    "refcoco+": Layout("refcoco+", "unc"),
    "refcocog-umd": Layout("refcocog", "umd"),
    "refcocog-google": Layout("refcocog", "google"),
}


@dataclass(frozen=True)
class Sentence:
    """One referring expression. `kind` is "" for natural language, else one of `wimfris.data.sentences.KINDS`."""

    sent_id: int
    text: str
    kind: str = ""


@dataclass(frozen=True)
class ReferredObject:
    """One referred object with its image, its mask and every sentence that names it.

    `rle_counts` is the mask as compressed run lengths (`wimfris.data.rle`), `area` its pixels, `bbox` the annotation's
    (x, y, width, height) in pixels. `image_masks` holds the usable masks of all annotations of the image, this object's
    included, in the order of instances.json.
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
    """Return the layout of a data set. Raises UserError for an unknown name."""
    if name not in LAYOUTS:
        raise UserError(f"data set must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def images_folder(root: Path) -> Path:
    """Return the folder of the images, which all data sets under `root` share."""
    return Path(root) / "images" / "train2014"


def annotation_files(root: Path, name: str) -> dict[str, Path]:
    """Return the annotation files of a data set: {"refs": ..., "instances": ...}.

    Raises UserError with the path of every missing file.
    """
    place = layout(name)
    folder = Path(root) / place.folder
    files = {"refs": folder / f"refs({place.split_by}).p", "instances": folder / "instances.json"}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        fix = "run `dvc repro data`" if name == "scenes" else f"unpack REFER's {place.folder}.zip into {Path(root)}"
        raise UserError(f"{name}: missing {' and '.join(missing)}; {fix}")
    return files


def read_refer(root: Path, name: str) -> list[ReferredObject]:
    """Return all referred objects of a data set under `root`, in the order of refs(...).p.

    Raises UserError if a file is missing, damaged or unsafe, or if any reference lacks an annotation, an image, a
    sentence or a usable mask; the message covers all such references.
    """
    files = annotation_files(root, name)
    refs = _validate(_REFS, load_plain_pickle(files["refs"]), files["refs"])
    instances = _validate(_INSTANCES, _load_json(files["instances"]), files["instances"])
    images = {image.id: image for image in instances.images}
    annotations = {annotation.id: annotation for annotation in instances.annotations}
    categories = {category.id: category.name for category in instances.categories}
    used_images = {ref.image_id: images.get(ref.image_id) for ref in refs}
    masks, image_masks, faults = _encode_masks(instances.annotations, used_images)

    objects: list[ReferredObject] = []
    problems: list[str] = []
    seen: set[int] = set()
    for ref in refs:
        annotation = annotations.get(ref.ann_id)
        image = images.get(ref.image_id)
        if ref.ref_id in seen:
            problems.append(f"ref {ref.ref_id} occurs twice")
        elif not ref.sentences:
            problems.append(f"ref {ref.ref_id} has no sentence")
        elif image is None:
            problems.append(f"ref {ref.ref_id} has no image (image_id {ref.image_id})")
        elif annotation is None:
            problems.append(f"ref {ref.ref_id} has no annotation (ann_id {ref.ann_id})")
        elif annotation.image_id != ref.image_id:
            problems.append(f"ref {ref.ref_id} is in image {ref.image_id}, its annotation in {annotation.image_id}")
        elif annotation.id in faults:
            problems.append(f"ref {ref.ref_id} has no usable mask (ann_id {annotation.id}: {faults[annotation.id]})")
        elif annotation.category_id not in categories:
            problems.append(f"ref {ref.ref_id} has no category (category_id {annotation.category_id})")
        else:
            objects.append(
                ReferredObject(
                    dataset=name,
                    split=ref.split,
                    ref_id=ref.ref_id,
                    ann_id=annotation.id,
                    image_id=image.id,
                    file_name=image.file_name,
                    width=image.width,
                    height=image.height,
                    category=categories[annotation.category_id],
                    bbox=annotation.bbox,
                    rle_counts=masks[annotation.id],
                    area=mask_area(masks[annotation.id], image.height, image.width),
                    sentences=tuple(Sentence(s.sent_id, s.sent.strip(), s.kind) for s in ref.sentences),
                    image_masks=image_masks[image.id],
                )
            )
        seen.add(ref.ref_id)
    if problems:
        raise UserError(
            f"{files['refs']}: {len(problems)} of {len(refs)} references cannot be used: {_first_few(problems)}"
        )
    return objects


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
    segmentation: Any  # one of three forms, see `encode_segmentation`


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


def _encode_masks(
    annotations: Sequence[_Annotation], images: Mapping[int, _Image | None]
) -> tuple[dict[int, str], dict[int, tuple[str, ...]], dict[int, str]]:
    """Encode the annotations in these images.

    Returns the masks by annotation id, the masks by image id, and the reason by annotation id where there is no mask.
    """
    masks: dict[int, str] = {}
    image_masks: dict[int, list[str]] = {}
    faults: dict[int, str] = {}
    for annotation in annotations:
        image = images.get(annotation.image_id)
        if image is None:
            continue
        try:
            counts = encode_segmentation(annotation.segmentation, image.height, image.width)
        except SegmentationError as error:
            faults[annotation.id] = str(error)
            continue
        masks[annotation.id] = counts
        image_masks.setdefault(image.id, []).append(counts)
    return masks, {image_id: tuple(all_counts) for image_id, all_counts in image_masks.items()}, faults


def _load_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({one_line(error)}); download it again") from None


def _validate(adapter: TypeAdapter[T], content: Any, path: Path) -> T:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(f"{path}: {key}: {first['msg']}; is this a REFER annotation file?") from None


def _first_few(problems: Sequence[str], limit: int = 5) -> str:
    shown = "; ".join(problems[:limit])
    return shown if len(problems) <= limit else f"{shown}; and {len(problems) - limit} more"
