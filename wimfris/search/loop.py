"""A search: asks Optuna for settings, trains each as a run in a process of its own, and tells what came of it.

Killed at any moment, the same command goes on: what is finished is kept, what was running is asked again. With one job
and nothing pruned, the same seed gives the same trials, whether or not it was killed, and however many follow.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.matrix.costs import duration, gpus
from wimfris.matrix.processes import Stop, environment, interruptible
from wimfris.measure.parameters import trained_parameters
from wimfris.runs.manifest import code_revision
from wimfris.search import storage as kept
from wimfris.search.sampler import make_pruner, make_sampler
from wimfris.search.space import Space
from wimfris.search.trial import MEMORY, PRUNED, STORAGE
from wimfris.settings.params import plain
from wimfris.settings.schema import Settings
from wimfris.training.checkpoint import code_hash, fingerprint
from wimfris.training.trainer import RunFiles, what_decides

AGAINST = ("parameters", "latency")  # what is weighed against mIoU: trained parameters, milliseconds of one image
SAMPLERS = ("tpe", "random")
FAILURES = 5  # in a row, after which it is not the settings that are wrong
TRAINER = (sys.executable, "-m", "wimfris.search.trial")
REFERENCE = "reference"  # `full` itself, trained as long as a trial


@dataclass(frozen=True)
class Plan:
    """What decides a search's trials, and where they lie. The index and the record of the encoders must be there."""

    space: Space
    sampler: str = "tpe"
    against: str | None = None  # one of `AGAINST`: a second objective; nothing is pruned then
    url: str | None = None  # of a database; None: a journal file in the search's folder

    @property
    def label(self) -> str:
        """Space and method: names the evidence."""
        return "-".join(filter(None, [self.space.name, self.sampler, self.against]))

    @property
    def seed(self) -> int:
        return self.space.search.seed

    @cached_property
    def key(self) -> str:
        """A short hash of all that decides the trials: a search of another begins anew, in a folder of its own."""
        return fingerprint(
            {
                "trial": what_decides(self.settings(REFERENCE, {}, ""), self.seed),
                "space": self.space.search.spaces[self.space.name],
                "how": [self.sampler, self.against],
                "code": code_hash(["search/space.py", "search/sampler.py"]),
            }
        )[:8]

    @property
    def group(self) -> str:
        """The folder of the trials' outs under the data set's."""
        return f"search/{self.label}-{self.key}"

    @property
    def home(self) -> Path:
        """The search's own folder: its journal, and the outs of its trials."""
        return self.space.params.settings().folder / self.group

    @property
    def place(self) -> str:
        """Of the storage: a path or a URL."""
        return self.url or str(self.home / "journal.log")

    @property
    def study(self) -> str:
        """The study's name in its storage."""
        return f"{self.space.params.settings().folder.name}-{self.label}-{self.key}"

    def name(self, number: int) -> str:
        """The variant that a trial's run has the name of."""
        return f"{self.label.replace('-', '_')}_{number:04d}"

    def settings(self, name: str, overrides: dict[str, Any], group: str | None = None) -> Settings:
        """The settings of a trial's run."""
        return self.space.settings(name, overrides, self.group if group is None else group)

    def open(self) -> Study:
        """The study in its storage, made where it is not there. Raises UserError where the storage cannot be used."""
        epochs = self.settings(REFERENCE, {}, "").train.epochs
        directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if self.against else [])]
        with kept.clear_errors(self.place, opening=True):
            return optuna.create_study(
                storage=kept.open_storage(self.place),
                study_name=self.study,
                directions=directions,
                pruner=make_pruner(epochs, self.against is None),
                load_if_exists=True,
            )


@dataclass
class _Work:
    """A run at work: a trial's, or the reference's."""

    name: str
    settings: Settings
    trial: optuna.Trial | None
    slot: int
    log: Path
    process: "subprocess.Popen[bytes]"
    twins: list[FrozenTrial] = field(default_factory=list)  # trials of the same settings, asked meanwhile


def run_search(plan: Plan, trials: int, jobs: int) -> None:
    """Search until so many trials are finished, those of before counted, `jobs` at a time.

    Interrupted by a signal, it ends its trainers and exits; the same command goes on. Raises UserError where the
    storage cannot be used, another search holds the journal, or trial after trial fails.
    """
    if trials < 1:
        raise UserError(f"--trials {trials}: needs at least one")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: needs at least one")
    if plan.against == "latency" and jobs > 1:
        raise UserError("--against latency: a time is taken on a machine that does nothing else; use --jobs 1")
    if plan.url is not None:
        kept.check_url(plan.url)
    plan.home.mkdir(parents=True, exist_ok=True)
    (plan.home.parent / ".gitignore").write_text("*\n")
    with _alone(plan), interruptible() as stop, kept.clear_errors(plan.place):
        searching = _Searching(plan, plan.open(), trials, jobs, stop)
        searching.run()
        stop.check()


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """A journal is one search's at a time; a database is made for several."""
    if plan.url is not None:
        yield
        return
    lock = FileLock(plan.home / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{plan.place}: another search is at work on it; wait for it, give it more --jobs, or let both share a "
            "database with --storage"
        ) from None
    try:
        with kept.clear_errors(plan.place, opening=True):
            kept.mend_journal(Path(plan.place))
        yield
    finally:
        lock.release()


