"""The fingerprint counts what can change a run's result, and nothing else. By copies of the package with one edit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wimfris.runs.fingerprint import PACKAGE, decisive, digest, run_code
from wimfris.settings.params import read_params

FULL = {"adapters": "wimfris", "neck": "hmf", "scan": "reference", "hmf": {"mixing": "ssm"}}
SSD = FULL | {"hmf": {"mixing": "ssd"}}
LORA = FULL | {"adapters": "lora"}
DETRIS = {"adapters": "detris", "neck": "detris", "scan": "reference"}
CPU = FULL | {"scan": "cpu"}
AUTO = FULL | {"scan": "auto"}
Edit = Callable[..., Path]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    """edit((file, old, new), ...): a copy of the package with these edits; an empty `old` appends."""

    def make(*edits: tuple[str, str, str]) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "wimfris"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "builtin"))
        for file, old, new in edits:
            path = copy / file
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            assert old in text, f"{file}: the edit's place is gone"
            path.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
        return copy

    return make


def changed(model: dict[str, Any], package: Path) -> set[str]:
    """The modules by which the code of a run differs from this package's."""
    before, after = run_code(model), run_code(model, package)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_run_reaches_its_own_code_alone() -> None:
    full, lora, detris = run_code(FULL), run_code(LORA), run_code(DETRIS)
    assert {"wimfris.training.trainer", "wimfris.model.hmf", "wimfris.data.letterbox", "wimfris.metrics"} <= full.keys()
    assert "wimfris.rivals.lora" in lora.keys() - full.keys() - detris.keys()
    assert "wimfris.model.mamba2" in run_code(SSD).keys() - full.keys(), "a new mixing leaves the others' runs current"
    assert "wimfris.rivals.detris" in detris.keys() - full.keys() - lora.keys()
    assert not [name for name in full if name.startswith(("wimfris.results", "wimfris.matrix", "wimfris.cli"))]


def test_a_run_reaches_the_kernels_of_its_backend() -> None:
    assert not [name for name in run_code(FULL) if name in ("wimfris.kernels.cpu", "wimfris.kernels.triton")]
    assert "wimfris.kernels.cpu" in run_code(CPU) and "wimfris.kernels.triton" not in run_code(CPU)
    assert {"wimfris.kernels.cpu", "wimfris.kernels.triton", "wimfris.kernels.mamba_ssm"} <= run_code(AUTO).keys()


def test_what_cannot_change_a_result_changes_no_fingerprint(edit: Edit) -> None:
    package = edit(
        ("training/trainer.py", '"""The training loop of one run.', '"""Another docstring.'),
        ("training/trainer.py", "LOG_EVERY = 10", "# a comment\n\nLOG_EVERY = (\n    10\n)"),
        ("training/trainer.py", "lower train.learning_rate", "other words"),
        ("errors.py", "", "\nOTHER = 1\n"),
        ("rivals/new_family.py", "", "X = 1\n"),
        ("rivals/families.py", "FAMILIES = {", 'FAMILIES = {"x": "wimfris.rivals.etris", '),
        ("settings/sections.py", "    optimizer: Literal", "    new: int = 0\n    optimizer: Literal"),
        ("results/tables.py", "", "\nX = 1\n"),
        ("cli/app.py", "", "\nX = 1\n"),
    )
    assert changed(FULL, package) == changed(LORA, package) == changed(AUTO, package) == set()


def test_an_edit_of_lora_changes_its_runs_alone(edit: Edit) -> None:
    package = edit(("rivals/lora.py", "", "\nX = 1\n"))
    assert changed(LORA, package) == {"wimfris.rivals.lora"}
    assert changed(FULL, package) == changed(DETRIS, package) == set()


@pytest.mark.slow
def test_a_mended_kernel_changes_the_runs_that_use_it(edit: Edit) -> None:
    package = edit(("kernels/cpu.py", "", "\nX = 1\n"))
    assert changed(CPU, package) == changed(AUTO, package) == {"wimfris.kernels.cpu"}
    assert changed(FULL, package) == set()


@pytest.mark.slow
def test_an_edit_of_shared_code_changes_every_run(edit: Edit) -> None:
    appended = ("metrics", "data.letterbox", "encoders.text")
    edits = [(f"{name.replace('.', '/')}.py", "", "\nX = 1\n") for name in appended]
    package = edit(("training/trainer.py", "LOG_EVERY = 10", "LOG_EVERY = 11"), *edits)
    for model in (FULL, LORA, CPU):
        assert changed(model, package) == {f"wimfris.{name}" for name in ("training.trainer", *appended)}


@pytest.mark.slow
def test_a_property_of_the_settings_counts(edit: Edit) -> None:
    package = edit(
        ("settings/schema.py", "self.data.image_size // self.encoders", "1 + self.data.image_size // self.encoders")
    )
    assert changed(FULL, package) == {"wimfris.settings.schema"}


@pytest.mark.slow
def test_imports_within_functions_count_and_those_for_types_do_not(edit: Edit) -> None:
    lazy = edit(("training/batches.py", "", "\n\ndef f():\n    from wimfris.results.report import tables\n"))
    assert "wimfris.results.report.tables" in run_code(FULL, lazy)
    typed = edit(("training/batches.py", "", "\nif TYPE_CHECKING:\n    from wimfris.results.report import tables\n"))
    assert "wimfris.results.report.tables" not in run_code(FULL, typed)


def test_settings_seed_data_and_encoders_decide(project: Any) -> None:
    settings = project.params().settings()
    before = digest(decisive(settings, 0))
    assert digest(decisive(settings, 1)) != before
    record = settings.folder / "encoders.json"
    text = record.read_text()
    record.write_text(text.replace('"sha256": "', '"sha256": "0'))
    assert digest(decisive(settings, 0)) != before
    record.write_text(text)
    assert digest(decisive(settings, 0)) == before
    index = settings.folder / "index" / "index.parquet"
    index.write_bytes(index.read_bytes() + b"x")
    assert digest(decisive(settings, 0)) != before
    project.edit(variants__full={"loss": {"dice": 0.4}})
    assert digest(decisive(project.params().settings(), 0)) != before


def test_a_setting_at_its_default_does_not_count(project: Any) -> None:
    """So that a key which a later version adds leaves finished runs current."""
    settings = read_params().settings()
    assert "backbone_factor" not in decisive(settings, 0)["settings"]["train"]
