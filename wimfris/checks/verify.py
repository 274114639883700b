"""`make verify`: train runs of the evidence again and compare them with it."""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pandas as pd

from wimfris.errors import UserError
from wimfris.files import file_hash, write_text
from wimfris.metrics import summarise
from wimfris.results.csv_files import read_csv
from wimfris.results.evidence import REPORTS, Evidence, read_evidence, records_hash
from wimfris.runs.files import RunFiles
from wimfris.runs.key import run_key
from wimfris.runs.manifest import read_manifest
from wimfris.runs.records import read_records
from wimfris.runs.store import CHECKPOINTS
from wimfris.settings.params import Params
from wimfris.settings.run import Run
from wimfris.training.run import train_into

ATTESTATIONS = REPORTS / "attestations.csv"
COLUMNS = (
    "date",
    "name",  # <data set>-<scale>
    "run",
    "outcome",  # same bits | same records | difference
    "val_miou_difference",  # of the new run and the evidence, in points
    "commit",  # at which the run was trained again
    "fingerprint",
    "device",
    "cpu_capability",
    "evidence_commit",
    "evidence_fingerprint",
    "evidence_device",
    "evidence_cpu_capability",
)


def verify_runs(params: Params, runs: Sequence[Run]) -> Iterator[str]:
    """Train each run again, without the store, and write what came of it to the attestations. Yield a line per run.

    Raises UserError where the evidence does not hold a run with its present settings.
    """
    evidence = read_evidence(params)
    missing = [str(run) for run in runs if str(run) not in set(evidence.runs["run"])]
    if missing:
        raise UserError(f"verify: no current evidence of {', '.join(missing)}")
    for run in runs:
        run_key(params.settings_of(run), run.seed)  # before the first training: is everything prepared?
    for run in runs:
        settings = params.settings_of(run)
        files = RunFiles(CHECKPOINTS / "verify" / f"{settings.folder.name}-{run}")
        shutil.rmtree(files.folder, ignore_errors=True)
        train_into(settings, run.seed, files.folder)
        row = _compare(evidence.select([str(run)]), files) | {"name": settings.folder.name}
        _append(row)
        shutil.rmtree(files.folder)
        yield f"{run}: {row['outcome']}, val mIoU {row['val_miou_difference']} points from the evidence's"


def _compare(evidence: Evidence, files: RunFiles) -> dict[str, str]:
    before, manifest, records = evidence.runs.iloc[0], read_manifest(files.manifest), read_records(files.records)
    same_records = records_hash(records) == before["records"]
    same_weights = f"sha256:{file_hash(files.weights)}" == before["weights"]
    difference = 100 * (_val_miou(records) - _val_miou(evidence.records))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "run": manifest["run"],
        "outcome": "same bits" if same_records and same_weights else "same records" if same_records else "difference",
        "val_miou_difference": f"{difference:+.2f}",
        "commit": str(manifest["code"]["commit"]) + "+" * bool(manifest["code"]["dirty"]),
        "fingerprint": manifest["fingerprint"],
        "device": manifest["device"],
        "cpu_capability": manifest["cpu_capability"],
        "evidence_commit": str(before["commit"]),
        "evidence_fingerprint": str(before["fingerprint"]),
        "evidence_device": str(before["device"]),
        "evidence_cpu_capability": str(before["cpu_capability"]),
    }


def _val_miou(records: pd.DataFrame) -> float:
    val = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    return summarise(val["intersection"].to_numpy(), val["union"].to_numpy())["miou"]


def _append(row: dict[str, str]) -> None:
    frame = pd.DataFrame([row], columns=list(COLUMNS))
    if ATTESTATIONS.is_file():
        frame = pd.concat([read_csv(ATTESTATIONS, COLUMNS, dtype=str, keep_default_na=False), frame])
    write_text(ATTESTATIONS, frame.to_csv(index=False, lineterminator="\n"))
