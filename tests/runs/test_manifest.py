"""The manifest names everything that a run was made from."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from wimfris.encoders.load import weights_hash
from wimfris.files import file_hash
from wimfris.inference.predict import Predictor
from wimfris.runs.manifest import PACKAGES, code_revision
from wimfris.training.checkpoint import code_hash
from wimfris.training.trainer import CODE


def test_manifest_of_a_run(trained: Any) -> None:
    manifest = json.loads((trained.runs / "manifests" / "full-0.json").read_text())
    settings = trained.params().settings()
    assert manifest["settings"] == settings.model_dump(mode="json")
    read = manifest["settings"] | {"group": ""}  # which decides where the outs lie, and no result
    assert type(settings).model_validate(read) == settings, "the settings can be read back"
    assert (manifest["run"], manifest["seed"], manifest["resumed"]) == ("full-0", 0, 0)
    assert manifest["code"]["sha256"] == code_hash(CODE)
    assert manifest["data"]["index_sha256"] == file_hash(trained.runs / "index" / "index.parquet")
    segmenter = Predictor.load(settings, "full-0").segmenter
    assert manifest["encoders"]["text"]["sha256"] == weights_hash(segmenter.text.backbone)
    assert manifest["encoders"]["vision"]["sha256"] == weights_hash(segmenter.vision.backbone)
    assert manifest["packages"]["torch"] == torch.__version__
    assert {"python", "numpy", "transformers"} <= set(manifest["packages"])
    assert set(manifest["packages"]) <= {"python", *PACKAGES}
    assert manifest["threads"] == settings.train.threads and manifest["device"]
    assert manifest["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert manifest["scan"] in ("cpu", "reference"), "what `auto` came to"
    assert manifest["wall_seconds"] > 0
    assert 5e7 < manifest["peak_memory_bytes"]["host"] < 2e10


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
    assert code_revision() == {"commit": None, "dirty": None}, "nor without git"


def test_code_without_a_commit(repository: Path) -> None:
    git("init", "--quiet")
    assert code_revision()["commit"] is None


def test_dirty_is_what_changes_a_run(repository: Path) -> None:
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


def test_code_hash_follows_the_source() -> None:
    assert code_hash(["metrics.py"]) != code_hash(["errors.py"])
    assert code_hash(["model"]) == code_hash(["model"]) != code_hash(["model", "metrics.py"])
