"""Where Optuna stores a search (a journal file, or a database for several machines), and its repair after a kill.

A trial whose search was killed is marked as failed, and its parameters are enqueued again under its original number.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from wimfris.errors import UserError

ATTEMPTS = 5  # to create the tables of a new database
UNOWNED = timedelta(minutes=1)  # the longest that a live search leaves a trial without an owner

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(place: str) -> BaseStorage:
    """Open a journal file (a path) or a database (a URL of SQLAlchemy's). Raises UserError if that fails."""
    with storage_errors(place):
        if "://" in place:
            return _open_database(place)
        try:
            return JournalStorage(JournalFileBackend(place))
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise _not_a_journal(place, f"{type(error).__name__}: {error}") from None


def _open_database(url: str) -> RDBStorage:
    """Open a database, and create Optuna's tables if they are missing.

    Of two searches that create them at the same time, one fails and tries again.
    """
    options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}} if url.startswith("postgresql") else None
    try:
        for _ in range(ATTEMPTS - 1):
            with suppress(IntegrityError, ProgrammingError):
                return RDBStorage(url, engine_kwargs=options)
            time.sleep(1)
        return RDBStorage(url, engine_kwargs=options)
    except ImportError:
        reason = "its driver is not installed; for PostgreSQL: `pip install -e '.[postgres]'`"
        raise UserError(f"--storage {_without_password(url)}: {reason}") from None


def check_url(url: str) -> None:
    """Raise UserError if the URL is not of a database that several machines can share."""
    if "://" not in url or url.startswith("sqlite"):
        raise UserError(
            f"--storage {_without_password(url)}: must be the URL of a database server, for example "
            "postgresql+psycopg://user@host/name; one machine needs no database: omit the option"
        )


def check_journal(path: Path) -> None:
    """Raise UserError if Optuna must not append to the file; remove the lock that a killed search left.

    Optuna appends with one write, which a kill does not interrupt. But a full disk can leave half a line.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna would wait half a minute for it
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.startswith(b'{"op_code"'):
        raise _not_a_journal(path, "it starts with something else")
    if content and not content.endswith(b"\n"):
        raise _not_a_journal(path, "its last line is incomplete")


def _not_a_journal(path: Path | str, reason: str) -> UserError:
    return UserError(f"{path}: not a journal of Optuna ({reason}); repair it, or move it away to start the search over")


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn the errors of a storage into a UserError of one line without the password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = str(getattr(cause, "orig", None) or cause.args[0]).strip().splitlines()[0]
        raise UserError(f"--storage {_without_password(place)}: {reason}") from None
    except OSError as error:
        raise UserError(f"{error.filename or _without_password(place)}: {error.strerror or error}") from None


def _without_password(place: str) -> str:
    if "://" not in place:
        return place
    try:
        return make_url(place).render_as_string(hide_password=True)
    except ArgumentError:
        return place.rpartition("@")[2]


# --- trials that a killed search left ---------------------------------------------------------------------------------


def claim(trial: Trial) -> None:
    """Record this process as the owner of a trial that it has just asked for."""
    trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")


def is_abandoned(trial: FrozenTrial) -> bool:
    """Return whether the owner of a running trial in a shared database was a process on this machine that has ended."""
    if "owner" not in trial.user_attrs:
        return trial.datetime_start is not None and datetime.now() - trial.datetime_start > UNOWNED
    host, _, process = str(trial.user_attrs["owner"]).rpartition(":")
    return host == socket.gethostname() and not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def recover(study: Study, shared: bool) -> list[FrozenTrial]:
    """Retry all trials whose search was killed, in the order of their numbers; return them.

    One search at a time uses a journal, so there every running trial is abandoned.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    abandoned = [trial for trial in running if not shared or is_abandoned(trial)]
    return [trial for trial in abandoned if retry(study, trial)]


def retry(study: Study, trial: Trial | FrozenTrial) -> bool:
    """Mark a running trial as failed, and enqueue its parameters again; return whether it was still running.

    A trial that was killed before its draw was complete is not enqueued: the next one repeats the draw.
    """
    attrs = trial.user_attrs
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # another search was faster
        return False
    if "overrides" in attrs and "failure" not in attrs:
        study.enqueue_trial(trial.params, user_attrs={"original": original(trial)})
    return True


def original(trial: Trial | FrozenTrial) -> int:
    """Return the number of the trial that this one retries, or its own: the number in its run's name."""
    return int(trial.user_attrs.get("original", trial.number))


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: scored, pruned, or failed for a reason. Killed ones do not."""
    scored = TrialState.COMPLETE, TrialState.PRUNED
    return [t for t in trials if t.state in scored or (t.state == TrialState.FAIL and "failure" in t.user_attrs)]
