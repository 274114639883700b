"""Which runs are still to be trained: those that the store of finished runs does not hold."""

from collections.abc import Sequence

from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.manifest import is_finished
from wimfris.runs.store import fetch, is_stored, keep, run_entry
from wimfris.settings.params import Params
from wimfris.settings.run import Run


def pending_runs(params: Params, runs: Sequence[Run]) -> list[Run]:
    """Return the runs without a finished training of their present fingerprint. All are where data or encoders are not
    prepared yet.

    A finished run that lies under runs/ alone (DVC brought it from a remote, say) is copied into the store.
    """
    return [run for run in runs if not _is_finished(params, run)]


def _is_finished(params: Params, run: Run) -> bool:
    settings = params.settings_of(run)
    try:
        fingerprint = digest(decisive(settings, run.seed))
    except FileNotFoundError:
        return False
    entry = run_entry(settings.folder.name, str(run), fingerprint)
    if is_stored(entry):
        return True
    files = RunFiles(settings.outs / str(run))
    if not is_finished(files, fingerprint):
        return False
    keep(files, entry)
    return True


def fetch_runs(params: Params, runs: Sequence[Run]) -> None:
    """Copy finished runs from the store to their place under runs/, where they are not there already."""
    for run in runs:
        settings = params.settings_of(run)
        files = RunFiles(settings.outs / str(run))
        fingerprint = digest(decisive(settings, run.seed))
        if not is_finished(files, fingerprint):
            fetch(run_entry(settings.folder.name, str(run), fingerprint), files)
