"""The records of a run: one row per evaluated sentence, in one Parquet file per run.

Every table, figure and interval is a function of these rows.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wimfris.errors import UserError
from wimfris.files import replacing
from wimfris.runs.files import RunFiles

SPLITS = ("train", "val", "testA", "testB", "test", "tune")
"""The splits, in the order in which tables show them."""

CONDITIONS = ("sentence", "shuffled", "empty")
"""What the model reads: its sentence, the sentence of another image, or nothing. The last two are the controls."""

CASE = ["dataset", "split", "ref_id", "sent_id"]
"""The columns that identify a sentence in the records of a run."""

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "run": pa.string(),  # variant-seed, for example "full-0"
            "variant": pa.string(),
            "seed": pa.int64(),
            "dataset": pa.string(),
            "scale": pa.string(),
            "protocol": pa.string(),
            "split": pa.string(),
            "condition": pa.string(),
            "ref_id": pa.int64(),
            "sent_id": pa.int64(),
            "image_id": pa.int64(),
            "sentence": pa.string(),  # the text that the model saw
            "kind": pa.string(),  # attribute, superlative, relation; "" for natural data
            "target_area": pa.int64(),  # pixels, at the image's original size
            "intersection": pa.int64(),  # pixels, as is the union, at the size where the protocol judges
            "union": pa.int64(),
        }.items()
    ]
)
"""The records' columns and their types."""

OBJECT_COLUMNS = {
    "best_object": pa.int64(),  # annotation id of the image's object with the highest IoU; -1 where none overlaps
    "best_iou": pa.float64(),  # with that object, at the size where the protocol judges
    "right_object": pa.bool_(),  # whether the sentence names that object
    "distractors": pa.int64(),  # other objects of the image of the class that the sentence names
}
"""Further columns, all or none of them. Runs of earlier versions lack them; beside other runs their cells are empty."""

NO_SEED = -1
"""The seed in the records of a system that was not trained here, of which there is one set of weights."""

_AGAIN = "restore a committed file with `git checkout`; delete any other and run `dvc repro`"


def write_records(frame: pd.DataFrame, path: Path) -> None:
    """Write the records of one run atomically. The bytes depend on the set of rows, not on their order.

    `frame` has the columns of `SCHEMA`, and all or none of `OBJECT_COLUMNS`, in any order. Raises `UserError` where a
    column is missing, unknown or of another type, or where a value is impossible.
    """
    _check_columns(list(frame.columns), path)
    ordered = frame.sort_values(SCHEMA.names)
    try:
        table = as_table(ordered)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise UserError(f"{path}: records do not fit their columns: {' '.join(map(str, error.args))}") from error
    _check_values(ordered, path)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def as_table(frame: pd.DataFrame) -> pa.Table:
    """Return records as a table with the columns of `SCHEMA`, then those of `OBJECT_COLUMNS` where it has them."""
    return pa.Table.from_pandas(frame, schema=_schema(frame.columns), preserve_index=False).replace_schema_metadata(
        None
    )


def holds_objects(frame: pd.DataFrame) -> bool:
    """Return whether all of these records have `OBJECT_COLUMNS`."""
    return "best_object" in frame and bool(frame["best_object"].notna().all())


def _schema(names: Iterable[str]) -> pa.Schema:
    further = OBJECT_COLUMNS if "best_object" in names else {}
    return pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in further.items())])


def first_images(frame: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """Return the rows of the first `count` images in the order of the rows, or all rows with None.

    frame: of one split, with the columns `dataset` and `image_id`.
    """
    if count is None:
        return frame
    return frame[frame.groupby(["dataset", "image_id"], sort=False).ngroup() < count]


def read_records(path: Path) -> pd.DataFrame:
    """Read records, columns in the order of `SCHEMA` and `OBJECT_COLUMNS`.

    Raises `UserError`, one line that names the file and the column, where the file is missing, truncated or not of
    this schema.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such records; run `dvc repro` to train and evaluate the run")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: truncated or not a Parquet file; {_AGAIN}") from error
    _check_columns(table.schema.names, path)
    schema = _schema(table.schema.names)
    for field in schema:
        kind = table.schema.field(field.name).type
        kind = pa.string() if pa.types.is_large_string(kind) else kind  # pandas writes large strings
        if kind != field.type:
            raise UserError(f"{path}: column '{field.name}' must hold {field.type}, got {kind}; {_AGAIN}")
        if table[field.name].null_count and not field.nullable:
            raise UserError(f"{path}: column '{field.name}' has empty cells; {_AGAIN}")
    frame = table.select(schema.names).to_pandas()
    _check_values(frame, path)
    return frame


def read_runs(outs: Path, runs: Sequence[object]) -> pd.DataFrame:
    """Read the records of these runs, `outs`/<run>/records.parquet, in that order.

    Raises `UserError` that names the runs whose records are missing, or the file that cannot be read.
    """
    paths = {run: RunFiles(outs / str(run)).records for run in runs}
    missing = [str(run) for run, path in paths.items() if not path.is_file()]
    if missing:
        raise UserError(f"{outs}: no records of {', '.join(missing)}; train with `dvc repro`")
    return pd.concat([read_records(path) for path in paths.values()], ignore_index=True)


def _check_columns(names: list[str], path: Path) -> None:
    required = _schema(OBJECT_COLUMNS if set(names) & set(OBJECT_COLUMNS) else ()).names
    for name in required:
        if name not in names:
            raise UserError(f"{path}: column '{name}' is missing; {_AGAIN}")
    for name in names:
        if name not in required:
            raise UserError(f"{path}: column '{name}' is not one of the records' columns; {_AGAIN}")


def _check_values(frame: pd.DataFrame, path: Path) -> None:
    """Refuse values that a table would silently drop, or that make an impossible IoU."""
    if frame.empty:
        raise UserError(f"{path}: holds no rows; {_AGAIN}")
    for name, allowed in (("split", SPLITS), ("condition", CONDITIONS)):
        unknown = sorted(set(frame[name].unique()) - set(allowed))
        if unknown:
            raise UserError(
                f"{path}: column '{name}' must be one of {', '.join(allowed)}, got '{unknown[0]}'; {_AGAIN}"
            )
    impossible = (frame["intersection"] < 0) | (frame["intersection"] > frame["union"])
    if impossible.any():
        row = frame[impossible].iloc[0]
        raise UserError(
            f"{path}: column 'intersection' must be at most the union ({row['union']}), got {row['intersection']} "
            f"(split {row['split']}, sentence {row['sent_id']}); {_AGAIN}"
        )
