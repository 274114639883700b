"""The loop of a search, with a worker that computes its score: resuming, repeating, pruning and failing."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from wimfris.errors import UserError
from wimfris.search import loop, storage
from wimfris.search import plan as plans
from wimfris.search.evidence import evidence
from wimfris.search.loop import run_search
from wimfris.search.plan import Plan
from wimfris.search.space import Space, read_search
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WORKER", (sys.executable, str(Path(__file__).with_name("fake_trial.py"))))


def make_plan(space: str = "planted", sampler: str = "tpe", **options: Any) -> Plan:
    params = read_params()
    return Plan(Space(space, params, read_search(params)), sampler, **options)


def results(plan: Plan) -> list[tuple[dict[str, Any], TrialState, Any]]:
    """What each trial that counts drew, and how it ended, in order."""
    return [(trial.params, trial.state, trial.values) for trial in storage.counted(plan.open().get_trials())]


def read_evidence(plan: Plan) -> Any:
    return evidence(plan, plan.open())


def begun() -> list[str]:
    return [line.split()[0] for line in Path("begun").read_text().splitlines()]


def start(plan: Plan, trials: int) -> BaseProcess:
    """Start a search in a process of its own, which writes to the file `output`."""

    def search() -> None:
        sys.stdout = sys.stderr = Path("output").open("a", buffering=1)  # noqa: SIM115
        run_search(plan, trials, 1)

    process = get_context("fork").Process(target=search, daemon=True)
    process.start()
    return process


def wait_for(name: str) -> None:
    """Wait until the worker of this name has begun."""
    for _ in range(2400):
        if Path("begun").exists() and name in begun():
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} did not begin")


def kill_at(name: str, plan: Plan, trials: int) -> None:
    """Start a search, and kill it and its worker of this name once that has begun."""
    Path("begun").unlink(missing_ok=True)
    Path("hang").write_text(name[-4:])
    process = start(plan, trials)
    wait_for(name)
    process.kill()
    process.join()
    Path("hang").unlink()
    os.kill(int(Path("begun").read_text().split()[-1]), signal.SIGKILL)


def test_a_search_improves_on_its_first_trial(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan()
    run_search(plan, 12, 2)
    output = capsys.readouterr().out
    assert re.search(r"planted_tpe_000[01]: mIoU .*; 1 of 12, best .* left", output)
    content = read_evidence(plan)
    assert len(content["trials"]) == 12
    assert content["reference"]["metrics"]["val"]["miou"] == pytest.approx(0.488)
    first = content["trials"][0]
    assert first["overrides"] == {"model": {"hmf": {"window": "grid"}}, "train": {"learning_rate": 3e-5}}
    assert first["values"] == [first["metrics"]["val"]["miou"]] and first["metrics"]["testA"]["n"] == 10
    assert first["epochs"] == {"1": (1 - first["values"][0]) / 2, "2": first["values"][0]}
    complete = [trial for trial in content["trials"] if trial["state"] == "complete"]
    assert max(trial["values"][0] for trial in complete) > first["values"][0] + 0.1
    rates = {trial["overrides"]["train"]["learning_rate"] for trial in content["trials"]}
    assert len(rates) == 12, "trials that run side by side differ"
    assert set(content["importances"]) == {"model.hmf.window", "train.learning_rate"}
    assert sum(content["importances"].values()) == pytest.approx(1, abs=1e-4)
    written = Path("reports/search/scenes-smoke/planted-tpe.json")
    before = written.read_bytes()
    run_search(plan, 12, 2)
    assert len(begun()) == 13, "nothing is missing, so nothing is trained"
    assert written.read_bytes() == before


def test_same_seed_same_trials_whether_killed_or_not(project: Any) -> None:
    """Also where trials are pruned, and where the search is continued with more trials."""
    plan = make_plan()
    run_search(plan, 14, 1)
    whole = results(plan)
    assert TrialState.PRUNED in [state for _, state, _ in whole]
    shutil.rmtree(plan.folder)
    kill_at("planted_tpe_0002", plan, 5)
    run_search(plan, 5, 1)
    assert results(plan) == whole[:5]
    trials = plan.open().get_trials()
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 1, "the one that was running"
    assert storage.original(trials[3]) == 2
    assert begun().count("planted_tpe_0002") == 2, "it goes on under its own name"
    kill_at("planted_tpe_0010", plan, 14)
    run_search(plan, 14, 1)
    assert results(plan) == whole


def test_a_killed_trial_reports_its_earlier_epochs(project: Any) -> None:
    plan = make_plan()
    kill_at("planted_tpe_0000", plan, 1)
    run_search(plan, 1, 1)
    [trial] = read_evidence(plan)["trials"]
    assert list(trial["epochs"]) == ["1", "2"]
    assert list(plan.open().get_trials()[1].intermediate_values) == [1, 2]


def test_another_seed_gives_other_trials(project: Any) -> None:
    run_search(make_plan(), 2, 1)
    first = results(make_plan())
    project.edit(search__seed=101)
    plan = make_plan()
    run_search(plan, 2, 1)
    assert first[0] == results(plan)[0] and first[1] != results(plan)[1]


def test_failing_and_pruned_trials(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PruneThree(BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return trial.number == 3

    monkeypatch.setattr(plans, "make_pruner", lambda *_, **__: PruneThree())
    Path("fail").write_text("0001")
    Path("kill").write_text("0002")
    plan = make_plan()
    run_search(plan, 5, 1)
    output = capsys.readouterr().out
    assert "planted_tpe_0001: FAILED, the loss is nan at step 3; lower train.learning_rate; 2 of 5, best" in output
    assert "planted_tpe_0002: FAILED, killed by signal 9, probably out of memory; 3 of 5, best" in output
    assert re.search(r"planted_tpe_0003: pruned after epoch 1, mIoU \d+\.\d; 4 of 5, best", output)
    trials = read_evidence(plan)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "fail", "fail", "pruned", "complete"]
    assert list(trials[3]["epochs"]) == ["1"]


def test_two_objectives_prune_nothing(project: Any) -> None:
    plan = make_plan(against="parameters")
    run_search(plan, 9, 1)
    trials = read_evidence(plan)["trials"]
    assert {trial["state"] for trial in trials} == {"complete"}
    assert all(trial["values"] == [trial["epochs"]["2"], trial["trained"]] for trial in trials)


def test_several_failures_in_a_row_end_the_search(project: Any) -> None:
    Path("fail").write_text("all")
    with pytest.raises(UserError, match=r"5 trials failed in a row; .*0004: the loss is nan at step 3; .*; log: "):
        run_search(make_plan(), 30, 1)
    assert len(begun()) == 6


def test_equal_settings_are_trained_once(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan("window", "random")
    run_search(plan, 16, 1)
    trials = read_evidence(plan)["trials"]
    repeats = [trial for trial in trials if trial["same_as"]]
    by_name = {trial["name"]: trial for trial in trials}
    assert len(trials) == 16 and len(repeats) >= 3
    assert len(begun()) == 17 - len(repeats)
    for trial in repeats:
        assert trial["values"] == by_name[trial["same_as"]]["values"] and trial["metrics"]
    assert "not trained again" in capsys.readouterr().out


def test_equal_settings_side_by_side_are_trained_once(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Space, "draw", lambda *_: {"model": {"hmf": {"window": 2}}})
    Path("seconds").write_text("1")
    plan = make_plan("window", "random")
    run_search(plan, 4, 2)
    trials = read_evidence(plan)["trials"]
    assert begun() == ["reference", "window_random_0000"]
    assert [trial["same_as"] for trial in trials] == [None, *["window_random_0000"] * 3]
    assert len({trial["values"][0] for trial in trials}) == 1


def test_an_interrupted_search_enqueues_its_trial_again(project: Any) -> None:
    plan = make_plan()
    Path("hang").write_text("0001")
    process = start(plan, 30)
    wait_for("planted_tpe_0001")
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    output = Path("output").read_text()
    assert "run the same command again" in output and "Traceback" not in output
    trials = plan.open().get_trials()
    assert TrialState.RUNNING not in [trial.state for trial in trials]
    assert trials[-1].state == TrialState.WAITING


def test_invalid_options(project: Any) -> None:
    for trials, jobs, message in ((0, 1, "--trials must be at least 1, got 0"), (1, 0, "--jobs must be at least 1")):
        with pytest.raises(UserError, match=message):
            run_search(make_plan(), trials, jobs)
    with pytest.raises(UserError, match=r"--against latency needs --jobs 1"):
        run_search(make_plan(against="latency"), 1, 2)


def test_latency_is_an_objective(project: Any) -> None:
    plan = make_plan(against="latency")
    run_search(plan, 2, 1)
    assert [trial["values"][1] for trial in read_evidence(plan)["trials"]] == [10.0, 10.0]


def test_a_draw_of_invalid_settings_is_a_failed_trial(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Space.draw

    def fail_once(space: Space, trial: Any) -> Any:
        if trial.number == 1:
            raise UserError("params.yaml: model: invalid")
        return draw(space, trial)

    monkeypatch.setattr(Space, "draw", fail_once)
    plan = make_plan()
    run_search(plan, 3, 1)
    trials = read_evidence(plan)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "fail", "complete"]
    assert trials[1]["failure"] == "params.yaml: model: invalid"


# --- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_in_use(project: Any) -> None:
    plan = make_plan()
    Path("hang").write_text("ence")
    process = start(plan, 3)
    wait_for("reference")
    with pytest.raises(UserError, match=r"journal\.log: another search uses it"):
        run_search(plan, 3, 1)
    process.terminate()
    process.join()


def test_a_killed_search_leaves_the_lock_of_its_journal(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    run_search(plan, 1, 1)
    journal = Path(plan.storage)
    journal.with_name("journal.log.lock").symlink_to(journal)
    monkeypatch.setattr(time, "sleep", None)  # nothing waits for the lock
    study = storage.check_journal(journal) or plan.open()
    assert len(study.get_trials()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"no journal\nat all\n",
        b"no line",
        b"5\n",
        b"[1]\n",
        b'"x"\n',
        b'{"op_code": 99}\n',
        b'{"op_code"\xff\n{',
        b'{"op_code":0,"worker_id":"1","study_name":"s","directions":[2]}\n{"op_code":5,"worker_i',
    ],
)
def test_a_file_that_is_no_journal_is_left_as_it_is(project: Any, content: bytes) -> None:
    plan = make_plan()
    plan.folder.mkdir(parents=True)
    Path(plan.storage).write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.log: not a journal of Optuna .*move it away to start") as error:
        run_search(plan, 1, 1)
    assert Path(plan.storage).read_bytes() == content and "\n" not in str(error.value)


def test_an_error_in_the_code_is_not_blamed_on_the_journal(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(loop, "trained_parameters", broken)
    with pytest.raises(KeyError, match="a bug"):
        run_search(make_plan(), 1, 1)


# --- trials that a killed search left ---------------------------------------------------------------------------------


def new_study(plan: Plan) -> Any:
    plan.folder.mkdir(parents=True)
    return plan.open()


def ask(study: Any) -> Any:
    """Ask for a trial, and draw it."""
    trial = study.ask()
    trial.set_user_attr("overrides", {"x": trial.suggest_float("x", 0, 1)})
    return trial


def test_a_trial_is_retried_once(project: Any) -> None:
    study = new_study(make_plan())
    ask(study)
    [seen] = study.get_trials()
    assert storage.retry(study, seen) and not storage.retry(study, seen)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_trials_are_retried_in_order_with_their_parameters(project: Any) -> None:
    study = new_study(make_plan())
    drawn = [ask(study).params for _ in range(3)]
    study.ask()  # killed before its draw
    storage.recover(study, shared=False)
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert [storage.original(trial) for trial in waiting] == [0, 1, 2]
    assert [ask(study).params for _ in range(3)] == drawn


def test_abandoned_trials_of_a_shared_study(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = new_study(make_plan())
    trial = study.ask()

    def abandoned() -> bool:
        return storage.is_abandoned(study.get_trials()[0])

    assert not abandoned(), "its owner is about to claim it"
    monkeypatch.setattr(storage, "UNOWNED", -storage.UNOWNED)
    assert abandoned(), "its owner was killed before it could"
    storage.claim(trial)
    assert not abandoned(), "this process lives"
    process = subprocess.Popen(["true"])
    process.wait()
    trial.set_user_attr("owner", f"{socket.gethostname()}:{process.pid}")
    assert abandoned()
    trial.set_user_attr("owner", f"another:{process.pid}")
    assert not abandoned(), "only another machine can know"


def test_a_search_killed_while_it_records_a_failure(project: Any) -> None:
    plan = make_plan()
    study = new_study(plan)
    study.ask().set_user_attr("failure", "the loss is nan")
    assert storage.counted(study.get_trials()) == []
    run_search(plan, 2, 1)
    assert [trial["state"] for trial in read_evidence(plan)["trials"]] == ["fail", "complete"]


# --- a shared database ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", r"--storage postgresql\+psycopg://me:\*\*\*@127.*refused"),
        ("nosuch://me:secret@host/none", r"nosuch://me:\*\*\*@host/none: Can't load plugin"),
        ("mssql+pymssql://me:secret@host/none", "its driver is not installed"),
        ("://", "Could not parse SQLAlchemy URL"),
        ("journal.log", "must be the URL of a database server, .*one machine needs no database"),
        ("sqlite:///a.db", "must be the URL of a database server"),
    ],
)
def test_a_database_that_cannot_be_used(project: Any, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run_search(make_plan(url=url), 1, 1)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_draw_beyond_the_limits_is_refused_and_does_not_count(
    project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four directions have too many parameters, which costs nothing; the first trial's step takes too long."""
    hmf = {"window": {"kind": "choice", "of": [1, 2, 4, 8]}, "direction": {"kind": "choice", "of": ["raster", "cross"]}}
    first = {"model": {"hmf": {"window": 4, "direction": "raster"}}}
    space = {"model": {"hmf": hmf}, "limits": {"trained": 0.1, "time": 1.1}, "first": first}
    project.edit(search__spaces__limited=space)
    Path("slow").write_text("0000")
    plan = make_plan("limited")
    run_search(plan, 6, 1)
    trials = read_evidence(plan)["trials"]
    refused = [trial for trial in trials if trial["refused"]]
    assert len(trials) - len(refused) == 6
    assert {trial["state"] for trial in refused} == {"pruned"}, "the sampler ignores failed trials"
    for trial in trials:
        window, direction = (trial["drawn"][f"model.hmf.{key}"] for key in ("window", "direction"))
        if direction == "cross":
            assert (trial["refused"], trial["time_ratio"]) == ("+18.7% trained parameters", None)
            assert trial["name"] not in begun()
        elif window == 4:  # the first, and those that repeat it
            assert (trial["refused"], trial["time_ratio"]) == ("a step takes 1.50 times that of full", 1.5)
        else:
            assert (trial["refused"], trial["time_ratio"]) == (None, 1.0)
    assert "refused, a step takes 1.50 times that of full; 0 of 6" in capsys.readouterr().out


def test_limits_that_leave_nothing_end_the_search(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REFUSALS", 2)
    hmf = {"window": {"kind": "choice", "of": [1, 2, 4, 8]}, "direction": "cross"}
    project.edit(search__spaces__limited={"model": {"hmf": hmf}, "limits": {"trained": 0.1, "time": 1.1}})
    with pytest.raises(UserError, match="5 draws are beyond the limits of the space; widen"):
        run_search(make_plan("limited"), 2, 1)
