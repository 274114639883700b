"""Where a search is kept: a journal file in its own folder, or a database that several machines share.

Trials that were running when their search was killed are failed and asked again, with the same parameters: a trainer
that has a checkpoint goes on from it.
"""

import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from wimfris.errors import UserError
from wimfris.files import write_text

HEARTBEAT, GRACE = 15, 90  # seconds between two signs of life in a database, and without one until a trial is given up
RETRIES = 3  # of a trial whose search was killed; more often, it may be the trial that kills it
ATTEMPTS = 5  # at the tables of a new database, which another search may be making

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(place: str) -> BaseStorage:
    """The storage at a path (a journal file) or a URL of SQLAlchemy's. Raises UserError where it cannot be used."""
    with clear_errors(place, opening=True):
        if "://" not in place:
            return JournalStorage(JournalFileBackend(place))
        return _database(place)


def _database(url: str) -> RDBStorage:
    """Optuna makes its tables where there are none: of two searches that begin at once on an empty database the later
    one fails at those of the other, and looks again.
    """
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    def opened() -> RDBStorage:
        postgresql = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs=postgresql if url.startswith("postgresql") else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=retry,
            )

    for _ in range(ATTEMPTS - 1):
        with suppress(IntegrityError, ProgrammingError):
            return opened()
        time.sleep(1)
    return opened()


def check_url(url: str) -> None:
    """Raises UserError where several machines cannot share what lies there."""
    if "://" not in url or url.startswith("sqlite"):
        told = "SQLite is not made for several that write" if url.startswith("sqlite") else "not the URL of a database"
        raise UserError(
            f"--storage {hidden(url)}: {told}; for example postgresql+psycopg://user@host/name, or leave it out: a "
            "journal file serves one machine"
        )


@contextmanager
def clear_errors(place: str, *, opening: bool = False) -> Iterator[None]:
    """What can be wrong with a storage, in one line; that a file is no journal shows when it is opened."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        if not opening or "://" in place:
            raise
        raise UserError(
            f"{place}: not a journal of Optuna ({type(error).__name__}: {error}); move it away to begin anew, its "
            "trials' outs lie beside it"
        ) from None
    except (ImportError, NoSuchModuleError):
        if "://" not in place:
            raise
        raise UserError(
            f"--storage {hidden(place)}: the driver is not installed; `pip install -e '.[postgres]'`"
        ) from None
    except ArgumentError:
        raise UserError(
            f"--storage {hidden(place)}: not the URL of a database; for example postgresql+psycopg://user@host/name"
        ) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        of = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        told = str(getattr(of, "orig", None) or of.args[0]).strip().splitlines()[0]
        raise UserError(f"--storage {hidden(place)}: {told}") from None
    except OSError as error:
        raise UserError(f"{error.filename or hidden(place)}: {error.strerror or error}") from None


def hidden(place: str) -> str:
    """The place without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if "://" not in place:
        return place
    try:
        return make_url(place).render_as_string(hide_password=True)
    except ArgumentError:
        return place.rpartition("@")[2]


def mend_journal(path: Path) -> None:
    """Drop a last line that a kill cut off: what is appended to it would make the whole unreadable. Raises ValueError
    where it does not begin as a journal does.
    """
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if content and not content.startswith(b"{"):
        raise ValueError("its first line is none")
    if len(whole) < len(content) and content.startswith(b'{"op_code"'):
        text = whole.decode()
        print(f"wimfris: {path}: its last line was cut off by a kill, and is dropped", file=sys.stderr, flush=True)
        write_text(path, text)


# --- orphans ----------------------------------------------------------------------------------------------------------


def sign(study: Study, trial: int) -> None:
    """Note that this process started a trial, and give its first sign of life."""
    storage = study._storage
    storage.set_trial_user_attr(trial, "by", f"{socket.gethostname()}:{os.getpid()}")
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial)


def fail_stale(study: Study) -> None:
    """Fail the trials of which a database has had no sign of life, and ask them again; in a journal there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def retry(study: Study, trial: FrozenTrial, *, killed: bool = True) -> None:
    """Ask a failed trial again, with the same parameters; if its search was killed too often beside it, it has failed
    for good, and counts.
    """
    attrs = {key: value for key, value in trial.user_attrs.items() if key != "by"}
    kills = trial.user_attrs.get("kills", 0) + killed
    spent = kills > RETRIES
    told = {"kills": kills} | ({"failure": f"its search was killed {kills} times while it ran"} if spent else {})
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if spent else TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs | told,
            system_attrs=trial.system_attrs | {"failed_trial": original(trial)},
            intermediate_values=trial.intermediate_values,
        )
    )


def original(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats after a kill; its own where it repeats none."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def is_orphan(trial: FrozenTrial, shared: bool) -> bool:
    """Whether the search that started a running trial is gone. In a journal, which one search at a time uses, any that
    runs at its start is; in a database, this machine's whose process is gone, and one that nobody has signed in time:
    other machines' tell by their heartbeat.
    """
    import psutil  # type: ignore[import-untyped]

    if not shared:
        return True
    if "by" not in trial.user_attrs:
        begun = trial.datetime_start
        return begun is not None and datetime.now() - begun > timedelta(seconds=GRACE)
    host, _, process = str(trial.user_attrs["by"]).rpartition(":")
    return host == socket.gethostname() and not psutil.pid_exists(int(process))


def give_up(study: Study, trial: FrozenTrial, *, killed: bool = True) -> None:
    """Fail a running trial, and ask it again, unless another search has just done so."""
    try:
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return
    retry(study, study._storage.get_trial(trial._trial_id), killed=killed)


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: scored, pruned, or failed for a reason of their own. Those of a killed search do not."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)

    def counts(trial: FrozenTrial) -> bool:
        return trial.state in done or (trial.state == TrialState.FAIL and "failure" in trial.user_attrs)

    return list(filter(counts, trials))


def describe(trial: FrozenTrial, name: str) -> dict[str, Any]:
    """A trial as the evidence keeps it; `name` is its run's, as a variant."""
    times = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "name": name,
        "state": trial.state.name.lower(),
        "values": trial.values if trial.state == TrialState.COMPLETE else None,
        "epochs": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
        "drawn": trial.params,
        "overrides": trial.user_attrs.get("overrides", {}),
        "adapters": trial.user_attrs.get("adapters"),
        "trained": trial.user_attrs.get("trained"),
        "latency_ms": trial.user_attrs.get("latency_ms"),
        "failure": trial.user_attrs.get("failure"),
        "same_as": trial.user_attrs.get("same_as"),  # an earlier trial of the same settings, whose outs are these too
        "metrics": trial.user_attrs.get("metrics", {}),
        "seconds": round((times[1] - times[0]).total_seconds(), 1) if times[0] and times[1] else None,
    }
