"""The manifest names everything that decides a run."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import DATA, decisive, digest
from wimfris.runs.manifest import PACKAGES, code_revision, is_finished, read_manifest


@pytest.mark.slow
def test_manifest_of_a_run(trained: Any) -> None:
    manifest = read_manifest(trained.files().manifest)
    settings = trained.params().settings()
    assert manifest["settings"] == settings.model_dump(mode="json")
    complete = manifest["settings"] | {"group": settings.group}  # the group names a folder, and decides no result
    again = type(settings).model_validate(complete)
    assert again.model_dump() == settings.model_dump(), "the settings can be read back"
    assert (manifest["run"], manifest["seed"], manifest["resumed"], manifest["processes"]) == ("full-0", 0, 0, 1)
    content = decisive(settings, 0)
    assert manifest["fingerprint"] == digest(content)
    assert manifest["code"]["modules"] == content["code"]
    assert manifest["data"] == {
        f"{name}_sha256": file_hash(trained.runs / "index" / f"{name}.parquet") for name in DATA
    }
    assert manifest["encoders"] == content["encoders"]
    assert manifest["packages"]["torch"] == torch.__version__
    assert {"python", "numpy", "transformers"} <= set(manifest["packages"])
    assert set(manifest["packages"]) <= {"python", *PACKAGES}
    assert manifest["threads"] == settings.train.threads and manifest["device"]
    assert manifest["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert manifest["scan"] in ("cpu", "reference"), "the backend that `auto` resolved to"
    assert manifest["scan_reason"]
    assert manifest["wall_seconds"] > 0
    assert 5e7 < manifest["peak_memory_bytes"]["host"] < 2e10


def test_missing_and_damaged_manifests(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(UserError, match=f"{path}: no such manifest; .*dvc repro"):
        read_manifest(path)
    path.write_text('{"run": ')
    with pytest.raises(UserError, match=f"{path}: damaged; delete its folder"):
        read_manifest(path)


def test_a_finished_run_has_all_files_and_its_fingerprint(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for path in files.all:
        assert not is_finished(files, "abc")
        path.write_text('{"fingerprint": "abc"}')
    assert is_finished(files, "abc")
    assert not is_finished(files, "def")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_code_without_a_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    assert code_revision() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")
    assert code_revision() == {"commit": None, "dirty": None}, "the same without git"


def test_code_without_a_commit(repository: Path) -> None:
    git("init", "--quiet")
    assert code_revision()["commit"] is None


def test_code_is_dirty_if_a_file_that_decides_runs_changed(repository: Path) -> None:
    git("init", "--quiet")
    (repository / "wimfris" / "training").mkdir(parents=True)
    for name in ("wimfris/training/trainer.py", "params.yaml", "README.md"):
        (repository / name).write_text("one\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    assert code_revision() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (repository / "README.md").write_text("two\n")
    assert code_revision()["dirty"] is False
    (repository / "params.yaml").write_text("two\n")
    assert code_revision()["dirty"] is True
    git("checkout", "--quiet", "params.yaml")
    (repository / "wimfris" / "new.py").write_text("new\n")
    assert code_revision()["dirty"] is True
