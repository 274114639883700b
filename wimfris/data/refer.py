"""Referring-expression annotations in REFER's layout, from the files that a data set declares.

    refs         references: objects, sentences, split (a pickle, often from Python 2, or JSON)
    instances    COCO images, categories and annotations (polygons or run lengths), as JSON
    images       folder of the images

An object's image is looked up by `image_id`: the `file_name` in refs names the object, not an image file. A reference
may name several annotations or none (`no_target`), as in gRefCOCO.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from wimfris.data.pickles import load_plain_pickle
from wimfris.data.rle import SegmentationError, encode_segmentation, mask_area, merge_masks, short_polygons
from wimfris.errors import UserError, one_line
from wimfris.files import read_bytes
from wimfris.settings.sections import SCENES, Files

SHOWN = 5  # of several faults, how many a message lists
NO_TARGET = -1  # gRefCOCO's ann_id of a sentence that names nothing


@dataclass(frozen=True)
class Source:
    """The files of one data set."""

    name: str
    refs: Path
    instances: Path
    images: Path  # folder

    @property
    def annotations(self) -> tuple[Path, Path]:
        """The files other than images."""
        return self.refs, self.instances


def scenes_source(root: Path) -> Source:
    """Return where `write_scenes` writes the built-in set under a root."""
    return Source(
        SCENES, root / "scenes" / "refs(seed).p", root / "scenes" / "instances.json", root / "images" / "train2014"
    )


def declared_source(name: str, files: Files, root: Path) -> Source:
    """Return where the files of a declared data set lie under a root."""
    return Source(name, root / files.refs, root / files.instances, root / files.images)


@dataclass(frozen=True)
class Sentence:
    """One referring expression. `kind` is "" for natural language, else one of `wimfris.data.sentences.KINDS`."""

    sent_id: int
    text: str
    kind: str = ""


@dataclass(frozen=True)
class ImageObject:
    """One annotated object of an image, with its mask as compressed run lengths."""

    ann_id: int
    category: str
    rle_counts: str


@dataclass(frozen=True)
class ReferredObject:
    """One referred object with its image, its mask and every sentence that names it.

    `rle_counts` is the mask as compressed run lengths (`wimfris.data.rle`), `area` its pixels. It is the union of the
    masks of `ann_ids`, empty without them. `image_masks` holds the usable masks of all annotations of the image, in the
    order of the instances; `image_objects` the same without crowds, except those that a reference names.
    """

    dataset: str
    split: str
    ref_id: int
    ann_ids: tuple[int, ...]
    image_id: int
    file_name: str
    width: int
    height: int
    category: str
    rle_counts: str
    area: int
    sentences: tuple[Sentence, ...]
    image_masks: tuple[str, ...]
    image_objects: tuple[ImageObject, ...] = ()


def missing_annotations(source: Source) -> list[Path]:
    """Return the annotation files that do not exist."""
    return [path for path in source.annotations if not path.is_file()]


def check_annotations(source: Source) -> None:
    """Raise UserError with the path of every missing annotation file, and what to do."""
    missing = missing_annotations(source)
    if missing:
        fix = f"put it there, or correct its path in datasets.{source.name} of params.yaml"
        fix = "run `dvc repro data`" if source.name == SCENES else fix
        raise UserError(f"{source.name}: missing {' and '.join(map(str, missing))}; {fix}")


def read_refer(source: Source, notes: list[str] | None = None) -> list[ReferredObject]:
    """Return all referred objects of a data set, in the order of its references.

    Faults that leave every object usable are appended to `notes`, one line each: an annotation that is left out, and
    masks without a pixel. Raises UserError if a file is missing, damaged or unsafe, if an id occurs twice, or if a
    reference lacks an annotation, an image, a sentence or a usable mask; the message covers all such references.
    """
    check_annotations(source)
    content = _load_json(source.refs) if source.refs.suffix == ".json" else load_plain_pickle(source.refs)
    refs = _validate(_REFS, content, source.refs)
    instances = _validate(_INSTANCES, _load_json(source.instances), source.instances)
    for kind in ("image", "annotation", "category"):
        table = getattr(instances, "categories" if kind == "category" else f"{kind}s")
        _check_unique(source.instances, kind, (row.id for row in table))
    _check_unique(source.refs, "ref", (ref.ref_id for ref in refs))
    for ref in refs:
        _check_unique(source.refs, f"ref {ref.ref_id}: sentence", (sentence.sent_id for sentence in ref.sentences))
    images = {image.id: image for image in instances.images}
    annotations = {annotation.id: annotation for annotation in instances.annotations}
    categories = {category.id: category.name for category in instances.categories}
    used_images = {ref.image_id: images.get(ref.image_id) for ref in refs}
    masks, image_masks, faults = _encode_masks(instances.annotations, used_images)
    named_ids = {ann_id for ref in refs for ann_id in ref.ann_id}
    image_objects: dict[int, list[ImageObject]] = {}
    for one in instances.annotations:
        if one.id in masks and (not one.iscrowd or one.id in named_ids):
            seen = ImageObject(one.id, categories.get(one.category_id, ""), masks[one.id])
            image_objects.setdefault(one.image_id, []).append(seen)

    objects: list[ReferredObject] = []
    problems: list[str] = []
    for ref in refs:
        image = images.get(ref.image_id)
        named = [annotations.get(ann_id) for ann_id in ref.ann_id]
        problem = _problem(ref, image, named, categories, masks, faults)
        if problem:
            problems.append(f"ref {ref.ref_id} {problem}")
            continue
        assert image is not None
        counts = merge_masks([masks[ann_id] for ann_id in ref.ann_id], image.height, image.width)
        objects.append(
            ReferredObject(
                dataset=source.name,
                split=ref.split,
                ref_id=ref.ref_id,
                ann_ids=ref.ann_id,
                image_id=image.id,
                file_name=image.file_name,
                width=image.width,
                height=image.height,
                category=", ".join(dict.fromkeys(categories[a.category_id] for a in named if a)),
                rle_counts=counts,
                area=mask_area(counts, image.height, image.width),
                sentences=tuple(Sentence(s.sent_id, s.sent.strip(), s.kind) for s in ref.sentences),
                image_masks=image_masks.get(image.id, ()),
                image_objects=tuple(image_objects.get(image.id, ())),
            )
        )
    if problems:
        raise UserError(
            f"{source.refs}: {len(problems)} of {len(refs)} references cannot be used: {_first_few(problems)}"
        )
    if notes is not None:
        notes += _notes(source, objects, faults, instances.annotations, used_images)
    return objects


def _problem(
    ref: "_Ref",
    image: "_Image | None",
    named: "Sequence[_Annotation | None]",
    categories: Mapping[int, str],
    masks: Mapping[int, str],
    faults: Mapping[int, str],
) -> str | None:
    """Return why a reference cannot be used, or None."""
    if not ref.sentences:
        return "has no sentence"
    if image is None:
        return f"has no image (image_id {ref.image_id})"
    for ann_id, annotation in zip(ref.ann_id, named, strict=True):
        if annotation is None:
            return f"has no annotation (ann_id {ann_id})"
        if annotation.image_id != ref.image_id:
            return f"is in image {ref.image_id}, its annotation {ann_id} in {annotation.image_id}"
        if ann_id not in masks:
            return f"has no usable mask (ann_id {ann_id}: {faults[ann_id]})"
        if annotation.category_id not in categories:
            return f"has no category (category_id {annotation.category_id} of annotation {ann_id})"
    return None


def _notes(
    source: Source,
    objects: Sequence[ReferredObject],
    faults: Mapping[int, str],
    annotations: "Iterable[_Annotation]",
    images: "Mapping[int, _Image | None]",
) -> list[str]:
    """Return one line per fault that leaves every object usable."""
    notes = [f"{source.instances}: annotation {ann_id} is left out: {fault}" for ann_id, fault in faults.items()]
    short = [
        a.id for a in annotations if images.get(a.image_id) and a.id not in faults and short_polygons(a.segmentation)
    ]
    if short:
        notes.append(
            f"{source.instances}: polygons with fewer than three points are left out of {_named('annotation', short)}"
        )
    empty = list(dict.fromkeys(ann_id for o in objects if o.ann_ids and not o.area for ann_id in o.ann_ids))
    if empty:
        notes.append(
            f"{source.instances}: the mask of {_named('annotation', empty)} has no pixel in its image, so that every "
            "prediction scores 0; correct or remove it"
        )
    return notes


def _named(kind: str, ids: Sequence[int]) -> str:
    return f"{len(ids)} {kind}s ({_first_few(list(map(str, ids)), ', ')})" if len(ids) > 1 else f"{kind} {ids[0]}"


def _check_unique(path: Path, kind: str, ids: Iterable[int]) -> None:
    repeated = [str(number) for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {kind} id {_first_few(repeated, ', ')} occurs twice; give each an id of its own")


def _as_ann_ids(value: Any) -> Any:
    """Return `ann_id` as gRefCOCO's list; REFER has one number."""
    ids = value if isinstance(value, list) else [value]
    return [] if ids == [NO_TARGET] else ids


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _RefSentence(_Part):
    sent_id: int
    sent: str
    kind: str = ""


class _Ref(_Part):
    ref_id: int
    ann_id: Annotated[tuple[int, ...], BeforeValidator(_as_ann_ids)]
    image_id: int
    split: str
    sentences: list[_RefSentence]


class _Image(_Part):
    id: int
    file_name: str
    width: Annotated[int, Field(gt=0, lt=2**15)]  # as OpenCV's warp allows
    height: Annotated[int, Field(gt=0, lt=2**15)]


class _Annotation(_Part):
    id: int
    image_id: int
    category_id: int
    segmentation: Any  # one of three forms, see `encode_segmentation`
    iscrowd: bool = False


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
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON ({one_line(error)}); get the file again") from None


def _validate(adapter: TypeAdapter[T], content: Any, path: Path) -> T:
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(f"{path}: {key}: {first['msg']}; is this a REFER annotation file?") from None


def _first_few(parts: Sequence[str], between: str = "; ") -> str:
    shown = between.join(parts[:SHOWN])
    return shown if len(parts) <= SHOWN else f"{shown}{between}and {len(parts) - SHOWN} more"
