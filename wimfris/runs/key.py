"""The key of a run in the store: its fingerprint, where everything that the run depends on is prepared."""

from pathlib import Path
from typing import Protocol

from wimfris.errors import UserError
from wimfris.runs.fingerprint import _Settings, decisive, digest


class RunSettings(_Settings, Protocol):
    """What the key needs of `wimfris.settings.schema.Settings`."""

    @property
    def own_encoders(self) -> bool: ...

    @property
    def record_command(self) -> str: ...


def run_key(settings: RunSettings, seed: int) -> str:
    """Return the fingerprint of a run. Raises UserError where its data or its encoders are not prepared."""
    try:
        return digest(decisive(settings, seed))
    except FileNotFoundError as error:
        own = Path(error.filename) == settings.encoders_record and settings.own_encoders
        command = settings.record_command if own else "dvc repro prepare encoders"
        raise UserError(f"{error.filename}: not prepared; run `{command}` first") from None
