"""Check that files belong to the run that is asked for. All code that reads the files of a run uses this rule."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from wimfris.errors import UserError
from wimfris.runs.files import RunFiles
from wimfris.runs.manifest import read_manifest
from wimfris.settings.run import Run
from wimfris.settings.same import differences
from wimfris.settings.schema import Settings


def own_files(settings: Settings, run: Run) -> RunFiles:
    """Return the files of a run, once it is clear that they are this run's and were made with these settings and the
    recorded encoders.

    Raises UserError where they are not, or the run has not been trained. The code does not count: a docstring's edit
    must not bar a trained run from being looked at.
    """
    files = RunFiles(settings.outs / str(run))
    if not files.folder.is_dir():
        raise UserError(
            f"{files.folder}: {run} is not trained at scale {settings.scale}; train it with `wimfris matrix --variants "
            f"{run.variant} --seeds {run.seed}`, or set `scale` in params.yaml to that of the trained run"
        )
    manifest = read_manifest(files.manifest)
    owners = {files.manifest: manifest.get("run")}
    owners |= {path: owner(path) for path in (files.weights, files.records) if path.is_file()}
    for path, name in owners.items():
        if name != str(run):
            raise UserError(f"{path}: belongs to run {name}, not to {run}; delete {files.folder} and train {run} again")
    changed = differences(settings, manifest.get("settings", {}))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{files.folder}: trained with other settings: {changed[0]}{more}; restore params.yaml, or train the run "
            "again with `wimfris matrix`"
        )
    encoders = settings.encoders_record
    if encoders.is_file() and json.loads(encoders.read_text(encoding="utf-8")) != manifest.get("encoders"):
        raise UserError(
            f"{files.folder}: trained on other encoders than {encoders} records; train the run again with "
            "`wimfris matrix`"
        )
    return files


def owner(path: Path) -> str:
    """Return the run that a weights or records file names. Raises UserError where the file is damaged."""
    try:
        if path.suffix == ".parquet":
            names = pq.read_table(path, columns=["run"], partitioning=None)["run"].unique().to_pylist()
            return " and ".join(map(str, names))
        with safe_open(path, framework="np") as file:
            return str(json.loads((file.metadata() or {}).get("wimfris", "{}")).get("run", "unknown"))
    except (SafetensorError, pa.ArrowException, OSError, ValueError, KeyError):
        raise UserError(f"{path}: damaged; delete its folder and train the run again with `wimfris matrix`") from None
