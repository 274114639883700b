"""The studies made of measurements: their committed tables follow from the committed measurements and records."""

import importlib.util
from pathlib import Path

import pytest

from wimfris.errors import UserError
from wimfris.measure import decay, efficiency
from wimfris.results.measured import Measured, read_measure, write_measure
from wimfris.results.tables import csv_text, markdown_text
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
NAMES = ("decay", "efficiency", pytest.param("failure_modes", marks=pytest.mark.slow))


def study(name: str) -> Measured:
    spec = importlib.util.spec_from_file_location(f"study_{name}", ROOT / "studies" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and f"python studies/{name}.py" in module.__doc__
    return module.STUDY


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_tables_follow_from_what_is_committed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = read_params()
    report = study(name).report(study(name).inputs(params))
    stem = Path("reports") / "tables" / params.settings().folder.name / name
    assert csv_text(report.frame) == stem.with_suffix(".csv").read_text()
    committed = stem.with_suffix(".md").read_text()
    tables = markdown_text("", report.sections).removeprefix("# \n\n")
    assert committed.endswith(tables) and report.intro in committed


@pytest.mark.parametrize("name", ["decay", "efficiency"])
def test_every_variant_that_is_measured_has_a_label(name: str) -> None:
    measured = {"decay": decay.VARIANTS, "efficiency": efficiency.SYSTEMS}[name]
    assert tuple(study(name).report.keywords["labels"]) == measured


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = read_params()
    with pytest.raises(UserError, match=r"decay\.csv: no such measurement; .*`wimfris measure`"):
        study("decay").inputs(params, tmp_path)
    more = params.model_copy(update={"seeds": [*params.seeds, 77]})
    with pytest.raises(UserError, match="failure_modes: no records of full-77, no_window-77, window_2-77 at"):
        study("failure_modes").inputs(more)


@pytest.mark.parametrize("file", ["decay.csv", "strata-labels.parquet"])
def test_a_measurement_is_read_as_it_was_written(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = read_params().settings().folder.name
    committed = Path("reports") / "measures" / name / file
    write_measure(read_measure(name, file), name, file, tmp_path)
    assert (tmp_path / "measures" / name / file).read_bytes() == committed.read_bytes()
