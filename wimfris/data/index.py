"""The index: one row per referred object, and one row per image file with its checksum.

Stage `prepare` writes both as Parquet. Later stages read these files and never the official annotations. The images
stay in place; later stages depend on their sizes and checksums.
"""

import hashlib
import io
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.progress import track

from wimfris.data.refer import ReferredObject, images_folder
from wimfris.data.rle import decode_rle, pairwise_iou
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
    "n_objects": "int64",  # annotated objects in the image, this one included
    "chance_iou": "float64",  # see `chance_iou`
}
IMAGE_COLUMNS: Mapping[str, str] = {
    "file_name": "str",
    "bytes": "int64",
    "sha256": "str",
    "width": "int64",
    "height": "int64",
}
LIST_COLUMNS = ("sentences", "sent_ids", "kinds")

# Pillow raises these on truncated files and on files that are not images.
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


def write_index(objects: Sequence[ReferredObject], root: Path, folder: Path) -> pd.DataFrame:
    """Check the images of these objects, write index.parquet and images.parquet to `folder`, and return the index.

    Raises UserError if any image is missing or damaged; `folder`/problems.txt lists all of them.
    """
    folder = Path(folder)
    index, images, problems = build_index(objects, images_folder(root))
    report_problems(problems, folder / "problems.txt")
    for frame, name in ((index, "index.parquet"), (images, "images.parquet")):
        with replacing(folder / name) as partial:
            frame.to_parquet(partial, index=False)
    return index


def build_index(objects: Sequence[ReferredObject], images_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the index (`INDEX_COLUMNS`, one row per object), its images (`IMAGE_COLUMNS`, by file name) and problems.

    Every image is read and decoded once. One that is missing, damaged or not of the annotated size is a problem, one
    line each, and has no row in the images.
    """
    sizes = {o.file_name: (o.width, o.height) for o in objects}
    names = sorted(sizes)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    with ThreadPoolExecutor() as pool:  # hashing and decoding release the interpreter's lock
        results = pool.map(lambda name: check_image(Path(images_dir) / name, *sizes[name]), names)
        for result in track(results, description="checking images", total=len(names), transient=True):
            if isinstance(result, str):
                problems.append(result)
            else:
                rows.append(result)
    index = pd.DataFrame([_index_row(o) for o in objects], columns=list(INDEX_COLUMNS))
    images = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))
    return index.astype(dict(INDEX_COLUMNS)), images.astype(dict(IMAGE_COLUMNS)), problems


def check_image(path: Path, width: int, height: int) -> dict[str, Any] | str:
    """Return one row of `IMAGE_COLUMNS` for an image file, or one line that says what is wrong with it.

    The file is decoded to its end, because a truncated download has an intact JPEG header.
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
        return f"{path}: image is {size[0]}x{size[1]} pixels, annotations say {width}x{height}"
    checksum = hashlib.sha256(content).hexdigest()
    return {"file_name": path.name, "bytes": len(content), "sha256": checksum, "width": width, "height": height}


def report_problems(problems: Sequence[str], path: Path) -> None:
    """Write the image problems to `path`, one a line, and raise UserError; without problems, delete an old `path`."""
    path = Path(path)
    if not problems:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(problems) + "\n", encoding="utf-8")
    first = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    raise UserError(f"{len(problems)} images cannot be used: {first} (full list: {path}); download these files again")


def chance_iou(target: str, image_masks: Sequence[str], height: int, width: int) -> float:
    """Return the expected IoU of guessing one of the image's annotated objects at random, with a perfect mask.

    It is the mean IoU of the image's masks with the target, which is one of them. All are compressed run lengths.
    """
    return float(np.mean(pairwise_iou([target], image_masks, height, width)))


def decode_mask(row: Mapping[Any, Any] | pd.Series) -> np.ndarray:
    """Return the (height, width) uint8 mask of zeros and ones of one index row."""
    return decode_rle(row["rle_counts"], int(row["height"]), int(row["width"]))


def read_index(path: Path) -> pd.DataFrame:
    """Return the index at `path`, with Python lists in its list columns.

    Raises UserError if the file is missing or not an index.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro prepare`")
    try:
        index = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable as Parquet ({reason}); run `dvc repro -f prepare`") from None
    missing = [column for column in INDEX_COLUMNS if column not in index.columns]
    if missing:
        raise UserError(f"{path}: columns {', '.join(missing)} are missing; run `dvc repro -f prepare`")
    index = index[list(INDEX_COLUMNS)]
    for column in LIST_COLUMNS:
        index[column] = pd.Series([values.tolist() for values in index[column]], index=index.index, dtype=object)
    return index.astype(dict(INDEX_COLUMNS))


def _index_row(referred: ReferredObject) -> dict[str, Any]:
    return vars(referred) | {
        "sentences": [sentence.text for sentence in referred.sentences],
        "sent_ids": [sentence.sent_id for sentence in referred.sentences],
        "kinds": [sentence.kind for sentence in referred.sentences],
        "n_objects": len(referred.image_masks),
        "chance_iou": chance_iou(referred.rle_counts, referred.image_masks, referred.height, referred.width),
    }
