"""Searches that share a PostgreSQL database, started from the system's packages. `make test` runs this file."""

import os
import runpy
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from wimfris.search import storage

pytestmark = pytest.mark.slow
loop = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "search" / "test_loop.py")))
fake = loop.fake  # the fixture: a worker that computes its score


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


def test_searches_that_begin_at_once_on_an_empty_database(postgres: str) -> None:
    """Each tries to create the tables; those that are late use the first one's."""
    at_once = threading.Barrier(4)

    def begin(_: int) -> BaseStorage:
        at_once.wait()
        return storage.open_storage(postgres)

    with ThreadPoolExecutor(4) as pool:
        assert all(opened.get_all_studies() == [] for opened in pool.map(begin, range(4)))


def test_two_searches_share_a_database(project: Any, postgres: str) -> None:
    """They divide the trials of one study. The one that is killed leaves its trial to the other."""
    plan = loop.make_plan("planted", "random", url=postgres)
    Path("hang").write_text("0002")
    first = loop.start(plan, 8)
    loop.wait_for("planted_random_0002")
    Path("hang").unlink()
    second = loop.start(plan, 8)
    loop.wait_for("planted_random_0004")
    first.kill()
    first.join()
    second.join()
    output = Path("output").read_text()
    assert second.exitcode == 0, output
    trials = plan.open().get_trials()
    assert len(storage.counted(trials)) == 8
    assert loop.begun().count("planted_random_0002") == 2
    assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    files = [path for path in (plan.folder / "jobs").rglob("*") if path.is_file()]
    assert files and "secret" not in output and not any("secret" in path.read_text() for path in files)
