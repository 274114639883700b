"""The studies made of measurements: their committed tables follow from the committed measurements and records."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from wimfris.cli.study import write_study
from wimfris.errors import UserError
from wimfris.measure import decay, efficiency
from wimfris.results.measured import CEILING, Measured, origin_note, read_measure, write_measure
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
NAMES = ("controls", "decay", "efficiency", "failure_modes")


def study(name: str) -> Measured:
    spec = importlib.util.spec_from_file_location(f"study_{name}", ROOT / "studies" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and f"python studies/{name}.py" in module.__doc__
    return module.STUDY


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[:-1], pytest.param(NAMES[-1], marks=pytest.mark.long)])
def test_the_committed_tables_follow_from_what_is_committed(
    name: str, committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(committed)
    folder = Path("reports") / "tables" / read_params().settings().folder.name
    before = {ending: (folder / f"{name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
    write_study(name, read_params())
    assert {ending: (folder / f"{name}.{ending}").read_text() for ending in before} == before


@pytest.mark.parametrize("name", ["decay", "efficiency"])
def test_every_variant_that_is_measured_has_a_label(name: str) -> None:
    measured = {"decay": (*decay.VARIANTS, *decay.BEYOND), "efficiency": efficiency.SYSTEMS}[name]
    assert tuple(study(name).report.keywords["labels"]) == measured


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decay\.csv: no such measurement; .*`wimfris measure`"):
        read_measure(read_params(ROOT / "params.yaml").settings(), "decay.csv", tmp_path)


def test_a_truncated_origin_is_one_line(tmp_path: Path) -> None:
    settings = read_params(ROOT / "params.yaml").settings()
    write_measure(pd.DataFrame({"a": [1]}), settings, "decay.csv", tmp_path)
    origin = tmp_path / "measures" / settings.folder.name / "origin.json"
    origin.write_text(origin.read_text()[:100])
    with pytest.raises(UserError, match=r"origin\.json: not a JSON file; restore it"):
        read_measure(settings, "decay.csv", tmp_path)


def test_a_measurement_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = read_params(ROOT / "params.yaml").settings()
    write_measure(pd.DataFrame({"a": [1]}), settings, "decay.csv", tmp_path)
    assert list(read_measure(settings, "decay.csv", tmp_path)["a"]) == [1]
    assert origin_note(settings, ["decay.csv"], tmp_path).startswith("Measured at commit ")
    model = settings.model.model_copy(update={"hmf": settings.model.hmf.model_copy(update={"window": 2})})
    with pytest.raises(UserError, match=r"decay\.csv: of other settings \(model\.hmf\.window was 4 and is 2\)"):
        read_measure(settings.model_copy(update={"model": model}), "decay.csv", tmp_path)


def test_scores_without_a_model_depend_on_the_data_alone(tmp_path: Path) -> None:
    settings = read_params(ROOT / "params.yaml").settings()
    write_measure(pd.DataFrame({"a": [1]}), settings, CEILING, tmp_path)
    train = settings.train.model_copy(update={"learning_rate": 1.0})
    assert list(read_measure(settings.model_copy(update={"train": train}), CEILING, tmp_path)["a"]) == [1]
    data = settings.data.model_copy(update={"image_size": 32})
    with pytest.raises(UserError, match=r"data\.image_size was 64 and is 32\); .*`wimfris ceiling --write`"):
        read_measure(settings.model_copy(update={"data": data}), CEILING, tmp_path)


@pytest.mark.parametrize("file", ["decay.csv", "strata-labels.parquet"])
def test_a_measurement_is_read_as_it_was_written(
    file: str, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(committed)
    written = committed / "reports" / "measures"
    settings = read_params().settings()
    name = settings.folder.name
    write_measure(read_measure(settings, file), settings, file, tmp_path)
    assert (tmp_path / "measures" / name / file).read_bytes() == (written / name / file).read_bytes()
