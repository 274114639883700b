"""The index: one row per referred object, and one row per image file with its checksum.

Built once by `prepare`; training, evaluation and the audit read the Parquet files and never the official annotations.
Images stay where they are; their sizes and checksums are what later steps depend on.
"""

import hashlib
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.progress import track

from wimfris.data import refer
from wimfris.errors import UserError
from wimfris.files import replacing

INDEX_COLUMNS: Mapping[str, str] = {
    "dataset": "str",
    "split": "str",
    "ref_id": "int64",
    "ann_id": "int64",
    "image_id": "int64",
    "file_name": "str",
    "width": "int64",
    "height": "int64",
    "category": "str",
    "area": "int64",  # mask pixels
    "rle_counts": "str",  # compressed COCO run lengths of a (height, width) mask
    "sentences": "object",  # list[str]
    "sent_ids": "object",  # list[int]
    "kinds": "object",  # list[str], "" for natural language
    "n_objects": "int64",  # annotated objects in the image, this one among them
    "chance_iou": "float64",  # expected IoU of guessing one of them at random, see `chance_iou`
}
IMAGE_COLUMNS: Mapping[str, str] = {
    "file_name": "str",
    "bytes": "int64",
    "sha256": "str",
    "width": "int64",
    "height": "int64",
}
LIST_COLUMNS = ("sentences", "sent_ids", "kinds")

