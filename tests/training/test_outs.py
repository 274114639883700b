"""The files of a run serve that run, its settings and its encoders, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.errors import UserError
from wimfris.settings.run import Run
from wimfris.settings.same import differences
from wimfris.training.outs import own_files

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(project: Any, trained_folder: Path) -> Any:
    shutil.copytree(trained_folder / "runs", project.folder / "runs", dirs_exist_ok=True)
    return project


def refusal(project: Any, run: str = "full-0") -> str:
    """Return the message with which the run's files are refused."""
    one = Run.parse(run)
    settings = project.params().settings_of(one)
    with pytest.raises(UserError) as error:
        own_files(settings, one)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_owns_its_files(trained: Any) -> None:
    assert own_files(trained.params().settings(), Run("full", 0)).folder.resolve() == trained.files().folder


def test_the_scan_backend_and_docstrings_do_not_bar_a_run(copied: Any) -> None:
    copied.edit(model__scan="reference")
    manifest = json.loads(copied.files().manifest.read_text())
    manifest["fingerprint"] = "of other code"
    copied.files().manifest.write_text(json.dumps(manifest))
    own_files(copied.params().settings(), Run("full", 0))


def test_a_setting_newer_than_the_run_counts_at_its_default(trained: Any) -> None:
    settings = trained.params().settings()
    values = settings.model_dump(mode="json")
    del values["train"]["compile"]
    assert differences(settings, values) == []
    assert differences(settings, values | {"train": values["train"] | {"compile": True}}) == [
        "train.compile was True and is False"
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--run", "full-0", "--out", "out.parquet"],
        ["predict", "--run", "full-0", "--image", "image.png", "--text", "the red circle"],
        ["export", "full-0", "--out", "exported"],
    ],
    ids=lambda command: command[0],
)
def test_no_verb_goes_on_with_the_files_of_other_settings(command: list[str], copied: Any) -> None:
    copied.edit(model__hmf__window=3)
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError) and "model.hmf.window was 4 and is 3" in str(result.exception)


def test_weights_and_records_of_another_run_are_refused(copied: Any) -> None:
    other = copied.files("none-0").folder
    shutil.copytree(copied.files().folder, other)
    assert "manifest.json: belongs to run full-0, not to none-0" in refusal(copied, "none-0")
    manifest = json.loads(copied.files().manifest.read_text()) | {"run": "none-0"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "weights.safetensors: belongs to run full-0, not to none-0" in refusal(copied, "none-0")
    (other / "weights.safetensors").unlink()
    assert "records.parquet: belongs to run full-0, not to none-0" in refusal(copied, "none-0")


def test_other_encoders_are_refused(copied: Any) -> None:
    path = copied.runs / "encoders.json"
    content = json.loads(path.read_text())
    content["text"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    assert "trained on other encoders" in refusal(copied)


def test_a_run_that_was_not_trained_and_damaged_files(copied: Any) -> None:
    advice = "full-1 is not trained at scale smoke; train it with `wimfris matrix --variants full --seeds 1`"
    assert advice in refusal(copied, "full-1")
    weights = copied.files().weights
    weights.write_bytes(weights.read_bytes()[:100])
    assert "weights.safetensors: damaged" in refusal(copied)


def test_figures_refuse_the_runs_of_other_settings(copied: Any) -> None:
    copied.edit(model__mta__scale=0.3, seeds=[0])
    result = CliRunner().invoke(app, ["figures"])
    assert isinstance(result.exception, UserError) and "model.mta.scale was 0.2 and is 0.3" in str(result.exception)
