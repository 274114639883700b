"""Tests that start real DVC, Slurm, PostgreSQL, Triton's interpreter or notebooks.

Those marked `slow` are run by `make test`, those marked `long` by `make test-slow`; `make check` runs none of them.
"""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
matrix = runpy.run_path(str(ROOT / "tests" / "matrix" / "conftest.py"))["matrix"]  # the fixture
browser = runpy.run_path(str(ROOT / "tests" / "slow" / "browser.py"))["browser"]  # likewise


def environment() -> dict[str, str]:
    """Return the environment of a user's shell in an activated environment, without git's own variables."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), values.get("PATH", "")])
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    return values | names | {"PATH": path, "COLUMNS": "200"}


def shell(folder: Path, *command: str, **extra: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    env = environment() | {"PYTHONPATH": str(folder)} | extra
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout + result.stderr


@pytest.fixture(scope="session")
def done() -> Callable[..., str]:
    """done(folder, *command, **variables): run a command that must succeed, and return what it printed."""
    return shell


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """clone(variants, seeds): a repository of the project's tracked files at scale smoke, with these variants alone."""

    def make(variants: tuple[str, ...] = ("full", "none"), seeds: tuple[int, ...] = (0,)) -> Path:
        folder = tmp_path_factory.mktemp("clone") / "wimfris"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.splitlines():
            if (ROOT / name).is_file() and not name.startswith("reports/records/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        path = folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        core = {name: content["variants"][name] for name in variants}
        content |= {
            "scale": "smoke",
            "variants": core,
            "seeds": list(seeds),
            "extended": {},
            "controls": {},
            "extra_seeds": {},
            "explorer": list(variants),
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        shell(folder, "git", "init", "--quiet")
        shell(folder, "git", "add", "--all")
        shell(folder, "git", "commit", "--quiet", "--message", "start")
        return folder

    return make
