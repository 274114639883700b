"""A search whose trainer computes its score: what is killed goes on, what fails is told, what is finished stays."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from wimfris.errors import UserError
from wimfris.search import loop as searching
from wimfris.search import storage as kept
from wimfris.search.loop import Plan, evidence, run_search
from wimfris.search.space import Space, read_search

HERE = Path(__file__)
ROOT = HERE.parents[2]
FAKE = (sys.executable, str(HERE.with_name("fake_trial.py")))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "TRAINER", FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def plan(project: Any, space: str = "planted", sampler: str = "tpe", **how: Any) -> Plan:
    params = project.params()
    return Plan(Space(space, params, read_search(params)), sampler, **how)


def drawn(of: Plan) -> list[dict[str, Any]]:
    """What the trials that count drew, in order."""
    return [trial.params for trial in kept.finished(of.open().get_trials())]


def begun() -> list[str]:
    return [line.split("-")[0] for line in Path("begun").read_text().splitlines()]


def start(trials: int, jobs: int = 1, *, against: str = "", url: str = "") -> "subprocess.Popen[str]":
    """A search as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(HERE), str(trials), str(jobs), against, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(number: int) -> list[int]:
    """Until so many runs have begun, the reference among them; their processes."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        lines = Path("begun").read_text().splitlines() if Path("begun").exists() else []
        if len(lines) >= number:
            return [int(line.split()[1]) for line in lines]
        time.sleep(0.05)
    raise AssertionError("no more trials began")


def test_a_search_finds_what_is_good(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    of = plan(project)
    run_search(of, 12, 2)
    told = capsys.readouterr().out
    assert re.search(r"planted_tpe_0000: mIoU .*; 1 of 12, best .* left|planted_tpe_0001: mIoU .*; 1 of 12", told)
    found = evidence(of)
    assert len(found["trials"]) == 12 and found["reference"]["metrics"]["val"]["miou"] == pytest.approx(0.488)
    first = found["trials"][0]
    assert first["overrides"] == {"model": {"hmf": {"window": "grid"}}, "train": {"learning_rate": 3e-5}}
    assert first["values"] == [first["metrics"]["val"]["miou"]] and first["metrics"]["testA"]["n"] == 10
    assert max(trial["values"][0] for trial in found["trials"]) > first["values"][0] + 0.1
    rates = {trial["overrides"]["train"]["learning_rate"] for trial in found["trials"]}
    assert len(rates) == 12, "trials that run side by side are not drawn alike"
    assert set(found["importances"]) == {"model.hmf.window", "train.learning_rate"}
    assert sum(found["importances"].values()) == pytest.approx(1, abs=1e-4)
    run_search(of, 12, 2)
    assert len(begun()) == 13, "nothing is missing, nothing is trained"


def test_same_seed_same_trials_killed_or_not_and_extended(project: Any) -> None:
    of = plan(project, against="parameters")
    run_search(of, 9, 1)
    whole = drawn(of)
    shutil.rmtree(of.home)
    Path("begun").unlink()
    Path("seconds").write_text("1.5")
    process = start(5, against="parameters")
    trainer = wait_for(4)[3]
    process.kill()
    process.wait()
    Path("seconds").write_text("0")
    run_search(of, 5, 1)
    assert drawn(of) == whole[:5]
    states = [trial.state for trial in of.open().get_trials()]
    assert states.count(TrialState.FAIL) == 1, "the one that was running"
    assert kept.original(of.open().get_trials()[3]) == 2
    assert begun().count("planted_tpe_parameters_0002") == 2, "asked again under its own name"
    run_search(of, 9, 1)
    assert drawn(of) == whole
    assert not Path(f"/proc/{trainer}").exists(), "a trainer ends with its search"


def test_other_seed_other_trials(project: Any) -> None:
    run_search(plan(project), 2, 1)
    first = drawn(plan(project))
    project.edit(search__seed=101)
    of = plan(project)
    run_search(of, 2, 1)
    assert first[0] == drawn(of)[0] and first[1] != drawn(of)[1]


def test_a_run_that_had_ended_is_not_trained_again(project: Any) -> None:
    of = plan(project)
    run_search(of, 1, 1)
    study = of.open()
    trial = study.ask()
    overrides = of.space.draw(trial)
    trial.set_user_attr("overrides", overrides)
    trial.set_user_attr("trained", 1)
    settings = of.settings(of.name(trial.number), overrides)
    for kind in ("metrics", "manifests"):
        there = settings.outs / kind / "planted_tpe_0000-100.json"
        shutil.copy(there, there.with_name("planted_tpe_0001-100.json"))
    run_search(of, 2, 1)
    assert len(kept.finished(of.open().get_trials())) == 2 and "planted_tpe_0001" not in begun()


def test_failing_trials(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fail").write_text("0001")
    Path("kill").write_text("0002")
    Path("prune").write_text("0003")
    of = plan(project)
    run_search(of, 5, 1)
    told = capsys.readouterr().out
    assert "planted_tpe_0001: FAILED, the loss is nan at step 3; lower train.learning_rate; 2 of 5, 1 failed" in told
    assert "planted_tpe_0002: FAILED, killed by signal 9, perhaps for want of memory; 3 of 5, 2 failed" in told
    assert re.search(r"planted_tpe_0003: pruned after epoch 2, mIoU \d+\.\d; 4 of 5, 1 pruned, 2 failed", told)
    states = [trial["state"] for trial in evidence(of)["trials"]]
    assert states == ["complete", "fail", "fail", "pruned", "complete"]


def test_trial_after_trial_fails(project: Any) -> None:
    Path("fail").write_text("all")
    with pytest.raises(UserError, match=r"the last 5 trials failed, .*0004: the loss is nan at step 3; .*; log: "):
        run_search(plan(project), 30, 1)
    assert len(begun()) == 6


def test_settings_that_were_tried_are_not_trained_again(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    of = plan(project, "window", "random")
    run_search(of, 16, 1)
    assert len(set(begun())) == len(begun()) <= 11, "ten settings and the reference"
    trials = evidence(of)["trials"]
    again = [trial for trial in trials if trial["same_as"]]
    by_name = {trial["name"]: trial for trial in trials}
    assert len(trials) == 16 and len(again) >= 6
    for trial in again:
        assert trial["values"] == by_name[trial["same_as"]]["values"] and trial["metrics"]
    assert "not trained again" in capsys.readouterr().out


def test_interrupted(project: Any) -> None:
    Path("seconds").write_text("60")
    Path("seconds").write_text("0.2")
    of = plan(project)
    process = start(30)
    wait_for(3)
    Path("seconds").write_text("60")
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in told
    assert "the same command again goes on" in told
    states = [trial.state for trial in of.open().get_trials()]
    assert TrialState.RUNNING not in states and states[-1] == TrialState.WAITING


def test_bad_numbers(project: Any) -> None:
    for trials, jobs, told in ((0, 1, "--trials 0: needs at least one"), (1, 0, "--jobs 0: needs at least one")):
        with pytest.raises(UserError, match=told):
            run_search(plan(project), trials, jobs)
    with pytest.raises(UserError, match=r"--against latency: .*--jobs 1"):
        run_search(plan(project, against="latency"), 1, 2)


def test_latency_is_an_objective(project: Any) -> None:
    of = plan(project, against="latency")
    run_search(of, 2, 1)
    assert [trial["values"][1] for trial in evidence(of)["trials"]] == [10.0, 10.0]


# --- storage ----------------------------------------------------------------------------------------------------------


def test_journal_in_use(project: Any) -> None:
    Path("seconds").write_text("30")
    process = start(3)
    wait_for(1)
    with pytest.raises(UserError, match=r"journal\.log: another search is at work on it"):
        run_search(plan(project), 3, 1)
    process.terminate()
    process.communicate()


def test_journal_that_a_kill_cut_off(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    of = plan(project)
    run_search(of, 2, 1)
    before = drawn(of)
    with Path(of.place).open("ab") as file:
        file.write(b'{"op_code":5,"worker_i')
    run_search(of, 3, 1)
    assert "its last line was cut off by a kill, and is dropped" in capsys.readouterr().err
    assert drawn(of)[:2] == before and len(drawn(of)) == 3


@pytest.mark.parametrize(
    "content",
    [b"no journal\nat all\n", b"no line", b"5\n", b"[1]\n", b'"x"\n', b'{"op_code": 99}\n', b'{"op_code"\xff\n{'],
)
def test_journal_that_is_none(project: Any, content: bytes) -> None:
    of = plan(project)
    of.home.mkdir(parents=True)
    Path(of.place).write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.log: not a journal of Optuna .*move it away to begin anew") as error:
        run_search(of, 1, 1)
    assert Path(of.place).read_bytes() == content and "\n" not in str(error.value)


def test_a_fault_of_the_code_is_not_blamed_on_the_journal(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(searching, "trained_parameters", broken)
    with pytest.raises(KeyError, match="a bug"):
        run_search(plan(project), 1, 1)


# --- trials that were left --------------------------------------------------------------------------------------------


def opened(of: Plan) -> Any:
    of.home.mkdir(parents=True)
    return of.open()


def test_a_search_that_is_killed_again_and_again_gives_the_trial_up(project: Any) -> None:
    """Kills count, orderly ends do not."""
    study = opened(plan(project))
    study.ask()
    for number in range(kept.RETRIES + 1):
        assert kept.finished(study.get_trials()) == []
        kept.give_up(study, study.get_trials()[-1], killed=False)
        study.ask()
        kept.give_up(study, study.get_trials()[-1])
        last = study.get_trials()[-1]
        assert kept.original(last) == 0 and last.user_attrs["kills"] == number + 1
        if last.state == TrialState.WAITING:
            study.ask()
    [given_up] = kept.finished(study.get_trials())
    assert given_up.user_attrs["failure"] == "its search was killed 4 times while it ran"


def test_given_up_by_two_it_is_asked_again_once(project: Any) -> None:
    study = opened(plan(project))
    study.ask()
    [seen] = study.get_trials()
    kept.give_up(study, seen)
    kept.give_up(study, seen)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_orphans_of_a_shared_study(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(plan(project))
    asked = study.ask()

    def orphan() -> bool:
        return kept.is_orphan(study.get_trials()[0], True)

    assert not orphan(), "about to be signed"
    monkeypatch.setattr(kept, "GRACE", -1)
    assert orphan(), "killed before it was signed"
    kept.sign(study, asked._trial_id)
    assert not orphan(), "this process lives"


def test_killed_between_a_failure_and_its_record(project: Any) -> None:
    of = plan(project)
    study = opened(of)
    study.ask().set_user_attr("failure", "the loss is nan")
    assert kept.finished(study.get_trials()) == []
    run_search(of, 2, 1)
    assert [trial["state"] for trial in evidence(of)["trials"]] == ["fail", "complete"]


def test_a_draw_that_cannot_be_is_a_failed_trial(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Space.draw

    def once(space: Space, trial: Any) -> Any:
        if trial.number == 1:
            raise UserError("params.yaml: model: cannot be")
        return draw(space, trial)

    monkeypatch.setattr(Space, "draw", once)
    of = plan(project)
    run_search(of, 3, 1)
    trials = evidence(of)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "fail", "complete"]
    assert trials[1]["failure"] == "params.yaml: model: cannot be"


def test_trials_of_equal_settings_side_by_side_are_trained_once(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Space, "draw", lambda *_: {"model": {"hmf": {"window": 2}}})
    Path("seconds").write_text("1")
    of = plan(project, "window", "random")
    run_search(of, 4, 2)
    trials = evidence(of)["trials"]
    assert len(begun()) == 2, "one, and the reference"
    assert [trial["same_as"] for trial in trials] == [None, *["window_random_0000"] * 3]
    assert len({trial["values"][0] for trial in trials}) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", r"--storage postgresql\+psycopg://me:\*\*\*@127.*refused"),
        ("nosuch://me:secret@host/none", "the driver is not installed"),
        ("://", "not the URL of a database"),
        ("journal.log", "not the URL of a database; .*a journal file serves one machine"),
        ("sqlite:///a.db", "SQLite is not made for several that write"),
    ],
)
def test_database_out_of_reach(project: Any, url: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        run_search(plan(project, url=url), 1, 1)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of the test's own on the loopback; the URL of its database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    places = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *filter(None, [shutil.which("initdb")])]
    if not places:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    binaries = Path(places[0]).parent
    as_user: list[str] = []
    folder = tmp_path_factory.mktemp("postgres")
    if os.geteuid() == 0:  # it refuses to run as root
        if shutil.which("runuser") is None or "postgres:" not in Path("/etc/passwd").read_text():
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
        as_user = ["runuser", "-u", "postgres", "--"]
        folder = Path("/tmp") / f"wimfris-postgres-{os.getpid()}"  # that user may not enter pytest's own
        folder.mkdir()
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"

    def run(*command: str) -> None:
        result = subprocess.run([*as_user, *command], capture_output=True, text=True, cwd=folder, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    run(str(binaries / "initdb"), "-D", str(data), "-U", "me", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run(str(binaries / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql+psycopg://me:secret@127.0.0.1:{port}/postgres"
    run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_two_that_begin_at_once_on_an_empty_database(postgres: str) -> None:
    """Each would make the tables; the one that comes too late takes the other's."""
    at_once = threading.Barrier(4)

    def begin(_: int) -> BaseStorage:
        at_once.wait()
        return kept.open_storage(postgres)

    with ThreadPoolExecutor(4) as pool:
        assert all(storage.get_all_studies() == [] for storage in pool.map(begin, range(4)))


def test_two_searches_share_a_database(project: Any, postgres: str) -> None:
    """They do the trials of one study between them; one that is killed leaves its trial to be asked again."""
    of = plan(project, "planted", "random", url=postgres)
    Path("seconds").write_text("1")
    first, second = start(8, url=postgres), start(8, url=postgres)
    wait_for(4)
    first.kill()
    first.wait()
    Path("seconds").write_text("0")
    told, _ = second.communicate(timeout=180)
    assert second.returncode == 0, told
    trials = of.open().get_trials()
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert 8 <= len(done) <= 9, "two that ask at once may be one over"
    assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    assert "secret" not in told and "secret" not in "".join(path.read_text() for path in (of.home / "jobs").glob("*"))


if __name__ == "__main__":
    from wimfris.settings.params import read_params

    searching.TRAINER = FAKE
    asked, at_once, weighed, place = sys.argv[1:]
    there = read_params()
    search = read_search(there)
    name = ("planted", "random") if place else ("planted", "tpe")
    chosen = Plan(Space(name[0], there, search), name[1], weighed or None, place or None)
    try:
        run_search(chosen, int(asked), int(at_once))
    except UserError as error:
        sys.exit(f"wimfris: {error}")
