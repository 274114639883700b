"""The store of finished runs: training writes a finished run here, and a DVC stage copies its outputs from here.

DVC removes the outputs of a stage before it runs the stage's command. The store is outside of them, so no finished run
is trained again. An entry is named by the run's fingerprint; `hashes.json` is written last and makes it valid.
"""

import json
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from wimfris.files import file_hash, to_disk, write_text, writing
from wimfris.runs.files import RunFiles

CHECKPOINTS = Path(".checkpoints")  # git ignores it
STORE = CHECKPOINTS / "done"
HASHES = "hashes.json"


def run_entry(name: str, run: str, fingerprint: str) -> Path:
    """Return where a finished run is kept. name: <data set>-<scale>."""
    return STORE / f"{name}-{run}-{fingerprint}"


def progress_file(name: str, run: str) -> Path:
    """Return the file in which the trainer of a run says how far it is: `<step> <total steps>`."""
    return CHECKPOINTS / "progress" / f"{name}-{run}"


def is_stored(entry: Path) -> bool:
    """Return whether the store holds this run."""
    return (entry / HASHES).is_file()


def keep(files: RunFiles, entry: Path) -> None:
    """Copy a finished run into the store."""
    _copy(files.folder, entry, {path.name: file_hash(path) for path in files.all})


def fetch(entry: Path, files: RunFiles) -> bool:
    """Copy a finished run out of the store. Return False where the store does not hold it.

    An entry whose files do not match their hashes is removed, so that the run is trained again.
    """
    if not is_stored(entry):
        return False
    try:
        hashes: dict[str, str] = json.loads((entry / HASHES).read_text(encoding="utf-8"))
    except ValueError:
        hashes = {HASHES: "damaged"}
    damaged = [name for name, value in hashes.items() if not _matches(entry / name, value)]
    if damaged:
        print(f"{entry}: {damaged[0]} is damaged; removed, the run is trained again", file=sys.stderr)
        shutil.rmtree(entry)
        return False
    _copy(entry, files.folder, None)
    return True


def prune(prefix: str, current: Collection[Path]) -> list[Path]:
    """Remove the entries whose names begin with `prefix` and that are not among `current`; return them."""
    stale = sorted(path for path in STORE.glob(f"{prefix}*") if path not in current)
    for path in stale:
        shutil.rmtree(path)
    return stale


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and file_hash(path) == sha256


def _copy(source: Path, target: Path, hashes: dict[str, str] | None) -> None:
    """Copy the files of a run; the target is complete or not there. Files are copied, never linked: DVC makes its own
    files read-only and links them.
    """
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in RunFiles(source).all:
            shutil.copyfile(path, partial / path.name)
            to_disk(partial / path.name)
        if hashes is not None:
            write_text(partial / HASHES, json.dumps(hashes, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        to_disk(target.parent)
