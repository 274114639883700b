"""Where a search is kept: a journal file in its own folder, or a database that several machines share.

Trials that were running when their search was killed are failed and asked again, with the same parameters: a trainer
that has a checkpoint goes on from it.
"""

import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from wimfris.errors import UserError
from wimfris.files import write_text

HEARTBEAT, GRACE = 15, 90  # seconds between two signs of life in a database, and without one until a trial is given up
RETRIES = 3  # of a trial whose search was killed; more often, it may be the trial that kills it
ATTEMPTS = 5  # at the tables of a new database, which another search may be making
STARTUP = 6  # trials drawn at random before TPE has anything to go by

optuna.logging.set_verbosity(optuna.logging.WARNING)


def make_sampler(kind: str, seed: int, begun: int) -> BaseSampler:
    """The sampler of the next trial: seed and the number of trials that have finished or are running alone decide what
    it draws by chance, so that a search that was killed goes on as if it had not been, and that trials which run side
    by side are not drawn alike.
    """
    number = int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])
    if kind == "random":
        return RandomSampler(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=number, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)


def make_pruner(epochs: int, prunes: bool) -> BasePruner:
    """Hyperband over the second half of a trial's epochs; nothing is pruned where there are several objectives.

    Before its half a trial says little of its end: high learning rates start behind and end ahead. At tiny, of trials
    that were pruned after a third of 120 steps, those were lost whose like came to the best scores.
    """
    if not prunes:
        return NopPruner()
    return HyperbandPruner(min_resource=-(-epochs // 2), max_resource=epochs, reduction_factor=2)


def open_storage(place: str) -> BaseStorage:
    """The storage at a path (a journal file) or a URL of SQLAlchemy's. Raises UserError where it cannot be used."""
    with clear_errors(place):
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


@contextmanager
def clear_errors(place: str) -> Iterator[None]:
    """What can be wrong with a storage, in one line."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        if "://" in place or isinstance(error, UserError):
            raise
        raise UserError(
            f"{place}: not a journal of Optuna ({error}); move it away to begin anew, its trials' outs lie beside it"
        ) from None
    except (ImportError, NoSuchModuleError):
        raise UserError(
            f"--storage {hidden(place)}: the driver is not installed; `pip install -e '.[postgres]'`"
        ) from None
    except ArgumentError:
        raise UserError(
            f"--storage {hidden(place)}: not the URL of a database; for example postgresql+psycopg://user@host/name"
        ) from None
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", None) or error.args[0]).strip().splitlines()[0]
        raise UserError(f"--storage {hidden(place)}: {told}") from None
    except OSError as error:
        raise UserError(f"{hidden(place)}: {error.strerror or error}") from None


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
    """Drop a last line that a kill cut off: what is appended to it would make the whole unreadable."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        print(f"wimfris: {path}: its last line was cut off by a kill, and is dropped", file=sys.stderr, flush=True)
        write_text(path, whole.decode())


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


def retry(study: Study, trial: FrozenTrial) -> None:
    """Ask a failed trial again, with the same parameters, if that has not been done too often."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(max_retry=RETRIES, inherit_intermediate_values=True)(study, trial)


def original(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats after a kill; its own where it repeats none."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def is_orphan(trial: FrozenTrial, shared: bool) -> bool:
    """Whether the search that started a running trial is gone. In a journal, which one search at a time uses, any that
    runs at its start is; in a database, this machine's whose process is gone: other machines' tell by their heartbeat.
    """
    import psutil  # type: ignore[import-untyped]

    if not shared:
        return True
    host, _, process = str(trial.user_attrs.get("by", "")).rpartition(":")
    return host == socket.gethostname() and not psutil.pid_exists(int(process))


def give_up(study: Study, trial: FrozenTrial) -> None:
    """Fail a running trial, and ask it again."""
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    retry(study, study._storage.get_trial(trial._trial_id))


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: scored, pruned, or failed for a reason of their own. Those of a killed search do not."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials if trial.state in done or "failure" in trial.user_attrs]


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
