"""Studies made of measurements: the files of `wimfris measure`, what such a study reads, and what it shows.

The measurements lie at reports/measures/<set>-<scale>/ and are committed, so that their studies need neither weights
nor torch. Beside them, origin.json records for each file the commit, the settings of `full` and the code of its model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wimfris.errors import UserError
from wimfris.files import replacing, write_text
from wimfris.results.comparisons import Comparisons
from wimfris.results.csv_files import read_csv
from wimfris.results.evidence import REPORTS
from wimfris.results.formats import Section
from wimfris.runs.fingerprint import digest, run_code
from wimfris.runs.manifest import code_revision
from wimfris.settings.params import Params
from wimfris.settings.same import differences
from wimfris.settings.schema import Settings


@dataclass(frozen=True)
class Inputs:
    """What a study's report is a function of, at one data set and scale."""

    params: Params
    settings: Settings  # of `full`
    records: pd.DataFrame  # of the study's runs, columns of `SCHEMA`; empty for a study without runs
    measures: Mapping[str, pd.DataFrame]  # file name -> its content
    ingested: pd.DataFrame = field(default_factory=pd.DataFrame)  # records of systems that were not trained here
    comparisons: Comparisons | None = None  # the committed ones, for the study of the controls


@dataclass(frozen=True)
class Report:
    """What a study shows: tables, the frame of its CSV, and its picture."""

    sections: list[Section]
    frame: pd.DataFrame
    draw: Callable[[Path], None]  # draws the picture to a PNG
    intro: str = ""  # Markdown, below the question and the paper's answer
    columns_left_out: tuple[str, ...] = ()  # of the tables in the terminal
    parts: "Mapping[str, Report]" = field(default_factory=dict)  # further files, <study>-<name>, and their reports


@dataclass(frozen=True)
class Measured:
    """A study whose numbers come from measurements, and from records where it names variants."""

    name: str  # of its files
    title: str
    question: str
    paper: str  # the paper's answer, and where it gives it
    measures: tuple[str, ...]  # file names under reports/measures/<set>-<scale>/
    report: Callable[[Inputs], Report]
    variants: tuple[str, ...] = ()  # whose runs' records it reads
    controls: bool = False  # it reads the records of every run, and trains the controls of params.yaml

    def variants_of(self, params: Params) -> list[str]:
        """Return the variants whose runs it needs: for the study of the controls, those and the variants they equal."""
        names = [name for group in params.same_function() for name in group] if self.controls else []
        return [*self.variants, *names]


ORIGIN = "origin.json"
CEILING = "ceiling.csv"  # `wimfris ceiling --write`
WITHOUT_MODEL = {CEILING: ("data", "encoders", "evaluate")}  # file -> the sections of the settings that decide it


def measure_path(name: str, file: str, reports: Path = REPORTS) -> Path:
    """Return the path of a measurement's file of a set and scale (`name`, for example scenes-tiny)."""
    return reports / "measures" / name / file


def write_measure(frame: pd.DataFrame, settings: Settings, file: str, reports: Path = REPORTS) -> None:
    """Write a measurement as CSV (nine significant digits) or Parquet, and its origin.

    settings: of `full`. The bytes of the measurement depend on the frame alone.
    """
    path = measure_path(settings.folder.name, file, reports)
    if path.suffix == ".csv":
        write_text(path, frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    else:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=19)
    origins = _origins(settings, reports)
    origins[file] = {**code_revision(), "code": _code(settings), "settings": settings.model_dump(mode="json")}
    write_text(path.with_name(ORIGIN), json.dumps(dict(sorted(origins.items())), indent=1) + "\n")


def read_measure(settings: Settings, file: str, reports: Path = REPORTS) -> pd.DataFrame:
    """Read a measurement. Raises UserError where its file is missing, or was measured with other settings of `full`."""
    path = measure_path(settings.folder.name, file, reports)
    command = "wimfris ceiling --write" if file == CEILING else "wimfris measure"
    if not path.is_file():
        raise UserError(f"{path}: no such measurement; restore it with git, or make it with `{command}`")
    origin = _origins(settings, reports).get(file)
    changed = ["nothing records its settings"] if origin is None else differences(settings, origin["settings"])
    if origin is not None and file in WITHOUT_MODEL:
        changed = [one for one in changed if one.partition(".")[0] in WITHOUT_MODEL[file]]
    if changed:
        raise UserError(f"{path}: of other settings ({changed[0]}); measure again with `{command}`")
    return read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def origin_note(settings: Settings, files: Sequence[str], reports: Path = REPORTS) -> str:
    """Return where measurements come from, in a sentence: their commit, and whether the model's code has changed."""
    recorded = _origins(settings, reports)
    origins = [recorded[file] for file in files]
    commits = dict.fromkeys(f"{(one['commit'] or 'unknown')[:7]}{'+' if one['dirty'] else ''}" for one in origins)
    code = _code(settings)
    changed = any(recorded[file]["code"] != code for file in files if file not in WITHOUT_MODEL)
    return f"Measured at commit {' and '.join(commits)}." + " The code of the model has changed since." * changed


def _origins(settings: Settings, reports: Path) -> dict[str, Any]:
    path = measure_path(settings.folder.name, ORIGIN, reports)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: not a JSON file; restore it with `git checkout`") from None


def _code(settings: Settings) -> str:
    return digest(run_code(settings.model_dump(mode="json")["model"]))
