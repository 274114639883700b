"""The search loop: Optuna proposes settings, worker processes train them, and Optuna receives their scores.

A search can be killed at any moment, and the same command continues it. With one job, the same seed gives the same
trials, whether or not the search was killed, and however many trials follow.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.matrix.costs import duration, gpus
from wimfris.matrix.processes import Stop, environment, interruptible, signal_of
from wimfris.measure.parameters import trained_parameters
from wimfris.search.evidence import evidence, sentence_metrics
from wimfris.search.plan import REFERENCE, Plan
from wimfris.search.report import evidence_path
from wimfris.search.sampler import make_sampler
from wimfris.search.storage import check_journal, check_url, claim, counted, original, recover, retry, storage_errors
from wimfris.search.trial import FAILED, REFUSED, delete_checkpoints, read_progress
from wimfris.settings.function import plain
from wimfris.settings.schema import Settings

FAILURES = 5  # in a row: the cause is probably not the settings
REFUSALS = 10  # for each trial that is asked for: the limits probably leave nothing
POLL = 0.2  # seconds between two looks at the workers
WORKER = (sys.executable, "-m", "wimfris.search.trial")


@dataclass
class Worker:
    """A process that trains one run."""

    settings: Settings
    trials: list[Trial]  # the trial that drew the settings, then those that repeat them; none for the reference
    slot: int
    folder: Path  # with the job, the log, and the progress
    process: "subprocess.Popen[bytes]"
    reported: int = 0  # epochs that Optuna has the scores of

    @property
    def name(self) -> str:
        return self.settings.variant

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def failure(self) -> str | None:
        """Return why the ended process failed, in one line; None if it succeeded."""
        code = self.process.returncode
        if code == 0:
            return None
        if (number := signal_of(code)) is not None:
            return f"killed by signal {number}" + (", probably out of memory" if number == signal.SIGKILL else "")
        lines = [
            line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        last = lines[-1].removeprefix("wimfris: ") if lines else "no output"
        return last if code == FAILED else f"exit code {code}: {last}"

    def end(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_search(plan: Plan, trials: int, jobs: int) -> None:
    """Search until this many trials are finished, earlier ones included, `jobs` at a time; write the evidence.

    A signal ends the workers and then this process. Raises UserError if the storage cannot be used, if another search
    uses the journal, or if several trials in a row fail.
    """
    for option, number in (("--trials", trials), ("--jobs", jobs)):
        if number < 1:
            raise UserError(f"{option} must be at least 1, got {number}")
    if plan.against == "latency" and jobs > 1:
        raise UserError("--against latency needs --jobs 1: other work on the machine would distort the times")
    if plan.url is not None:
        check_url(plan.url)
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    with _journal_lock(plan), interruptible() as stop, storage_errors(plan.storage):
        study = plan.open()
        try:
            _Search(plan, study, trials, jobs, stop).run()
        finally:
            _write_evidence(plan, study)
        stop.check()


@contextmanager
def _journal_lock(plan: Plan) -> Iterator[None]:
    """Reserve the journal for this search. A database can be shared."""
    if plan.url is not None:
        yield
        return
    try:
        lock = FileLock(plan.folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{plan.storage}: another search uses it; wait for its end, give it more --jobs, or let both share a "
            "database with --storage"
        ) from None
    with lock:
        check_journal(Path(plan.storage))
        yield


def _write_evidence(plan: Plan, study: Study) -> None:
    """Write the evidence of all trials that have finished; nothing if none has."""
    if not plan.files(plan.settings(REFERENCE, {})).manifest.is_file():
        return
    content = evidence(plan, study)
    if content["trials"]:
        path = evidence_path(plan.space.params.settings().folder.name, plan.label)
        write_text(path, json.dumps(content, indent=1) + "\n")


class _Search:
    """The state of the loop."""

    def __init__(self, plan: Plan, study: Study, trials: int, jobs: int, stop: Stop) -> None:
        self.plan, self.study, self.trials, self.jobs, self.stop = plan, study, trials, jobs, stop
        self.workers: list[Worker] = []
        self.failures = 0  # in a row
        devices = gpus() if plan.space.params.settings().train.device == "cuda" else []
        share = len(devices) < 2
        self.trained = trained_parameters(plan.settings(REFERENCE, {}))["total"]
        self.environments = [environment(None if share else devices[slot % len(devices)]) for slot in range(jobs)]

    def run(self) -> None:
        """Run until enough trials are finished, or a signal comes."""
        self._recover()
        open_trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        if self.plan.space.first and not open_trials and not counted(self._all_trials()):
            self.study.enqueue_trial(self.plan.space.first)
        reference = self.plan.settings(REFERENCE, {})
        try:
            if not self.plan.files(reference).manifest.is_file():
                self._start(reference, [])
            while not self.stop.is_set():
                self._collect()
                self._fill()
                if not self.workers:
                    break
                self.stop.wait(POLL)
        finally:
            self._end()
        others = [trial for trial in self._all_trials() if trial.state == TrialState.RUNNING]
        if others:
            hosts = sorted({str(trial.user_attrs.get("owner", "?")).rpartition(":")[0] for trial in others})
            print(f"{len(others)} trials still run on {', '.join(hosts)}; later, the same command includes them")

    def _all_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _recover(self) -> None:
        for trial in recover(self.study, shared=self.plan.url is not None):
            print(f"{self.plan.name(original(trial))}: its search was killed; trying again", flush=True)

    # --- begin trials ---

    def _fill(self) -> None:
        """Begin trials while there are free slots and trials to do."""
        while len(self.workers) < self.jobs and not self.stop.is_set():
            if self.plan.url is not None:
                self._recover()
            trials = self._all_trials()
            begun = len(counted(trials)) + sum(trial.state == TrialState.RUNNING for trial in trials)
            refused = sum("refused" in trial.user_attrs for trial in trials)
            if begun - refused >= self.trials:
                return
            if refused > REFUSALS * self.trials:
                raise UserError(f"{refused} draws are beyond the limits of the space; widen search.spaces' `limits`")
            self.study.sampler = make_sampler(self.plan.sampler, self.plan.seed, begun)
            trial = self.study.ask()
            claim(trial)
            self._begin(trial)

    def _begin(self, trial: Trial) -> None:
        """Draw a trial's settings, and train them, unless an earlier trial has the same."""
        try:
            overrides = self.plan.space.draw(trial)
            settings = self.plan.settings(self.plan.name(original(trial)), overrides)
            parameters = trained_parameters(settings)
        except UserError as error:  # a combination that the space's checks do not cover
            self._fail(trial, str(error))
            self._print_result(trial.number)
            return
        limits = self.plan.space.limits
        refusal = limits and limits.on_parameters(parameters["total"], self.trained)
        if refusal:
            self._refuse(trial, refusal)
            self._print_result(trial.number)
            return
        trial.set_user_attr("settings", plain(settings))
        trial.set_user_attr("adapters", parameters["adapters"])
        trial.set_user_attr("trained", parameters["total"])
        trial.set_user_attr("overrides", overrides)  # last: now the draw is complete
        for worker in self.workers:
            if worker.trials and plain(worker.settings) == plain(settings):
                worker.trials.append(trial)
                return
        complete = [other for other in self._all_trials() if other.state == TrialState.COMPLETE or _refused(other)]
        same = next(
            (other for other in complete if other.user_attrs.get("settings") == trial.user_attrs["settings"]), None
        )
        if same is None:
            self._start(settings, [trial])
        else:
            self._repeat(trial, same)

    def _start(self, settings: Settings, trials: list[Trial]) -> None:
        folder, limits = self.plan.folder / "jobs" / settings.variant, self.plan.space.limits
        if not any("original" in trial.user_attrs for trial in trials):
            shutil.rmtree(folder, ignore_errors=True)  # of a search that was started over
        job = {
            "settings": settings.model_dump(mode="json") | {"group": settings.group},
            "seed": self.plan.seed,
            "latency": self.plan.against == "latency",
            "reference": self.plan.settings(REFERENCE, {}).model_dump(mode="json") | {"group": settings.group},
            "limits": limits.model_dump() if trials and limits else None,
            "parent": os.getpid(),
        }
        write_text(folder / "job.json", json.dumps(job, indent=2) + "\n")
        slot = min(set(range(self.jobs)) - {worker.slot for worker in self.workers})
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*WORKER, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environments[slot],
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends the workers
            )
        self.workers.append(Worker(settings, trials, slot, folder, process))

    # --- end trials ---

    def _collect(self) -> None:
        """Report the workers' progress to Optuna, and finish the trials that have ended or are pruned."""
        for worker in list(self.workers):
            ended = worker.process.poll() is not None  # first: the progress that is read next is then final
            pruned = self._report(worker)
            if pruned:
                worker.end()
            if pruned or ended:
                self.workers.remove(worker)
                self._finish(worker, pruned)

    def _report(self, worker: Worker) -> bool:
        """Report new epochs of a trial to Optuna; return whether the trial is pruned."""
        if not worker.trials or self.plan.against is not None:
            return False
        trial, last = worker.trials[0], worker.settings.train.epochs
        epochs = read_progress(worker.folder)["epochs"]
        for epoch, score in list(epochs.items())[worker.reported :]:
            trial.report(score, int(epoch))
            worker.reported += 1
            if int(epoch) < last and trial.should_prune():
                return True
        return False

    def _finish(self, worker: Worker, pruned: bool) -> None:
        """Record the result of a run, for its trial and for those that repeat it."""
        refused = bool(worker.trials) and not pruned and worker.process.returncode == REFUSED
        failure = None if pruned or refused else worker.failure()
        if not worker.trials:
            if failure:
                raise UserError(f"{worker.name}: {failure}; log: {worker.log}")
            miou = sentence_metrics(self.plan.files(worker.settings).metrics)["val"]["miou"]
            print(f"{worker.name}: `full`, trained as long as a trial: mIoU {_percent(miou)}", flush=True)
            return
        trial, *repeats = worker.trials
        progress = read_progress(worker.folder)
        epochs = list(progress["epochs"].items())
        trial.set_user_attr("epochs", dict(epochs[: worker.reported] if pruned else epochs))
        if "time_ratio" in progress:
            trial.set_user_attr("time_ratio", progress["time_ratio"])
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif refused and self.plan.space.limits:
            self._refuse(trial, self.plan.space.limits.on_time(progress["time_ratio"]) or "")
        elif failure:
            self._fail(trial, failure)
        else:
            self._score(trial, worker.settings, progress.get("latency_ms"))
        if pruned or failure or refused:
            delete_checkpoints(worker.settings, self.plan.seed)
            shutil.rmtree(self.plan.files(worker.settings).folder, ignore_errors=True)  # it may have ended meanwhile
        self._print_result(trial.number)
        for other in repeats:
            self._repeat(other, self._all_trials()[trial.number])
        self.failures = self.failures + 1 if failure else 0
        if self.failures == FAILURES:
            raise UserError(
                f"{FAILURES} trials failed in a row; the cause is probably not their settings; {worker.name}: "
                f"{failure}; log: {worker.log}"
            )

    def _score(self, trial: Trial, settings: Settings, latency: float | None) -> None:
        metrics = sentence_metrics(self.plan.files(settings).metrics)
        trial.set_user_attr("metrics", metrics)
        trial.set_user_attr("latency_ms", latency)
        costs = {"parameters": trial.user_attrs["trained"], "latency": latency}
        self.study.tell(trial, [metrics["val"]["miou"], *([costs[self.plan.against]] if self.plan.against else [])])

    def _fail(self, trial: Trial, failure: str) -> None:
        trial.set_user_attr("failure", failure)
        self.study.tell(trial, state=TrialState.FAIL)

    def _refuse(self, trial: Trial, reason: str) -> None:
        """End a trial beyond the limits. It does not count as one of those asked for.

        It ends as pruned, because the sampler ignores failed trials and would draw the same settings again and again.
        With two objectives a trial cannot be pruned.
        """
        for key in ("refused", "failure"):
            trial.set_user_attr(key, reason)
        self.study.tell(trial, state=TrialState.PRUNED if self.plan.against is None else TrialState.FAIL)

    def _repeat(self, trial: Trial, result: FrozenTrial) -> None:
        """Give a trial the result of an earlier one with the same settings: training would give the same bits."""
        name = self.plan.name(original(result))
        for key in ("epochs", "metrics", "latency_ms", "time_ratio", "failure", "refused"):
            if key in result.user_attrs:
                trial.set_user_attr(key, result.user_attrs[key])
        trial.set_user_attr("same_as", result.user_attrs.get("same_as", name))
        for epoch, score in result.intermediate_values.items():
            trial.report(score, epoch)
        values = result.values if result.state == TrialState.COMPLETE else None
        self.study.tell(trial, values, state=result.state)
        print(f"{self.plan.name(trial.number)}: same settings as {name}, not trained again", flush=True)

    def _end(self) -> None:
        """End the workers. Their trials continue when the search does."""
        for worker in self.workers:
            worker.end()
        for trial in sorted((trial for worker in self.workers for trial in worker.trials), key=lambda t: t.number):
            retry(self.study, trial)
        self.workers.clear()

    def _print_result(self, number: int) -> None:
        trials = self._all_trials()
        done, trial = [one for one in counted(trials) if not _refused(one)], trials[number]
        line = f"{self.plan.name(original(trial))}: {_result(trial)}; {len(done)} of {self.trials}"
        complete = [other for other in done if other.state == TrialState.COMPLETE]
        if complete and self.plan.against is None:
            best = max(complete, key=lambda other: other.value or 0)
            line += f", best {_percent(best.value)} ({self.plan.name(original(best))})"
        seconds = [t.duration.total_seconds() for t in done if t.duration and "same_as" not in t.user_attrs]
        if seconds and len(done) < self.trials:
            left = sum(seconds) / len(seconds) * (self.trials - len(done)) / self.jobs
            line += f", about {duration(left)} left"
        print(line, flush=True)


def _refused(trial: FrozenTrial) -> bool:
    return "refused" in trial.user_attrs


def _result(trial: FrozenTrial) -> str:
    if _refused(trial):
        return f"refused, {trial.user_attrs['refused']}"
    if trial.state == TrialState.FAIL:
        return f"FAILED, {trial.user_attrs['failure']}"
    if trial.state == TrialState.PRUNED:
        epoch = trial.last_step or 0
        return f"pruned after epoch {epoch}, mIoU {_percent(trial.intermediate_values[epoch])}"
    score, *costs = trial.values
    return ", ".join([f"mIoU {_percent(score)}", *(f"{cost:g}" for cost in costs)])


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}"