# Referred objects per split as published with REFER (Kazemzadeh 2014, Yu 2016, Mao 2016, Nagaraja 2016).
PUBLISHED_OBJECTS: Mapping[str, Mapping[str, int]] = {
    "refcoco": {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    "refcoco+": {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    "refcocog-umd": {"train": 42226, "val": 2573, "test": 5023},
    "refcocog-google": {"train": 44822, "val": 5000},
}

# What Pillow raises on files that break off or are no images.
_DAMAGED_IMAGE = (
    Image.DecompressionBombError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def prepare(root: Path, name: str, folder: Path, *, check_counts: bool = True) -> pd.DataFrame:
    """Read data set `name` under `root`, check it, write index.parquet and images.parquet to `folder`; the index.

    `check_counts=False` lets an excerpt of a published data set through. Raises UserError where annotations or images
    are missing or damaged (all images at fault are listed in `folder`/problems.txt), or the counts are not the
    published ones.
    """
    objects = refer.read_refer(root, name)
    if check_counts:
        check_published_counts(objects, name)
    return write_prepared(objects, root, folder)


def write_prepared(objects: Sequence[refer.ReferredObject], root: Path, folder: Path) -> pd.DataFrame:
    """Check the images of these objects, write index.parquet and images.parquet to `folder`; the index."""
    folder = Path(folder)
    index, images, problems = build_index(objects, refer.images_folder(root))
    refuse_problems(problems, folder / "problems.txt")
    write_index(index, folder / "index.parquet")
    write_images(images, folder / "images.parquet")
    return index


def build_index(
    objects: Sequence[refer.ReferredObject], images_dir: Path
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The index (one row per object, `INDEX_COLUMNS`), its images (`IMAGE_COLUMNS`, by file name) and their problems.

    Every image is read and decoded once; each that is missing, truncated or not of the annotated size gives one line in
    the problems, and no row in the images.
    """
    sizes = {o.file_name: (o.width, o.height) for o in objects}
    names = sorted(sizes)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    with ThreadPoolExecutor() as pool:  # hashing and decoding release the interpreter's lock
        checked = pool.map(lambda name: check_image(Path(images_dir) / name, *sizes[name]), names)
        for outcome in track(checked, description="checking images", total=len(names), transient=True):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                rows.append(outcome)
    index = pd.DataFrame([_index_row(o) for o in objects], columns=list(INDEX_COLUMNS))
    images = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))
    return index.astype(dict(INDEX_COLUMNS)), images.astype(dict(IMAGE_COLUMNS)), problems


def check_image(path: Path, width: int, height: int) -> dict[str, Any] | str:
    """One row of `IMAGE_COLUMNS` for an image file, or one line that says what is wrong with it.

    The file is decoded to its end: a JPEG header alone would not betray a truncated download.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: unreadable ({error.strerror})"
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            size = image.size
    except _DAMAGED_IMAGE as error:
        return f"{path}: damaged or truncated ({' '.join(str(error).split())})"
    if size != (width, height):
        return f"{path}: is {size[0]}x{size[1]} pixels, annotated as {width}x{height}"
    checksum = hashlib.sha256(content).hexdigest()
    return {"file_name": path.name, "bytes": len(content), "sha256": checksum, "width": width, "height": height}


def refuse_problems(problems: Sequence[str], report: Path) -> None:
    """Write all problems to `report`, one a line, and raise UserError with their number and the first few; or do
    nothing.
    """
    report = Path(report)
    if not problems:
        report.unlink(missing_ok=True)  # of an earlier attempt
        return
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("\n".join(problems) + "\n", encoding="utf-8")
    first = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    raise UserError(
        f"{len(problems)} images cannot be used: {first} (all of them: {report}); download these files again"
    )


def check_published_counts(objects: Iterable[refer.ReferredObject], name: str) -> None:
    """Raise UserError where the objects per split differ from the published ones; "scenes" has none and passes."""
    published = PUBLISHED_OBJECTS.get(name)
    if published is None:
        return
    found: dict[str, int] = {}
    for referred in objects:
        found[referred.split] = found.get(referred.split, 0) + 1
    wrong = [
        f"{split} has {found.get(split, 0)} objects, published are {published.get(split, 0)}"
        for split in sorted(published.keys() | found.keys())
        if found.get(split, 0) != published.get(split, 0)
    ]
    if wrong:
        split_by = refer.layout(name).split_by
        raise UserError(f"{name}: refs({split_by}).p is not the published split: {'; '.join(wrong)}; download it again")


def chance_iou(target: str, image_masks: Sequence[str], height: int, width: int) -> float:
    """Expected IoU of guessing one of the image's annotated objects uniformly at random, its mask being perfect.

    The mean over the image's annotations of IoU(annotation, target), all as compressed run lengths; the target is one
    of them.
    """
    return float(np.mean(refer.pairwise_iou([target], image_masks, height, width)))


def decode_mask(row: Mapping[Any, Any] | pd.Series) -> np.ndarray:
    """The (height, width) uint8 mask of 0 and 1 of one index row."""
    return refer.decode_rle(row["rle_counts"], int(row["height"]), int(row["width"]))


def write_index(index: pd.DataFrame, path: Path) -> None:
    """Write the index as Parquet; `read_index` gives the same frame back."""
    _write(index, path)


def write_images(images: pd.DataFrame, path: Path) -> None:
    """Write the table of images as Parquet."""
    _write(images, path)


def read_index(path: Path) -> pd.DataFrame:
    """The index at `path`, its list columns as Python lists. Raises UserError where it is missing or not an index."""
    index = _read(path, INDEX_COLUMNS)
    for column in LIST_COLUMNS:
        index[column] = pd.Series([values.tolist() for values in index[column]], index=index.index, dtype=object)
    return index.astype(dict(INDEX_COLUMNS))


def read_images(path: Path) -> pd.DataFrame:
    """The table of images at `path`. Raises UserError where it is missing or not such a table."""
    return _read(path, IMAGE_COLUMNS).astype(dict(IMAGE_COLUMNS))


def _index_row(referred: refer.ReferredObject) -> dict[str, Any]:
    return {
        "dataset": referred.dataset,
        "split": referred.split,
        "ref_id": referred.ref_id,
        "ann_id": referred.ann_id,
        "image_id": referred.image_id,
        "file_name": referred.file_name,
        "width": referred.width,
        "height": referred.height,
        "category": referred.category,
        "area": referred.area,
        "rle_counts": referred.rle_counts,
        "sentences": [sentence.text for sentence in referred.sentences],
        "sent_ids": [sentence.sent_id for sentence in referred.sentences],
        "kinds": [sentence.kind for sentence in referred.sentences],
        "n_objects": len(referred.image_masks),
        "chance_iou": chance_iou(referred.rle_counts, referred.image_masks, referred.height, referred.width),
    }


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as partial:
        frame.to_parquet(partial, index=False)


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: missing; `dvc repro prepare` writes it")
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]}); run prepare again") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; run prepare again")
    return frame[list(columns)]
