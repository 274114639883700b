"""The masks of the evidence: those of the first seed of a few systems, for the explorer.

Files in reports/masks/, for a data set and scale `<name>`:

    <name>.parquet         masks of the core's runs (stage `evidence` makes them from runs/)
    <name>-added.parquet   masks of gathered runs, and of the systems that `ingest` took in

params.yaml lists the systems in `explorer`. Column `records` ties a run's masks to its records: it holds their hash, as
runs.csv does. Git ignores the masks of every data set but the built-in one. Evidence of earlier versions has no masks.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from wimfris.errors import UserError
from wimfris.runs.files import RunFiles
from wimfris.runs.masks import SCHEMA, read_masks, write_masks
from wimfris.runs.records import NO_SEED
from wimfris.settings.params import Params
from wimfris.settings.run import Run

EVIDENCE_SCHEMA = SCHEMA.append(pa.field("records", pa.string(), nullable=False))
"""The columns of masks, and the hash of the run's records."""


def run_masks(params: Params, folders: Mapping[Run, Path], runs: pd.DataFrame) -> pd.DataFrame:
    """Return the masks of those of the runs that the explorer shows; `runs` are their rows of runs.csv.

    Raises UserError where a folder holds the masks of another run.
    """
    hashes = dict(zip(runs["run"], runs["records"], strict=True))
    frames = [pd.DataFrame(columns=EVIDENCE_SCHEMA.names)]
    for run in params.explorer_runs():
        if run not in folders:
            continue
        path = RunFiles(folders[run]).masks
        masks = read_masks(path)
        if set(masks["run"]) - {str(run)}:
            raise UserError(
                f"{path}: holds masks of {masks['run'].iloc[0]} instead of {run}; delete the folder and run `dvc repro`"
            )
        frames.append(masks.assign(records=hashes[str(run)]))
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def write_evidence_masks(params: Params, path: Path, fresh: pd.DataFrame, runs: pd.DataFrame, *, merge: bool) -> None:
    """Write masks into a part of the evidence, whose runs.csv holds `runs`. With `merge`, masks that the file holds of
    other runs stay, unless their records are no longer in the evidence or the explorer no longer shows them.
    """
    parts = [fresh]
    if merge and path.is_file():
        held = read_masks(path, EVIDENCE_SCHEMA)
        shown = set(map(str, params.explorer_runs())) | set(runs[runs["seed"] == NO_SEED]["run"])
        current = _hashes(held).isin(_hashes(runs)) & held["run"].isin(shown) & ~held["run"].isin(fresh["run"])
        parts.append(held[current])
    write_masks(pd.concat([part for part in parts if len(part)] or [fresh]), path, EVIDENCE_SCHEMA)


def read_evidence_masks(path: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Read the masks of a part of the evidence, whose runs.csv holds `runs`; without a file, an empty table.

    Raises UserError where the masks of a run were not made with its records.
    """
    if not path.is_file():
        return pd.DataFrame(columns=EVIDENCE_SCHEMA.names)
    masks = read_masks(path, EVIDENCE_SCHEMA)
    foreign = masks[~_hashes(masks).isin(_hashes(runs))]
    if len(foreign):
        raise UserError(
            f"{path}: the masks of {foreign['run'].iloc[0]} belong to other records than the evidence holds; restore "
            "the folder reports with `git checkout`, or gather the run again"
        )
    return masks


def _hashes(frame: pd.DataFrame) -> pd.Series:
    """Return the run and the hash of its records, as one string a row."""
    return frame["run"].astype(str) + " " + frame["records"].astype(str)
