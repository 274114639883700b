"""The records' file: reading returns what was written, the rows alone decide the bytes, and errors name the file."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wimfris.errors import UserError
from wimfris.runs.files import RunFiles
from wimfris.runs.records import CONDITIONS, SCHEMA, read_records, read_runs, write_records
from wimfris.settings.run import Run


def records(name: str = "full-0") -> pd.DataFrame:
    run = Run.parse(name)
    rows = [
        {
            "run": name,
            "variant": run.variant,
            "seed": run.seed,
            "dataset": "scenes",
            "scale": "tiny",
            "protocol": "cris",
            "split": split,
            "condition": condition,
            "ref_id": ref_id,
            "sent_id": 10 * ref_id,
            "image_id": ref_id,
            "sentence": "" if condition == "empty" else f"thing {ref_id}",
            "kind": "attribute",
            "target_area": 50,
            "intersection": 20,
            "union": 60,
        }
        for split in ("val", "testA")
        for condition in CONDITIONS
        for ref_id in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def assert_one_line(error: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    """Assert that the message is one line and holds these parts."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_reading_returns_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "records.parquet"
    write_records(records(), path)
    read = read_records(path)
    assert list(read.columns) == SCHEMA.names
    order = ["split", "condition", "ref_id"]
    pd.testing.assert_frame_equal(
        read.sort_values(order, ignore_index=True), records().sort_values(order, ignore_index=True), check_dtype=False
    )
    assert list(path.parent.iterdir()) == [path], "no temporary file stays"


def test_order_of_rows_and_columns_does_not_change_the_bytes(tmp_path: Path) -> None:
    frame = records()
    write_records(frame, tmp_path / "a.parquet")
    write_records(frame.sample(frac=1, random_state=1)[frame.columns[::-1]], tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "full-0.parquet"
    write_records(records(), path)
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        write_records(records().drop(columns="union"), path)
    assert_one_line(error, path, "'union'")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 10, 0.5, -1])
def test_truncated_file(tmp_path: Path, size: float) -> None:
    path = tmp_path / "full-0.parquet"
    write_records(records(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * size) if isinstance(size, float) else size])
    with pytest.raises(UserError) as error:
        read_records(path)
    assert_one_line(error, path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_records(tmp_path / "full-7.parquet")
    assert_one_line(error, tmp_path / "full-7.parquet")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("seed", ["zero", "one"]),
        ("union", [1.5, 2.5]),
        ("sentence", ["a", None]),
        ("intersection", [61, 20]),
        ("intersection", [-1, 20]),
        ("split", ["val", "validation"]),
        ("condition", ["sentence", "other"]),
    ],
)
def test_bad_column(tmp_path: Path, column: str, values: list[object]) -> None:
    frame = records()[:2]
    frame[column] = pd.Series(values)
    path = tmp_path / "full-0.parquet"
    with pytest.raises(UserError) as error:
        write_records(frame, path)
    assert_one_line(error, path, column)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    with pytest.raises(UserError) as error:
        read_records(path)
    assert_one_line(error, path, column)


@pytest.mark.parametrize("column", ["union", "extra"])
def test_missing_or_unknown_column(tmp_path: Path, column: str) -> None:
    frame = records().drop(columns=column) if column in SCHEMA.names else records().assign(extra=1)
    path = tmp_path / "full-0.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    with pytest.raises(UserError) as error:
        read_records(path)
    assert_one_line(error, path, f"'{column}'")


def test_read_runs_returns_the_runs_in_order(tmp_path: Path) -> None:
    for run in ("none-0", "full-1", "full-0"):
        write_records(records(run), RunFiles(tmp_path / run).records)
    frame = read_runs(tmp_path, ["full-1", "full-0"])
    assert list(frame["run"].unique()) == ["full-1", "full-0"]
    assert len(frame) == 2 * len(records()) and frame.index.is_unique


def test_read_runs_names_the_missing_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_runs(tmp_path, ["full-0", "full-1"])
    assert_one_line(error, tmp_path, "full-0, full-1", "dvc repro")
