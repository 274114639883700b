"""The predicted masks of a run on its first evaluation split, in one Parquet file per run."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wimfris.errors import UserError
from wimfris.files import replacing
from wimfris.runs.records import CASE, first_images

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "run": pa.string(),
            "dataset": pa.string(),
            "split": pa.string(),
            "ref_id": pa.int64(),
            "sent_id": pa.int64(),
            "height": pa.int64(),  # of the mask, the size at which the protocol judges, as is the width
            "width": pa.int64(),
            "rle": pa.string(),  # COCO's compressed run lengths
        }.items()
    ]
)
"""The columns of masks and their types."""


def masks_of(records: pd.DataFrame, split: str, images: int | None) -> pd.DataFrame:
    """Return the masks of a split's own sentences as `SCHEMA`, from records with the column `mask` of `judge`.

    Only those of the first `images` images, or of all with None.
    """
    own = records[(records["split"] == split) & (records["condition"] == "sentence")]
    own = first_images(own, images)
    masks = own["mask"].tolist()
    sizes = {"height": [mask["size"][0] for mask in masks], "width": [mask["size"][1] for mask in masks]}
    return own.assign(**sizes, rle=[mask["counts"] for mask in masks])[SCHEMA.names].reset_index(drop=True)


def write_masks(masks: pd.DataFrame, path: Path, schema: pa.Schema = SCHEMA) -> None:
    """Write masks atomically. The bytes depend on the set of rows, not on their order."""
    ordered = masks.sort_values([*CASE, "run"])  # similar masks lie together
    table = pa.Table.from_pandas(ordered, schema=schema, preserve_index=False).replace_schema_metadata(None)
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", compression_level=19)


def read_masks(path: Path, schema: pa.Schema = SCHEMA) -> pd.DataFrame:
    """Read masks. Raises UserError where the file is missing, damaged or has other columns."""
    advice = "restore a committed file with `git checkout`; delete the folder of a run and run `dvc repro`"
    if not path.is_file():
        raise UserError(f"{path}: no such masks; {advice}")
    try:
        table = pq.read_table(path, partitioning=None)
        return table.select(schema.names).cast(schema).to_pandas()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise UserError(f"{path}: damaged, or not a table of masks; {advice}") from None
