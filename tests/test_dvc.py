"""The pipeline's files: runs depend on fingerprints, and all that follows the evidence reads reports/ alone."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wimfris.results.comparison import Study
from wimfris.results.studies import load_studies
from wimfris.runs.files import RunFiles
from wimfris.settings.params import Params, read_params
from wimfris.settings.schema import Settings

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BEYOND: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "studies" / "dvc.yaml").read_text())["stages"]
ALL = [*STAGES.items(), *((f"studies:{name}", stage) for name, stage in BEYOND.items())]
FOLDER = "runs/${data.name}-${scale}"
RUN = "${item.variant}-${item.seed}"


def outs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Path -> its options."""
    entries = [*stage.get("outs", []), *stage.get("metrics", [])]
    return {
        path: options
        for entry in entries
        for path, options in ({entry: {}} if isinstance(entry, str) else entry).items()
    }


@pytest.mark.parametrize(("file", "lines"), [("dvc.yaml", 130), ("studies/dvc.yaml", 50)])
def test_the_graphs_are_short(file: str, lines: int) -> None:
    assert len((ROOT / file).read_text().splitlines()) <= lines


@pytest.mark.parametrize(
    ("stage", "group"), [(STAGES["train"], "core"), (BEYOND["train"], "extended"), (BEYOND["controls"], "extended")]
)
def test_a_run_depends_on_its_fingerprint_and_leaves_one_folder(stage: dict[str, Any], group: str) -> None:
    code, encoders, index = (
        f"{FOLDER}/code/${{item.variant}}.json",
        f"{FOLDER}/encoders.json",
        f"{FOLDER}/index",
    )
    assert stage["deps"] == [code, encoders, index] and "params" not in stage
    assert stage["cmd"] == f"wimfris train --run {RUN}"
    assert outs(stage) == {f"{FOLDER}/{group}/{RUN}": {}}, "all cached: one uncached out switches DVC's run cache off"


def test_the_outs_are_where_the_trainer_writes() -> None:
    params = read_params(ROOT / "params.yaml")
    for run, group in ((params.runs()[0], "core"), (params.extended_runs()[0], "extended")):
        settings = params.settings_of(run)
        assert settings.outs == settings.folder / group
        assert {path.parent for path in RunFiles(settings.outs / str(run)).all} == {settings.outs / str(run)}


def test_code_depends_on_all_that_makes_the_settings() -> None:
    """A section that is added to the settings has to be declared."""
    keys = {key.split(".")[0] for key in STAGES["code"]["params"]}
    sections = set(Settings.model_fields) & set(Params.model_fields) - {"scale"}
    assert sections | {"variants", "extended", "scales", "rivals"} <= keys
    assert STAGES["code"]["deps"] == ["wimfris"]


def test_the_root_starts_no_run_beyond_the_core() -> None:
    for name, stage in STAGES.items():
        for path in (path for path in stage.get("deps", []) if path.startswith("runs/")):
            assert "/extended" not in path and "/extra" not in path and "/search" not in path, name


def test_after_the_evidence_everything_reads_reports() -> None:
    """Only `figures` reads runs: its gallery needs weights, its curves logs."""
    for name in ("compare", "tables", "study", "page"):
        for path in STAGES[name]["deps"]:
            assert path.startswith(("reports/", "wimfris/", "studies")), f"{name}: {path}"


def test_one_stage_makes_the_core_evidence_and_none_the_added() -> None:
    made = {path for _, stage in ALL for path in outs(stage) if path.startswith("reports/records")}
    assert made == {
        f"reports/records/${{data.name}}-${{scale}}{end}"
        for end in (".parquet", "-runs.csv", "-emphasis.csv", "-metrics")
    }


def test_every_study_is_a_stage() -> None:
    names = STAGES["study"]["matrix"]["name"]
    studies = load_studies(ROOT / "studies")
    of_records = [one for one in studies if (not one.scales if isinstance(one, Study) else not one.measures)]
    assert names == sorted(study.name for study in of_records)
    measured = BEYOND["measure"]["matrix"]["name"]
    assert measured == sorted(study.name for study in studies if not isinstance(study, Study) and study.measures)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), ALL, ids=[name for name, _ in ALL])
def test_declared_parameters_and_files_exist(name: str, stage: dict[str, Any]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key in stage.get("params", []):
        place = params
        for part in key.replace("${scale}", params["scale"]).split("."):
            assert part in place, key
            place = place[part]
    for path in stage.get("deps", []):
        if path.startswith(("wimfris", "studies/")) and "${" not in path:
            assert (ROOT / path).exists(), path


def test_small_files_are_committed_and_runs_are_cached() -> None:
    for name, stage in ALL:
        for path, options in outs(stage).items():
            expected = {} if path.startswith("runs/") else {"cache": False}
            if path == "reports/results.ipynb":  # a person's edits of its cells stay when the stage runs
                expected["persist"] = True
            assert options == expected, f"{name}: {path}"
