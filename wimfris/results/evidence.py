"""The evidence: the records of many runs of one data set and scale in one committed file, so that whoever clones the
repository regenerates every table, figure and verdict without training.

reports/records/<set>-<scale>.parquet holds the core's runs and <set>-<scale>-extended.parquet those beyond it;
beside each, <...>-emphasis.csv holds the emphasis alpha that its runs learned.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wimfris.errors import UserError
from wimfris.files import replacing
from wimfris.results.figures import read_log
from wimfris.runs.records import SCHEMA, read_records, read_runs
from wimfris.settings.params import Params
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings

FOLDER = Path("records")  # under reports/
PARTS = ("", "-extended")
EMPHASIS = ("run", "variant", "seed", "epoch", "layer", "alpha")
_BY_SENTENCE = ["split", "condition", "ref_id", "sent_id", "run"]  # what is equal lies together, and takes no room


def evidence_path(name: str, extended: bool, reports: Path = Path("reports")) -> Path:
    """Where the records of a set and scale (`name`, for example scenes-tiny) are kept."""
    return reports / FOLDER / f"{name}{PARTS[extended]}.parquet"


def finished(folder: Path, runs: Sequence[str]) -> list[str]:
    """Those of the runs whose records and log lie in the folder of their outs."""
    return [
        run
        for run in runs
        if (folder / "records" / f"{run}.parquet").is_file() and (folder / "logs" / f"{run}.jsonl").is_file()
    ]


def write_evidence(folder: Path, runs: Sequence[str], path: Path, kept: Sequence[str] = ()) -> None:
    """Gather records and learned emphasis of `runs`, whose outs lie in `folder`; of the runs `kept`, what `path` holds
    of them already. The bytes depend on the records alone.

    Raises `UserError` where a run's records or log are missing or damaged.
    """
    emphasis = pd.DataFrame(
        [
            (run, Run.parse(run).variant, Run.parse(run).seed, event["epoch"], int(layer), alpha)
            for run in runs
            for event in read_log(folder / "logs" / f"{run}.jsonl")
            if event["event"] == "epoch"
            for layer, alpha in event["emphasis"].items()
        ],
        columns=list(EMPHASIS),
    )
    records = read_runs(folder, runs) if runs else SCHEMA.empty_table().to_pandas()
    if kept:
        before, learned = read_records(path), pd.read_csv(_emphasis_path(path))
        records = pd.concat([records, before[before["run"].isin(kept)]])
        emphasis = pd.concat([emphasis, learned[learned["run"].isin(kept)]]).astype({"seed": int})
    records = records.sort_values(_BY_SENTENCE, kind="stable")
    table = pa.Table.from_pandas(records, schema=SCHEMA, preserve_index=False).replace_schema_metadata(None)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19)
    with replacing(_emphasis_path(path)) as temporary:
        ordered = emphasis.astype({"seed": int}).sort_values(list(EMPHASIS[:5]))
        ordered.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")


def changed(params: Params, run: str) -> bool:
    """Whether params.yaml gives a run other settings now than it was trained with, as its manifest tells; False where
    there is no manifest to tell. The scan's backend is how the same thing is computed, and none of them. Raises
    UserError as `Params.settings` does.
    """
    settings = params.settings_of(Run.parse(run))
    manifest = settings.outs / "manifests" / f"{run}.json"
    if not manifest.is_file():
        return False
    told = json.loads(manifest.read_text(encoding="utf-8"))
    try:
        return trained_with(told, settings) != settings
    except (KeyError, TypeError, ValueError):
        return True


def trained_with(manifest: dict[str, Any], settings: Settings) -> Settings:
    """The settings that a run's manifest tells, to be compared with these: a key that is newer than the run at its
    default, the scan's backend as here. Raises KeyError, TypeError or ValueError where they are none.
    """
    told = manifest["settings"]
    told["model"]["scan"] = settings.model.scan
    return Settings.model_validate(told | {"group": settings.group})


def current(params: Params, records: pd.DataFrame) -> pd.DataFrame:
    """The records without those of runs that were trained with other settings than params.yaml has now, or that it no
    longer has: they are no evidence of what is compared with them.
    """
    declared = {str(run) for run in params.all_runs()}
    kept = [run for run in records["run"].unique() if run in declared and not changed(params, run)]
    return records[records["run"].isin(kept)].reset_index(drop=True)


def gathered(path: Path) -> list[str]:
    """The runs that an evidence file holds; none where there is no file."""
    return sorted(read_records(path)["run"].unique()) if path.is_file() else []


def read_evidence(name: str, reports: Path = Path("reports")) -> pd.DataFrame:
    """The records of all gathered runs of a set and scale, core and extended, columns of `SCHEMA`.

    Raises `UserError` where the core's file is missing; the extended one may be.
    """
    paths = [evidence_path(name, extended, reports) for extended in (False, True)]
    if not paths[0].is_file():
        raise UserError(f"{paths[0]}: no such evidence; restore it with git, or make it with `dvc repro`")
    return pd.concat([read_records(path) for path in paths if path.is_file()], ignore_index=True)


def read_emphasis(name: str, reports: Path = Path("reports")) -> pd.DataFrame:
    """The learned emphasis of all gathered runs, a row a run, epoch and layer: columns of `EMPHASIS`."""
    paths = [_emphasis_path(evidence_path(name, extended, reports)) for extended in (False, True)]
    if not paths[0].is_file():
        raise UserError(f"{paths[0]}: no such evidence; restore it with git, or make it with `dvc repro`")
    return pd.concat([pd.read_csv(path) for path in paths if path.is_file()], ignore_index=True)


def _emphasis_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-emphasis.csv")
