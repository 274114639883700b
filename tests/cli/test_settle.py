"""`wimfris settle`: budgets, and the seeds that it declares in params.yaml."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from params_file import edit_yaml

from wimfris.cli.settle import declare_extra_seeds, parse_budget, settle, with_extra_seeds
from wimfris.errors import Interrupted, UserError
from wimfris.results.evidence import RUN_COLUMNS, Evidence, EvidenceFiles, read_evidence, write_part
from wimfris.results.plan import CLAIMS, read_plan
from wimfris.runs.records import SCHEMA
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("text", "minutes"), [("90m", 90), ("6h", 360), ("0.5d", 720)])
def test_a_budget_is_a_time_of_one_core(text: str, minutes: float) -> None:
    assert parse_budget(text) == minutes


def test_an_unreadable_budget_is_refused() -> None:
    with pytest.raises(UserError, match="--budget must be a number with m, h or d, for example 6h; got six"):
        parse_budget("six")


def test_seeds_are_declared_again_and_again_without_another_change(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    before = re.sub(r"(?m)^extra_seeds:.*\n(?:[ \t]+.*\n)*", "extra_seeds: {}\n", shipped)
    path.write_text(before, encoding="utf-8")
    params = declare_extra_seeds({"full": [10, 11]}, path)
    again = declare_extra_seeds({"full": [11, 12], "kernels_333": [10]}, path)
    assert params.extra_seeds == {"full": [10, 11]}
    assert again.extra_seeds == {"full": [10, 11, 12], "kernels_333": [10]}
    after = path.read_text(encoding="utf-8")
    declare_extra_seeds({"full": [10]}, path)
    assert path.read_text(encoding="utf-8") == after
    lines = [line for line in after.splitlines() if line not in before.splitlines()]
    assert lines == ["extra_seeds:", "  full: [10, 11, 12]", "  kernels_333: [10]"]
    plan = read_plan(ROOT / CLAIMS)
    planned = with_extra_seeds(again, plan, {"full": 6})
    assert planned.extra_seeds["full"] == list(plan.confirmatory.seeds[:6])
    assert [run.seed for run in planned.extra_runs() if run.variant == "full"] == list(plan.confirmatory.seeds[:6])


def test_a_refused_declaration_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(UserError, match="extra_seeds"):
        declare_extra_seeds({"no_such_variant": [10]}, path)
    assert path.read_bytes() == before


def simulated(params: Params, runs: Sequence[Run]) -> Evidence:
    """Simulate the evidence of runs: `full` is 1.5 points of mIoU above every other system."""
    images, base = np.arange(40), np.random.default_rng(0).uniform(0.3, 0.7, 40)
    records, rows = [], []
    for run in runs:
        rng = np.random.default_rng([run.seed, len(run.variant)])
        iou = base + 0.015 * (run.variant == "full") + 0.003 * rng.standard_normal() + 0.005 * rng.standard_normal(40)
        settings = params.settings_of(run)
        constant = {"run": str(run), "variant": run.variant, "seed": run.seed, "dataset": "scenes", "scale": "tiny"}
        constant |= {"protocol": "cris", "split": "val", "condition": "sentence", "sentence": "thing", "kind": ""}
        numbers = {"ref_id": images, "sent_id": images, "image_id": images, "target_area": 100, "union": 10000}
        records.append(pd.DataFrame(numbers | {"intersection": (10000 * iou).astype(int)}).assign(**constant))
        known = {"run": str(run), "variant": run.variant, "seed": run.seed, "minutes": 2.0}
        rows.append(dict.fromkeys(RUN_COLUMNS, "") | known | {"settings": json.dumps(settings.model_dump(mode="json"))})
    emphasis = pd.DataFrame(columns=["run", "variant", "seed", "epoch", "layer", "alpha"])
    return Evidence(pd.concat(records)[SCHEMA.names], pd.DataFrame(rows), emphasis)


@pytest.fixture
def claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one claim, looks at 2 and 3 confirmatory seeds, and evidence of the exploratory ones."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    edit_yaml(tmp_path / "params.yaml", extra_seeds={})
    (tmp_path / "studies").mkdir()
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "published.csv", tmp_path / "reports")
    content = yaml.safe_load((ROOT / CLAIMS).read_text())
    content["confirmatory"] = {"seeds": [10, 11, 12], "looks": [2, 3]}
    content["claims"] = [claim for claim in content["claims"] if claim["name"] == "neck_matters"]
    (tmp_path / CLAIMS).write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    params = read_params()
    runs = [Run(name, seed) for name in ("full", "no_neck") for seed in (0, 1)]
    write_part(EvidenceFiles("scenes-tiny", added=True), simulated(params, runs))
    return tmp_path


@pytest.mark.slow
def test_killed_runs_go_on_and_end_with_a_decided_claim(
    claimed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer is a stand-in that is killed once at each look."""
    from wimfris.cli.evidence import compare

    trained: list[list[str]] = []
    kills = [True, False, True, False]

    def train_runs(params: Params, runs: list[Run], jobs: Any, *, dry_run: bool = False) -> tuple[list[Run], list[Any]]:
        if dry_run:
            print("would train", *runs)
            return [], []
        trained.append([str(run) for run in runs])
        if kills.pop(0):
            raise Interrupted(15)
        return runs, []

    def gather(params: Params, runs: Sequence[Run]) -> None:
        known = [Run.parse(name) for name in read_evidence(params).runs["run"]]
        write_part(EvidenceFiles("scenes-tiny", added=True), simulated(params, [*known, *runs]))

    monkeypatch.setattr("wimfris.matrix.local.train_runs", train_runs)
    monkeypatch.setattr("wimfris.results.evidence.gather", gather)
    compare()
    settle(budget="30m", dry_run=True)
    assert "would train full-10 no_neck-10 full-11 no_neck-11 full-12 no_neck-12" in capsys.readouterr().out
    assert read_params().extra_seeds == {} and not Path("reports/registration.yaml").exists()
    settle(budget="1m", run=True)
    assert trained == [], "no run fits this budget"
    for _ in range(2):
        with pytest.raises(Interrupted):
            settle(claims=["neck_matters"], budget="30m", run=True)
    settle("neck_matters", budget="30m", run=True)
    first, second = (["full-10", "no_neck-10", "full-11", "no_neck-11"], ["full-12", "no_neck-12"])
    assert trained == [first, first, second, second], "the second look trains nothing again"
    assert read_params().extra_seeds == {"full": [10, 11, 12], "no_neck": [10, 11, 12]}
    assert set(read_evidence(read_params()).runs["run"]) >= {*first, *second}
    capsys.readouterr()
    settle(run=True)
    assert "no claim is open" in capsys.readouterr().out and len(trained) == 4
    comparisons = pd.read_csv("reports/comparisons/scenes-tiny.csv")
    row = comparisons[comparisons["tier"] == "primary"].iloc[0]
    assert (row["seeds"], row["look"], row["verdict"]) == ("10 11 12", 2, "higher")
