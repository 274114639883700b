"""The evidence: made from runs/, read by everything else, and current or not by its settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.evidence import (
    RUN_COLUMNS,
    EvidenceFiles,
    evidence_names,
    gather,
    read_evidence,
    read_masks_of,
    records_hash,
    write_core,
)
from wimfris.results.scores import METRICS
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.masks import read_masks, write_masks
from wimfris.runs.records import read_records, write_records
from wimfris.settings.run import Run

pytestmark = pytest.mark.slow

NAME = "scenes-smoke"


@pytest.fixture
def finished(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Any) -> Any:
    """The smoke project with core runs full-0, full-1 and an extended run, all made from one training."""
    variants, extended = {"full": {}}, {"gate_none": project.params().extended["gate_none"]}
    project.edit(variants=variants, extended=extended, controls={}, seeds=[0, 1], extended_seeds=[0])
    for name in ("full-0", "full-1", "gate_none-0"):
        imitate(project, trained_folder, Run.parse(name))
    return project


def imitate(project: Any, trained_folder: Path, run: Run) -> None:
    """Leave the files of full-0 as those of another run."""
    settings = project.params().settings_of(run)
    target = settings.outs / str(run)
    shutil.copytree(trained_folder / "runs" / NAME / "core" / "full-0", target, dirs_exist_ok=True)
    records = read_records(target / "records.parquet").assign(run=str(run), variant=run.variant, seed=run.seed)
    write_records(records, target / "records.parquet")
    write_masks(read_masks(target / "masks.parquet").assign(run=str(run)), target / "masks.parquet")
    manifest = json.loads((target / "manifest.json").read_text())
    manifest |= {"run": str(run), "seed": run.seed, "settings": settings.model_dump(mode="json")}
    manifest["fingerprint"] = digest(decisive(settings, run.seed))
    (target / "manifest.json").write_text(json.dumps(manifest))


def test_core_evidence_holds_records_and_where_they_came_from(finished: Any) -> None:
    params = finished.params()
    files = write_core(params)
    assert files.records == Path("reports/records/scenes-smoke.parquet")
    evidence = read_evidence(params)
    assert list(evidence.runs["run"]) == ["full-0", "full-1"]
    row = evidence.runs.iloc[0]
    assert list(evidence.runs.columns) == list(RUN_COLUMNS)
    assert row["fingerprint"] == digest(decisive(params.settings(), 0))
    assert row["records"] == records_hash(evidence.records[evidence.records["run"] == "full-0"])
    assert row["weights"].startswith("sha256:") and row["trained_parameters"] > 0
    assert {path.name for path in files.metrics.iterdir()} == {"full-0.json", "full-1.json"}
    assert set(json.loads((files.metrics / "full-0.json").read_text())) == set(METRICS)
    before = {path: path.read_bytes() for path in (files.records, files.runs, files.emphasis)}
    write_core(params)
    assert {path: path.read_bytes() for path in before} == before, "the same runs give the same bytes"


def test_masks_of_the_first_seed_of_listed_systems_are_kept(finished: Any) -> None:
    finished.edit(explorer=["full", "gate_none"])
    params = finished.params()
    core, (added, _) = write_core(params), gather(params, params.all_runs())
    assert str(core.masks) == "reports/masks/scenes-smoke.parquet"
    evidence = read_evidence(params)
    masks = read_masks_of(params, evidence)
    val = evidence.records[(evidence.records["split"] == "val") & (evidence.records["condition"] == "sentence")]
    assert masks["run"].value_counts().to_dict() == {
        name: (val["run"] == name).sum() for name in ("full-0", "gate_none-0")
    }
    before = core.masks.read_bytes(), added.masks.read_bytes()
    write_core(params), gather(params, params.all_runs())
    assert (core.masks.read_bytes(), added.masks.read_bytes()) == before, "the same runs give the same bytes"
    finished.edit(explorer=["full"])
    gather(finished.params(), [Run("gate_none", 0)])
    assert set(read_masks_of(finished.params(), evidence)["run"]) == {"full-0"}


def test_masks_of_other_records_are_refused(finished: Any) -> None:
    params = finished.params()
    files = write_core(params)
    runs = pd.read_csv(files.runs)
    runs.loc[runs["run"] == "full-0", "records"] = "sha256:0"
    runs.to_csv(files.runs, index=False)
    with pytest.raises(UserError, match=r"masks/scenes-smoke.parquet: the masks of full-0 belong to other records"):
        read_masks_of(params, read_evidence(params))
    finished.edit(explorer=["gate_none"])
    shutil.copy(finished.files().masks, finished.runs / "extended" / "gate_none-0" / "masks.parquet")
    with pytest.raises(UserError, match=r"masks.parquet: holds masks of full-0 instead of gate_none-0"):
        gather(finished.params(), [Run("gate_none", 0)])


def test_evidence_of_earlier_versions_has_no_masks(finished: Any) -> None:
    params = finished.params()
    write_core(params).masks.unlink()
    assert read_masks_of(params, read_evidence(params)).empty


def test_a_missing_run_of_the_core_is_named(finished: Any) -> None:
    shutil.rmtree(finished.files("full-1").folder)
    with pytest.raises(UserError, match=r"full-1 missing, or trained with other settings or code"):
        write_core(finished.params())


def test_a_run_of_other_settings_is_no_evidence(finished: Any) -> None:
    finished.edit(loss__dice=0.4)
    with pytest.raises(UserError, match="full-0, full-1 missing, or trained with other settings or code"):
        write_core(finished.params())


def test_records_of_another_run_are_refused(finished: Any) -> None:
    shutil.copy(finished.files("full-0").records, finished.files("full-1").records)
    with pytest.raises(UserError, match=r"core/full-1: holds full-0, full-1 instead of full-1"):
        write_core(finished.params())


def test_gathered_runs_are_merged_and_the_core_is_left_out(finished: Any) -> None:
    params = finished.params()
    write_core(params)
    files, runs = gather(params, params.all_runs())
    assert runs == [Run("gate_none", 0)] and files.records.name == "scenes-smoke-added.parquet"
    assert list(read_evidence(params).runs["run"]) == ["full-0", "full-1", "gate_none-0"]
    before = files.runs.read_bytes()
    gather(params, params.all_runs())
    assert files.runs.read_bytes() == before, "merging again changes nothing"


def test_without_core_evidence_core_runs_are_gathered_too(finished: Any) -> None:
    params = finished.params()
    _, runs = gather(params, params.all_runs())
    assert runs == params.all_runs()
    assert evidence_names() == [NAME]
    assert len(read_evidence(params).runs) == 3


def test_nothing_to_gather_is_one_line(project: Any) -> None:
    with pytest.raises(UserError, match=r"^runs/scenes-smoke: no finished run to gather"):
        gather(project.params(), project.params().all_runs())


def test_evidence_of_other_settings_is_not_current(finished: Any) -> None:
    write_core(finished.params())
    finished.edit(loss__dice=0.4)
    assert read_evidence(finished.params()).runs.empty


def test_a_key_added_later_counts_at_its_default_and_the_backend_does_not_count(finished: Any) -> None:
    files = write_core(finished.params())
    runs = pd.read_csv(files.runs)
    settings = [json.loads(text) for text in runs["settings"]]
    for values in settings:
        del values["train"]["compile"]
        values["model"]["scan"] = "cpu"
    runs.assign(settings=[json.dumps(values) for values in settings]).to_csv(files.runs, index=False)
    assert len(read_evidence(finished.params()).runs) == 2


def test_a_record_without_its_row_is_an_error(finished: Any) -> None:
    files = write_core(finished.params())
    pd.read_csv(files.runs).head(1).to_csv(files.runs, index=False)
    with pytest.raises(UserError, match=r"^reports/records/scenes-smoke-runs.csv: no row of full-1; restore"):
        read_evidence(finished.params())


def test_no_evidence_at_all_is_one_line(project: Any) -> None:
    with pytest.raises(UserError, match=r"^reports/records/scenes-smoke.parquet: no such evidence; restore"):
        read_evidence(project.params())
    assert EvidenceFiles(NAME, added=True).runs == Path("reports/records/scenes-smoke-added-runs.csv")


def test_extra_seeds_enter_no_table(finished: Any) -> None:
    write_core(finished.params())
    finished.edit(seeds=[0], extra_seeds={"full": [1]})
    params = finished.params()
    evidence = read_evidence(params)
    assert set(evidence.runs["run"]) == {"full-0", "full-1"}
    assert set(evidence.declared(params).runs["run"]) == {"full-0"}
    assert set(evidence.declared(params).records["run"]) == {"full-0"}
