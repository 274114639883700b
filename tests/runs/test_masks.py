"""The masks that a run leaves: those of its first evaluation split, and no others."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wimfris.data.index import decode_mask, read_index
from wimfris.data.rle import decode_rle
from wimfris.errors import UserError
from wimfris.runs.masks import read_masks, write_masks
from wimfris.runs.records import SCHEMA as RECORDS
from wimfris.runs.records import read_records

KEY = ["ref_id", "sent_id"]


@pytest.mark.slow
def test_masks_judged_again_give_the_records(trained: Any) -> None:
    files = trained.files()
    masks, records = read_masks(files.masks), read_records(files.records)
    assert list(records.columns)[: len(RECORDS)] == RECORDS.names and "mask" not in records
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    both = masks.merge(own, on=["run", "dataset", "split", *KEY], validate="1:1")
    assert len(both) == len(own) == len(masks) > 5 and both["union"].max() > 0
    targets = {
        row["ref_id"]: decode_mask(row) for row in read_index(trained.runs / "index/index.parquet").to_dict("records")
    }
    for row in both.to_dict("records"):
        mask, target = decode_rle(row["rle"], row["height"], row["width"]), targets[row["ref_id"]]
        assert (mask & target).sum() == row["intersection"] and (mask | target).sum() == row["union"]


@pytest.mark.slow
def test_bytes_depend_on_the_set_of_rows(trained: Any, tmp_path: Path) -> None:
    path = trained.files().masks
    write_masks(read_masks(path).sample(frac=1, random_state=0), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", [None, b"PAR1", pd.DataFrame({"run": ["full-0"]})])
def test_a_file_that_holds_no_masks_is_refused_in_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "masks.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.to_parquet(path)
    with pytest.raises(UserError, match=r"masks\.parquet: (no such masks|damaged)") as error:
        read_masks(path)
    assert "\n" not in str(error.value)
