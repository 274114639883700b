"""The evidence: the results of many runs of one data set and scale, committed, so that whoever clones the repository
makes every table, figure and verdict again without training.

Files in reports/records/, for a data set and scale `<name>` (for example scenes-tiny):

    <name>.parquet         one row per evaluated sentence of the core's runs (stage `evidence` makes it from runs/)
    <name>-runs.csv        one row per run: commit, fingerprint, settings, machine, cost, hashes of weights and records
    <name>-emphasis.csv    the emphasis alpha that the runs learned, by epoch and layer
    <name>-metrics/        mIoU, oIoU and precisions on val, one file per run, for `dvc metrics`
    <name>-added.*         the same for runs that no stage makes: beyond the core, of other machines, of other systems

`wimfris.results.masks` keeps the masks of a few systems beside them.

`wimfris gather` merges runs into the added files. Everything else in the report reads these files and nothing else.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from wimfris.errors import UserError
from wimfris.files import file_hash, replacing, write_text
from wimfris.results.csv_files import read_csv
from wimfris.results.masks import read_evidence_masks, run_masks, write_evidence_masks
from wimfris.results.scores import METRICS
from wimfris.runs.files import RunFiles
from wimfris.runs.key import run_key
from wimfris.runs.log import read_log
from wimfris.runs.manifest import is_finished, read_manifest
from wimfris.runs.records import CASE, OBJECT_COLUMNS, SCHEMA, as_table, holds_objects, read_records
from wimfris.settings.params import Params
from wimfris.settings.run import Run
from wimfris.settings.same import differences

REPORTS = Path("reports")
FOLDER, MASKS = "records", "masks"  # under reports/
RUN_COLUMNS = (
    "run",
    "variant",
    "seed",
    "commit",  # of the code; "+" after it where the code had uncommitted changes
    "fingerprint",
    "settings_sha256",
    "scan",  # the backend that computed the scan
    "device",
    "cpu_capability",
    "processes",
    "minutes",
    "memory_gib",
    "best_epoch",
    "trained_parameters",
    "weights",  # sha256:<hash> of the file
    "records",  # sha256:<hash> of the rows, see `records_hash`
    "settings",  # JSON
)
EMPHASIS_COLUMNS = ("run", "variant", "seed", "epoch", "layer", "alpha")
_BY_SENTENCE = ["split", "condition", "ref_id", "sent_id", "run"]  # equal values lie together and compress well


@dataclass(frozen=True)
class EvidenceFiles:
    """The files of one part of the evidence: the core's (`added` false), or the runs that no stage makes."""

    name: str
    added: bool
    reports: Path = REPORTS

    def _path(self, ending: str) -> Path:
        return self.reports / FOLDER / f"{self.name}{'-added' * self.added}{ending}"

    @property
    def records(self) -> Path:
        """One row per evaluated sentence."""
        return self._path(".parquet")

    @property
    def runs(self) -> Path:
        """One row per run."""
        return self._path("-runs.csv")

    @property
    def emphasis(self) -> Path:
        """One row per run, epoch and layer."""
        return self._path("-emphasis.csv")

    @property
    def masks(self) -> Path:
        """One row per mask, see `wimfris.results.masks`."""
        return self.reports / MASKS / f"{self.name}{'-added' * self.added}.parquet"

    @property
    def metrics(self) -> Path:
        """A folder with one file per run: metric -> value on val."""
        return self._path("-metrics")


@dataclass(frozen=True)
class Evidence:
    """Records (columns of `SCHEMA`), runs (`RUN_COLUMNS`) and learned emphasis (`EMPHASIS_COLUMNS`)."""

    records: pd.DataFrame
    runs: pd.DataFrame
    emphasis: pd.DataFrame

    def select(self, names: Sequence[str]) -> "Evidence":
        """Return the evidence of these runs alone."""
        frames = (frame[frame["run"].isin(list(names))] for frame in (self.records, self.runs, self.emphasis))
        return Evidence(*(frame.reset_index(drop=True) for frame in frames))

    def declared(self, params: Params) -> "Evidence":
        """Return the evidence without extra seeds, which decide claims and enter no table of results."""
        return self.select([str(run) for variant in params.all_variants for run in params.runs_of(variant)])

    def require(self, names: Sequence[str]) -> "Evidence":
        """Return the evidence of these runs alone. Raises UserError where one of them is not current evidence."""
        missing = [name for name in names if name not in set(self.runs["run"])]
        if missing:
            shown = ", ".join(missing[:3]) + f" and {len(missing) - 3} more" * (len(missing) > 3)
            variants = ",".join(dict.fromkeys(Run.parse(name).variant for name in missing))
            raise UserError(
                f"no evidence of {shown} with the present settings; restore params.yaml, or train with "
                f"`wimfris matrix --variants {variants}`, then `dvc repro` (the core) or `wimfris gather` (other runs)"
            )
        return self.select(names)


