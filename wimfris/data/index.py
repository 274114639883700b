"""The index: one row per referred object, and one row per image file with its checksum.

Stage `prepare` writes both as Parquet. Later stages read these files and never the official annotations. The images
stay in place; later stages depend on their sizes and checksums.
"""

import hashlib
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from wimfris.data.images import decode_image
from wimfris.data.objects import OBJECTS, objects_table
from wimfris.data.refer import ReferredObject
from wimfris.data.rle import decode_rle, pairwise_iou
from wimfris.errors import UserError
from wimfris.files import read_bytes, replacing, write_text

INDEX_COLUMNS: Mapping[str, str] = {
    "dataset": "str",
    "split": "str",
    "ref_id": "int64",
    "ann_ids": "object",  # list[int], empty where the sentences name nothing
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
    "bytes": "int64",  # of the image file, as is the next
    "sha256": "str",
}
IMAGE_COLUMNS: Mapping[str, str] = {
    "file_name": "str",
    "bytes": "int64",
    "sha256": "str",
    "width": "int64",
    "height": "int64",
}
LIST_COLUMNS = ("ann_ids", "sentences", "sent_ids", "kinds")
KEY = ["dataset", "ref_id"]  # one row each
TUNE = "tune"  # the split that tuning runs are evaluated on


def write_index(objects: Sequence[ReferredObject], images_dir: Path, folder: Path) -> pd.DataFrame:
    """Check the images of these objects, write index.parquet, images.parquet and objects.parquet to `folder`, and
    return the index.

    Raises UserError if any image is missing or damaged; `folder`/problems.txt lists all of them.
    """
    folder = Path(folder)
    index, images, problems = build_index(objects, images_dir)
    report_problems(problems, folder / "problems.txt")
    for frame, name in ((index, "index.parquet"), (images, "images.parquet"), (objects_table(objects), OBJECTS)):
        with replacing(folder / name) as partial:
            frame.to_parquet(partial, index=False)
    return index


def build_index(objects: Sequence[ReferredObject], images_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the index (`INDEX_COLUMNS`, one row per object), its images (`IMAGE_COLUMNS`, by file name) and problems.

    Every image is read and decoded once. One that is missing, damaged or not of the annotated size is a problem, one
    line each, and has no row in the images and no checksum in the index.
    """
    sizes = {o.file_name: (o.width, o.height) for o in objects}
    names = sorted(sizes)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    # Processes and not threads, because the decoder captures stderr, which all threads of a process share.
    with ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        arguments = ((Path(images_dir), name, *sizes[name]) for name in names)
        results = pool.map(check_image, *zip(*arguments, strict=True), chunksize=16)
        try:
            for result in track(results, description="checking images", total=len(names), transient=True):
                if isinstance(result, str):
                    problems.append(result)
                else:
                    rows.append(result)
        except BrokenProcessPool:
            raise UserError(
                f"{images_dir}: a process that decodes images was killed, probably for lack of memory; free memory and "
                "run the command again"
            ) from None
    images = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))
    files = {row["file_name"]: {"bytes": row["bytes"], "sha256": row["sha256"]} for row in rows}
    unread = {"bytes": 0, "sha256": ""}
    index = pd.DataFrame([_index_row(o) | files.get(o.file_name, unread) for o in objects], columns=list(INDEX_COLUMNS))
    return index.astype(dict(INDEX_COLUMNS)), images.astype(dict(IMAGE_COLUMNS)), problems


def check_image(folder: Path, name: str, width: int, height: int) -> dict[str, Any] | str:
    """Return one row of `IMAGE_COLUMNS` for the file `folder`/`name`, or one line that says what is wrong with it.

    The file is decoded to its end: a truncated or damaged JPEG has an intact header.
    """
    path = folder / name
    try:
        content = read_bytes(path)
        size = decode_image(content, path).shape[1::-1]
    except UserError as error:
        return str(error)
    if size != (width, height):
        turned = "; a photo's EXIF orientation is ignored" if size == (height, width) else ""
        return f"{path}: image is {size[0]}x{size[1]} pixels, annotations say {width}x{height}{turned}"
    return {"file_name": name, "bytes": len(content), "sha256": digest(content), "width": width, "height": height}


def read_checked(path: Path, row: Mapping[Any, Any]) -> np.ndarray:
    """Return the image of an index row, (H, W, 3) uint8 RGB. Raises UserError if the file changed since `prepare`."""
    content = read_bytes(path)
    if len(content) != row["bytes"] or digest(content) != row["sha256"]:
        raise UserError(
            f"{path}: changed since `prepare` ({len(content)} bytes, {row['bytes']} then); restore the file, or accept "
            "it with `dvc repro -f prepare`"
        )
    return decode_image(content, path)


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal. It takes a small part of the time that decoding takes."""
    return hashlib.sha256(content).hexdigest()


def report_problems(problems: Sequence[str], path: Path) -> None:
    """Write the image problems to `path`, one a line, and raise UserError; without problems, delete an old `path`."""
    path = Path(path)
    if not problems:
        path.unlink(missing_ok=True)
        return
    write_text(path, "\n".join(problems) + "\n")
    first = problems[0] if len(problems) == 1 else f"{len(problems)} images cannot be used, for example {problems[0]}"
    raise UserError(f"{first} (all of them: {path})" if len(problems) > 1 else first)


def chance_iou(target: str, image_masks: Sequence[str], height: int, width: int) -> float:
    """Return the expected IoU of guessing one of the image's annotated objects at random, with a perfect mask.

    It is the mean IoU of the image's masks with the target, 0 without masks. All are compressed run lengths.
    """
    return float(np.mean(pairwise_iou([target], image_masks, height, width))) if image_masks else 0.0


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
    if index.duplicated(KEY).any():
        row = index[index.duplicated(KEY)].iloc[0]
        raise UserError(f"{path}: ref {row['ref_id']} of {row['dataset']} occurs twice; run `dvc repro -f prepare`")
    for column in LIST_COLUMNS:
        index[column] = pd.Series([values.tolist() for values in index[column]], index=index.index, dtype=object)
    return index.astype(dict(INDEX_COLUMNS))


def with_tuning_split(index: pd.DataFrame) -> pd.DataFrame:
    """Return the index with a split `tune`. The built-in data set has one. Of any other, a tenth of the training images
    move there from `train`; their names decide which.
    """
    if (index["split"] == TUNE).any():
        return index
    tenth = {name for name in set(index["file_name"]) if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0}
    held_out = (index["split"] == "train") & index["file_name"].isin(tenth)
    return index.assign(split=index["split"].mask(held_out, TUNE))


def _index_row(referred: ReferredObject) -> dict[str, Any]:
    return vars(referred) | {
        "ann_ids": list(referred.ann_ids),
        "sentences": [sentence.text for sentence in referred.sentences],
        "sent_ids": [sentence.sent_id for sentence in referred.sentences],
        "kinds": [sentence.kind for sentence in referred.sentences],
        "n_objects": len(referred.image_masks),
        "chance_iou": chance_iou(referred.rle_counts, referred.image_masks, referred.height, referred.width),
    }