class _Searching:
    """The loop of a search, and what is seen of it."""

    def __init__(self, plan: Plan, study: Study, trials: int, jobs: int, stop: Stop) -> None:
        self.plan, self.study, self.trials, self.jobs, self.stop = plan, study, trials, jobs, stop
        self.working: list[_Work] = []
        cuda = plan.space.params.settings().train.device == "cuda"
        devices = gpus() if cuda else []
        shared = len(devices) < 2
        self.environments = [environment(None if shared else devices[k % len(devices)]) for k in range(jobs)]
        self.waits = False

    def run(self) -> None:
        """Until enough trials are finished, here and on other machines, or a signal comes."""
        self._recover()
        if not self.study.get_trials(deepcopy=False) and self.plan.space.first:
            self.study.enqueue_trial(self.plan.space.first)
        try:
            self._train_reference()
            while not self.stop.is_set():
                self._reap()
                self._fill()
                if not self.working and not self._others():
                    break
                self.stop.wait(0.2)
        finally:
            self._end()

    def _recover(self) -> None:
        """What killed searches left: trials that had ended are told, those that ran are asked again."""
        kept.fail_stale(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not kept.is_orphan(trial, self.plan.url is not None):
                continue
            settings = self._settings_of(trial)
            if "failure" in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            elif settings is not None and self._files(settings).manifest.is_file():
                self._tell_value(trial, settings)
            else:
                kept.give_up(self.study, trial)
                print(f"{self.plan.name(kept.original(trial))}: was running when its search was killed", flush=True)

    def _train_reference(self) -> None:
        """`full` for as long as a trial: what the trials are measured by."""
        settings = self.plan.settings(REFERENCE, {})
        if not self._files(settings).manifest.is_file():
            self._start(REFERENCE, settings, None, 0)
            while not self.stop.is_set() and self.working:
                self._reap()
                self.stop.wait(0.2)

    def _fill(self) -> None:
        """Start trials where there is room and any are missing."""
        while len(self.working) < self.jobs and not self.stop.is_set():
            trials = self.study.get_trials(deepcopy=False)
            begun = len(kept.finished(trials)) + sum(trial.state == TrialState.RUNNING for trial in trials)
            if begun >= self.trials:
                return
            self.study.sampler = make_sampler(self.plan.sampler, self.plan.seed, begun)
            trial = self.study.ask()
            kept.sign(self.study, trial._trial_id)
            frozen = self.study._storage.get_trial(trial._trial_id)
            try:
                overrides = self.plan.space.draw(trial)
                settings = self.plan.settings(self.plan.name(kept.original(frozen)), overrides)
                counts = trained_parameters(settings)
            except UserError as error:  # a combination that the space's own checks did not come to
                trial.set_user_attr("failure", str(error))
                self.study.tell(trial, state=TrialState.FAIL)
                print(f"{self.plan.name(frozen.number)}: FAILED, {error}", flush=True)
                continue
            for key, value in (
                ("overrides", overrides),
                ("adapters", counts["adapters"]),
                ("trained", counts["total"]),
            ):
                trial.set_user_attr(key, value)
            frozen = self.study._storage.get_trial(trial._trial_id)
            beside = next((work for work in self.working if plain(work.settings) == plain(settings)), None)
            if beside is not None:
                beside.twins.append(frozen)
                continue
            scored = [one for one in trials if one.state == TrialState.COMPLETE]
            twin = next((one for one in scored if self._same_as(one, settings)), None)
            if twin is not None:
                self._repeat(frozen, twin)
                continue
            taken = {work.slot for work in self.working}
            self._start(settings.variant, settings, trial, min(set(range(self.jobs)) - taken))

    def _same_as(self, trial: FrozenTrial, settings: Settings) -> bool:
        of = self._settings_of(trial)
        return of is not None and plain(of) == plain(settings)

    def _repeat(self, trial: FrozenTrial, twin: FrozenTrial) -> None:
        """Tell a trial of settings that have been tried what came of them: training would give the same bits again."""
        store = self.study._storage
        for key in ("metrics", "latency_ms", "failure"):
            if key in twin.user_attrs:
                store.set_trial_user_attr(trial._trial_id, key, twin.user_attrs[key])
        name = twin.user_attrs.get("same_as", self.plan.name(kept.original(twin)))
        store.set_trial_user_attr(trial._trial_id, "same_as", name)
        for epoch, value in twin.intermediate_values.items():
            store.set_trial_intermediate_value(trial._trial_id, epoch, value)
        self.study.tell(trial.number, twin.values, state=twin.state)
        print(f"{self.plan.name(trial.number)}: the settings of {name}, not trained again", flush=True)

    def _start(self, name: str, settings: Settings, trial: optuna.Trial | None, slot: int) -> None:
        job = {
            "settings": settings.model_dump(mode="json"),
            "group": settings.group,
            "seed": self.plan.seed,
            "study": self.plan.study,
            "trial": None if trial is None else trial._trial_id,
            "prunes": self.plan.against is None,
            "latency": self.plan.against == "latency",
            "parent": os.getpid(),
        }
        path = self.plan.home / "jobs" / f"{name}.json"
        write_text(path, json.dumps(job, indent=2) + "\n")
        log = path.with_suffix(".log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*TRAINER, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environments[slot] | {STORAGE: self.plan.place},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
            )
        self.working.append(_Work(name, settings, trial, slot, log, process))

    def _reap(self) -> None:
        """Tell what came of the runs that have ended."""
        for work in [work for work in self.working if work.process.poll() is not None]:
            self.working.remove(work)
            code = work.process.returncode
            if work.trial is None:
                if code != 0:
                    raise UserError(f"{work.name}: {_reason(code, work.log)}; log: {work.log}")
                print(f"{work.name}: `full`, trained as a trial: mIoU {percent(self._miou(work.settings))}", flush=True)
                continue
            frozen = self.study._storage.get_trial(work.trial._trial_id)
            if not frozen.state.is_finished():  # else it was taken for dead, and asked again
                self._tell(frozen, work, code)
                self._say(work)
                self._check_failures(work)
            came = self.study._storage.get_trial(work.trial._trial_id)
            for twin in work.twins:
                self._repeat(twin, came)

    def _tell(self, trial: FrozenTrial, work: _Work, code: int) -> None:
        """What came of a trial whose trainer has ended with this exit code."""
        if code == 0:
            self._tell_value(trial, work.settings)
        elif code == PRUNED:
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self.study._storage.set_trial_user_attr(trial._trial_id, "failure", _reason(code, work.log))
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _tell_value(self, trial: FrozenTrial, settings: Settings) -> None:
        """The score of a trial whose run has ended: mIoU over all validation sentences, at its best epoch."""
        metrics = json.loads(self._files(settings).metrics.read_text())
        self.study._storage.set_trial_user_attr(
            trial._trial_id, "metrics", {split: of["sentence"] for split, of in metrics.items()}
        )
        values = [float(metrics["val"]["sentence"]["miou"])]
        if self.plan.against == "parameters":
            values.append(float(trial.user_attrs["trained"]))
        elif self.plan.against == "latency":
            told = self.study._storage.get_trial(trial._trial_id).user_attrs.get("latency_ms")
            if told is None:  # ended by a kill after its outs were written
                kept.give_up(self.study, trial)
                return
            values.append(float(told))
        self.study.tell(trial.number, values, skip_if_finished=True)

    def _check_failures(self, last: _Work) -> None:
        ended = [t for t in kept.finished(self.study.get_trials(deepcopy=False)) if t.datetime_complete]
        latest = sorted(ended, key=lambda trial: trial.datetime_complete or 0)[-FAILURES:]
        if len(latest) == FAILURES and all("failure" in trial.user_attrs for trial in latest):
            raise UserError(
                f"the last {FAILURES} trials failed, so that it may not be their settings: {last.name}: "
                f"{latest[-1].user_attrs['failure']}; log: {last.log}"
            )

    def _others(self) -> bool:
        """Whether another machine's trials are still running, or to be asked again should it be gone."""
        if self.plan.url is None or self.stop.is_set():
            return False
        self._recover()
        trials = self.study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        running = TrialState.RUNNING in states
        if running and not self.waits:
            print("all trials are given out; waiting for those of other machines", flush=True)
        self.waits = running
        self.stop.wait(1.0 if running else 0.0)
        return running or (TrialState.WAITING in states and len(kept.finished(trials)) < self.trials)

    def _end(self) -> None:
        """End the trainers that are still at work; their trials are asked again by the next search."""
        for work in self.working:
            work.process.terminate()
        for work in self.working:
            try:
                work.process.wait(10)
            except subprocess.TimeoutExpired:
                work.process.kill()
                work.process.wait()
            asked = [] if work.trial is None else [work.trial._trial_id, *(twin._trial_id for twin in work.twins)]
            for trial in map(self.study._storage.get_trial, asked):
                if not trial.state.is_finished():
                    kept.give_up(self.study, trial, killed=False)
        self.working.clear()

    # --- what is seen ---

    def _say(self, work: _Work) -> None:
        trials = self.study.get_trials(deepcopy=False)
        done = kept.finished(trials)
        of = next(trial for trial in trials if work.trial is not None and trial.number == work.trial.number)
        told = f"{work.name}: " + _came(of)
        states = [trial.state for trial in done]
        asides = [(states.count(TrialState.PRUNED), "pruned"), (states.count(TrialState.FAIL), "failed")]
        told += f"; {len(done)} of {self.trials}" + "".join(f", {number} {what}" for number, what in asides if number)
        if self.plan.against is None:
            complete = [trial for trial in done if trial.state == TrialState.COMPLETE]
            if complete:
                best = max(complete, key=lambda trial: trial.value or 0)
                told += f", best {percent(best.value)} ({self.plan.name(kept.original(best))})"
        elif done:
            told += f", {len(self.study.best_trials)} on the front"
        trained = [trial for trial in done if "same_as" not in trial.user_attrs]
        seconds = [trial.duration.total_seconds() for trial in trained if trial.duration]
        left = self.trials - len(done)
        if seconds and left > 0:
            told += f", about {duration(sum(seconds) / len(seconds) * left / self.jobs)} left"
        print(told, flush=True)

    def _settings_of(self, trial: FrozenTrial) -> Settings | None:
        overrides = trial.user_attrs.get("overrides")
        return None if overrides is None else self.plan.settings(self.plan.name(kept.original(trial)), overrides)

    def _files(self, settings: Settings) -> RunFiles:
        return RunFiles.of(settings.outs, f"{settings.variant}-{self.plan.seed}")

    def _miou(self, settings: Settings) -> float:
        return float(json.loads(self._files(settings).metrics.read_text())["val"]["sentence"]["miou"])


def percent(value: float | None) -> str:
    """As tables show it."""
    return "none" if value is None else f"{100 * value:.1f}"


def _came(trial: FrozenTrial) -> str:
    if "failure" in trial.user_attrs:
        return f"FAILED, {trial.user_attrs['failure']}"
    if trial.state == TrialState.PRUNED:
        epoch = trial.last_step
        return f"pruned after epoch {epoch}, mIoU {percent(trial.intermediate_values[epoch or 0])}"
    return "mIoU " + ", ".join(percent(value) if k == 0 else f"{value:g}" for k, value in enumerate(trial.values or []))


def _reason(code: int, log: Path) -> str:
    """Why a trainer ended, in one line."""
    if code < 0:
        return f"killed by signal {-code}" + (", perhaps for want of memory" if code == -9 else "")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("wimfris: ") if lines else ""
    return last if code in (2, MEMORY) else f"exit code {code}: {last}"


def evidence(plan: Plan) -> dict[str, Any]:
    """All trials of a search as the report is made from: JSON, see wimfris.search.report."""
    study = plan.open()
    reference = plan.settings(REFERENCE, {})
    files = RunFiles.of(reference.outs, f"{REFERENCE}-{plan.seed}")
    manifest, counts = json.loads(files.manifest.read_text()), trained_parameters(reference)
    trials = kept.finished(study.get_trials(deepcopy=False))
    return {
        "space": plan.space.name,
        "sampler": plan.sampler,
        "against": plan.against,
        "dataset": reference.data.name,
        "scale": reference.scale,
        "protocol": reference.evaluate.protocol,
        "seed": plan.seed,
        "key": plan.key,
        "declared": plan.space.search.spaces[plan.space.name],
        "train": {"epochs": reference.train.epochs, "epoch_steps": reference.train.epoch_steps},
        "reference": {
            "metrics": {split: of["sentence"] for split, of in json.loads(files.metrics.read_text()).items()},
            "trained": counts["total"],
            "adapters": counts["adapters"],
            "seconds": manifest["wall_seconds"],
        },
        "trials": [kept.describe(trial, plan.name(kept.original(trial))) for trial in trials],
        "importances": _importances(plan, study),
        "code": code_revision(),
        "device": manifest["device"],
        "threads": reference.train.threads,
    }


def _importances(plan: Plan, study: Study) -> dict[str, float]:
    """Setting -> its share of the variance of mIoU, by PED-ANOVA (Watanabe et al., 2023), the largest first; empty
    where too few trials have finished to tell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and that few trials tell little
        try:
            shares = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                # it looks for low values of a target of its own
                target=(lambda trial: -trial.values[0]) if plan.against else None,
            )
        except (ValueError, RuntimeError):
            return {}
    found: dict[str, float] = {}
    for name, share in shares.items():
        path = next(path for path in plan.space.distributions if name == path or name.startswith(f"{path}."))
        found[path] = found.get(path, 0.0) + share
    return {path: round(share, 6) for path, share in sorted(found.items(), key=lambda item: -item[1])}