# --- from runs/ to the evidence ---------------------------------------------------------------------------------------


def write_core(params: Params, reports: Path = REPORTS) -> EvidenceFiles:
    """Make the core's evidence from the runs under runs/. Raises UserError where one is missing or damaged."""
    runs = params.runs()
    folders = {run: params.settings_of(run).outs / str(run) for run in runs}
    missing = [str(run) for run, folder in folders.items() if not _is_finished(params, run, folder)]
    if missing:
        raise UserError(
            f"{params.settings().outs}: {', '.join(missing)} missing, or trained with other settings or code; "
            "train with `wimfris matrix`, then `dvc repro`"
        )
    files = EvidenceFiles(params.settings().folder.name, added=False, reports=reports)
    evidence = _read_folders(folders)
    write_part(files, evidence)
    write_evidence_masks(params, files.masks, run_masks(params, folders, evidence.runs), evidence.runs, merge=False)
    shutil.rmtree(files.metrics, ignore_errors=True)
    for run, folder in folders.items():
        metrics = json.loads(RunFiles(folder).metrics.read_text(encoding="utf-8"))["val"]["sentence"]
        write_text(
            files.metrics / f"{run}.json", json.dumps({name: metrics[name] for name in METRICS}, indent=1) + "\n"
        )
    return files


def gather(params: Params, runs: Sequence[Run], reports: Path = REPORTS) -> tuple[EvidenceFiles, list[Run]]:
    """Merge those of the runs that are finished under runs/ into the added evidence. A run that the core's evidence
    holds with its present settings is left out. Return the files and the runs merged.

    Raises UserError where none of the runs is finished.
    """
    name = params.settings().folder.name
    core, files = EvidenceFiles(name, added=False, reports=reports), EvidenceFiles(name, added=True, reports=reports)
    there = set(_current_names(params, read_part(core).runs)) if core.records.is_file() else set()
    folders = {run: params.settings_of(run).outs / str(run) for run in runs if str(run) not in there}
    folders = {run: folder for run, folder in folders.items() if _is_finished(params, run, folder)}
    if not folders:
        raise UserError(f"{params.settings().folder}: no finished run to gather; train with `wimfris matrix` first")
    fresh = _read_folders(folders)
    masks = run_masks(params, folders, fresh.runs)
    if files.records.is_file():
        before = read_part(files)
        others = before.select([name for name in before.runs["run"] if name not in set(map(str, folders))])
        fresh = Evidence(
            *(pd.concat(pair, ignore_index=True) for pair in zip(_frames(others), _frames(fresh), strict=True))
        )
    write_part(files, fresh)
    write_evidence_masks(params, files.masks, masks, fresh.runs, merge=True)
    return files, list(folders)


def _is_finished(params: Params, run: Run, folder: Path) -> bool:
    """Return whether a folder holds this run, trained with the present settings, data, encoders and code."""
    return is_finished(RunFiles(folder), run_key(params.settings_of(run), run.seed))


def _frames(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return evidence.records, evidence.runs, evidence.emphasis


def _read_folders(folders: dict[Run, Path]) -> Evidence:
    records, rows, emphasis = [], [], []
    for run, folder in folders.items():
        files = RunFiles(folder)
        frame, manifest = read_records(files.records), read_manifest(files.manifest)
        owners = set(frame["run"].unique())
        if owners != {str(run)} or manifest["run"] != str(run):
            raise UserError(
                f"{folder}: holds {', '.join(sorted(owners | {manifest['run']}))} instead of {run}; delete the folder "
                "and run `dvc repro`"
            )
        records.append(frame)
        rows.append(_run_row(run, manifest) | {"weights": f"sha256:{file_hash(files.weights)}"})
        rows[-1]["records"] = records_hash(frame)
        emphasis += [
            (str(run), run.variant, run.seed, event["epoch"], int(layer), alpha)
            for event in read_log(files.log)
            if event["event"] == "epoch"
            for layer, alpha in event["emphasis"].items()
        ]
    return Evidence(
        pd.concat(records, ignore_index=True),
        pd.DataFrame(rows, columns=list(RUN_COLUMNS)),
        pd.DataFrame(emphasis, columns=list(EMPHASIS_COLUMNS)),
    )


def _run_row(run: Run, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what runs.csv says of a run, from its manifest."""
    code, memory = manifest["code"], manifest["peak_memory_bytes"]
    settings = json.dumps(manifest["settings"], sort_keys=True)
    return {
        "run": str(run),
        "variant": run.variant,
        "seed": run.seed,
        "commit": (code["commit"] or "none") + "+" * bool(code["dirty"]),
        "fingerprint": manifest["fingerprint"],
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "scan": manifest["scan"],
        "device": manifest["device"],
        "cpu_capability": manifest.get("cpu_capability", ""),
        "processes": manifest["processes"],
        "minutes": round(manifest["wall_seconds"] / 60, 2),
        "memory_gib": round(memory.get("cuda", memory["host"]) / 2**30, 2),
        "best_epoch": manifest["best_epoch"],
        "trained_parameters": manifest["trained_parameters"],
        "settings": settings,
    }


def records_hash(frame: pd.DataFrame) -> str:
    """Return the hash of a run's records: of their rows as CSV, in order. It depends on the rows alone, not on the
    Parquet file around them.
    """
    # Beside a run without the columns of objects, those of this run have another type.
    further = {name: kind.to_pandas_dtype() for name, kind in OBJECT_COLUMNS.items()} if holds_objects(frame) else {}
    ordered = frame[[*SCHEMA.names, *further]].astype(further).sort_values(SCHEMA.names)
    text = ordered.to_csv(index=False, lineterminator="\n")
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def write_part(files: EvidenceFiles, evidence: Evidence) -> None:
    """Write one part of the evidence. The bytes depend on the evidence alone, not on the order in which it was
    gathered.
    """
    records = evidence.records.sort_values(_BY_SENTENCE, kind="stable")
    table = as_table(records)
    with replacing(files.records) as partial:
        pq.write_table(table, partial, compression="zstd", compression_level=19)
    with replacing(files.runs) as partial:
        evidence.runs.sort_values(["variant", "seed"]).to_csv(partial, index=False, lineterminator="\n")
    with replacing(files.emphasis) as partial:
        ordered = evidence.emphasis.astype({"seed": int}).sort_values(list(EMPHASIS_COLUMNS[:5]))
        ordered.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


# --- from the evidence to the report ----------------------------------------------------------------------------------


def read_part(files: EvidenceFiles) -> Evidence:
    """Read one part of the evidence, current or not. Raises UserError where a file is missing or damaged."""
    for path in (files.records, files.runs, files.emphasis):
        if not path.is_file():
            raise UserError(f"{path}: no such evidence; restore it with `git checkout`, or run `dvc repro`")
    records = read_records(files.records)
    runs = read_csv(files.runs, RUN_COLUMNS, keep_default_na=False)
    missing = sorted(set(records["run"].unique()) - set(runs["run"]))
    if missing:
        raise UserError(f"{files.runs}: no row of {', '.join(missing)}; restore both files with `git checkout`")
    return Evidence(records, runs, read_csv(files.emphasis, EMPHASIS_COLUMNS))


def read_evidence(params: Params, reports: Path = REPORTS) -> Evidence:
    """Read the current evidence at the data set and scale of `params`: the runs that params.yaml declares and that were
    trained with the settings it gives them now. Of a run in both parts, the core's row counts where it is current.

    Raises UserError where there is no evidence at all, or a run of the records has no row in runs.csv.
    """
    name = params.settings().folder.name
    parts: list[Evidence] = []
    for added in (False, True):
        files = EvidenceFiles(name, added, reports)
        if files.records.is_file():
            part = read_part(files)
            taken = {run for other in parts for run in other.runs["run"]}
            parts.append(part.select([run for run in _current_names(params, part.runs) if run not in taken]))
    if not parts:
        path = EvidenceFiles(name, False, reports).records
        raise UserError(f"{path}: no such evidence; restore it with `git checkout`, or run `dvc repro`")
    return Evidence(*(pd.concat(frames, ignore_index=True) for frames in zip(*map(_frames, parts), strict=True)))


def read_masks_of(params: Params, evidence: Evidence, reports: Path = REPORTS) -> pd.DataFrame:
    """Read the masks of the runs of `evidence`, which is current or of systems that were not trained here.

    A run without masks has no row. Raises UserError where masks were made with other records than the evidence holds.
    """
    name = params.settings().folder.name
    both = (EvidenceFiles(name, added, reports) for added in (False, True))
    parts = [read_evidence_masks(files.masks, read_part(files).runs) for files in both if files.records.is_file()]
    masks = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    hashes = dict(zip(evidence.runs["run"], evidence.runs["records"], strict=True))
    own = masks[masks["records"] == masks["run"].map(hashes)]
    return own.drop_duplicates(["run", *CASE]).reset_index(drop=True)


def evidence_names(reports: Path = REPORTS) -> list[str]:
    """Return the data sets and scales that have evidence, for example scenes-tiny."""
    return sorted({path.stem.removesuffix("-added") for path in (reports / FOLDER).glob("*.parquet")})


def _current_names(params: Params, runs: pd.DataFrame) -> list[str]:
    declared = {str(run) for run in params.all_runs()}
    return [row["run"] for row in runs.to_dict("records") if row["run"] in declared and _is_current(params, row)]


def _is_current(params: Params, row: dict[Any, Any]) -> bool:
    """Return whether params.yaml gives a run the settings that it was trained with."""
    try:
        recorded = json.loads(row["settings"])
    except (TypeError, ValueError):
        return False
    return not differences(params.settings_of(Run.parse(row["run"])), recorded)
