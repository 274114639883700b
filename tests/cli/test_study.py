"""The runner of studies: what it trains, what it writes, what it refuses, and that params.yaml is left as it was."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from wimfris.matrix.repro import Failed

import wimfris.cli.study
from wimfris.cli.study import main, scale_set
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.comparison import Row, Study
from wimfris.results.evidence import current
from wimfris.runs.records import write_records
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

ROOT = Path(__file__).parents[2]
STUDY = Study(
    name="neckless",
    title="Neckless",
    question="Does the neck help?",
    paper="It does.",
    rows=(Row("with", "full", ("T3a", "window 4x4")), Row("without", "no_neck"), Row("LoRA", "lora")),
)
RUNS = ["full-0", "full-1", "full-2", "no_neck-0", "no_neck-1", "no_neck-2", "lora-0", "lora-1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "reports/published.csv", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave(params: Params, run: str) -> None:
    """The records that a run leaves."""
    variant, seed = run.rsplit("-", 1)
    settings = params.settings(variant)
    rng, count = np.random.default_rng(0), np.arange(60)
    iou = np.clip(rng.uniform(0.3, 0.9, 60) - 0.1 * (variant != "full") + 0.01 * int(seed), 0, 1)
    frame = {
        "run": run,
        "variant": variant,
        "seed": int(seed),
        "dataset": settings.data.name,
        "scale": settings.scale,
        "protocol": "cris",
        "split": np.where(count < 40, "val", "testA"),
        "condition": "sentence",
        "ref_id": count,
        "sent_id": count,
        "image_id": count // 2,
        "sentence": "a thing",
        "kind": "",
        "target_area": 1000,
        "intersection": (1000 * iou).astype(int),
        "union": 1000,
    }
    write_records(pd.DataFrame(frame), settings.outs / "records" / f"{run}.parquet")


class Matrix:
    """In the place of `run_matrix`: leaves the records of all runs but those that fail, and notes what it saw."""

    def __init__(self, *fails: str) -> None:
        self.fails, self.calls = fails, []

    def __call__(self, params: Params, runs: list[str], jobs: int, *, dry_run: bool = False) -> list[Failed]:
        self.calls.append((list(runs), jobs, dry_run, read_params().scale))
        if dry_run:
            return []
        for run in runs:
            if run not in self.fails:
                leave(params, run)
        return [Failed(run, "exit code 1", Path("log")) for run in self.fails]


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Matrix:
    found = Matrix()
    monkeypatch.setattr("wimfris.matrix.local.run_matrix", found)
    return found


def ran(*arguments: str, study: Study = STUDY) -> int:
    with pytest.raises(SystemExit) as ended:
        main(study, arguments)
    return int(ended.value.code or 0)


def test_it_trains_its_runs_and_writes_what_it_says(folder: Path, matrix: Matrix, capsys) -> None:
    assert ran("--jobs", "2") == 0
    assert matrix.calls == [(RUNS, 2, False, "tiny")]
    out = capsys.readouterr().out
    for path in (
        *(f"reports/tables/scenes-tiny/neckless.{suffix}" for suffix in ("md", "csv", "tex")),
        "reports/figures/scenes-tiny/neckless.png",
    ):
        assert (folder / path).is_file() and path in out
    assert "without" in out and "undecided" in out and "split testA" not in out
    markdown = (folder / "reports/tables/scenes-tiny/neckless.md").read_text()
    assert "![Neckless](../../figures/scenes-tiny/neckless.png)" in markdown and "split testA" in markdown
    assert markdown.index("Does the neck help?") < markdown.index("split val") < markdown.index("split testA")
    table = pd.read_csv(folder / "reports/tables/scenes-tiny/neckless.csv")
    assert list(table["split"]) == ["val"] * 3 + ["testA"] * 3
    assert {"oiou_any_low", "pr70_these_high", "pr60", "pr80"} <= set(table.columns)


def test_seeds_narrow_the_runs(folder: Path, matrix: Matrix) -> None:
    assert ran("--seeds", "0,1", "--jobs", "1") == 0
    assert matrix.calls[0][0] == [run for run in RUNS if not run.endswith("2")]


def test_runs_that_fail_leave_a_gap_and_exit_code_1(folder: Path, matrix: Matrix, capsys) -> None:
    matrix.fails = ("lora-0", "lora-1")
    assert ran("--jobs", "1") == 1
    assert "2 runs of neckless failed" in capsys.readouterr().err
    table = pd.read_csv(folder / "reports/tables/scenes-tiny/neckless.csv")
    assert table.set_index("label").loc["LoRA", "miou"].isna().all()


def test_without_the_baseline_a_failure_is_still_a_failure(folder: Path, matrix: Matrix, capsys) -> None:
    matrix.fails = ("full-0", "full-1", "full-2")
    assert ran("--jobs", "1") == 1
    assert "no table: " in capsys.readouterr().err


def test_no_train_makes_tables_of_what_is_there(folder: Path, matrix: Matrix, capsys) -> None:
    for run in RUNS:
        leave(read_params(), run)
    assert ran("--no-train") == 0 and not matrix.calls
    Path("runs/scenes-tiny/records/no_neck-1.parquet").unlink()
    capsys.readouterr()
    assert ran("--no-train") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_gaps_leave_rows_without_runs_open(folder: Path, matrix: Matrix, capsys) -> None:
    """Also those of variants that params.yaml does not have."""
    for run in RUNS[:6]:
        leave(read_params(), run)
    rows = (*STUDY.rows, Row("gone", "unheard_of"))
    study = Study("neckless", "Neckless", "?", "!", rows)
    assert ran("--no-train", "--gaps", study=study) == 0 and not matrix.calls
    assert "left open, without records: lora-0, lora-1" in capsys.readouterr().err
    table = pd.read_csv("reports/tables/scenes-tiny/neckless.csv")
    of_val = table[table["split"] == "val"].set_index("label")["miou"]
    assert of_val[["with", "without"]].notna().all() and of_val[["LoRA", "gone"]].isna().all()


def test_no_train_takes_what_is_missing_from_the_evidence(folder: Path, matrix: Matrix) -> None:
    for run in RUNS:
        leave(read_params(), run)
    assert ran("--no-train") == 0
    expected = Path("reports/tables/scenes-tiny/neckless.csv").read_bytes()
    kept = Path("reports/records")
    for part, where in (("", "records"), ("-extended", "extended/records")):
        paths = sorted(Path("runs/scenes-tiny", where).glob("*.parquet"))
        write_records(pd.concat(map(pd.read_parquet, paths)), kept / f"scenes-tiny{part}.parquet")
    for path in ("records/full-1.parquet", "records/no_neck-0.parquet", "extended/records/lora-1.parquet"):
        Path("runs/scenes-tiny", path).unlink()
    assert ran("--no-train") == 0
    assert Path("reports/tables/scenes-tiny/neckless.csv").read_bytes() == expected


def test_runs_of_other_settings_are_no_evidence(folder: Path, matrix: Matrix, capsys) -> None:
    """Whoever edits a number and trains the core alone must not see it beside runs of the number before."""
    params = read_params()
    for run in RUNS:
        leave(params, run)
        settings = params.settings_of(Run.parse(run))
        told = settings.model_dump(mode="json")
        if run == "lora-1":
            told["train"]["epochs"] += 1
        write_text(settings.outs / "manifests" / f"{run}.json", json.dumps({"settings": told}))
    assert ran("--no-train", "--gaps") == 0
    assert "left out, trained with other settings than params.yaml has now: lora-1\n" in capsys.readouterr().err
    table = pd.read_csv("reports/tables/scenes-tiny/neckless.csv").set_index(["split", "label"])
    assert table.loc[("val", "LoRA"), "seeds"] == 1 and table.loc[("val", "without"), "seeds"] == 3
    records = pd.concat(map(pd.read_parquet, Path("runs/scenes-tiny").rglob("*.parquet")))
    assert set(records["run"]) - set(current(params, records)["run"]) == {"lora-1"}
    assert set(current(params, records.replace("no_neck-1", "gone-1"))["run"]) == set(RUNS) - {"lora-1", "no_neck-1"}


def test_dry_run_only_tells(folder: Path, matrix: Matrix, capsys) -> None:
    assert ran("--dry-run", "--jobs", "2") == 0
    assert matrix.calls == [(RUNS, 2, True, "tiny")]
    before = Path("params.yaml").read_bytes()
    assert ran("--dry-run", "--scale", "smoke", "--jobs", "2") == 0
    assert Path("params.yaml").read_bytes() == before and len(matrix.calls) == 1
    assert "8 of 8 runs are missing at scale smoke" in capsys.readouterr().out
    assert not Path("reports/tables").exists()


def test_another_scale_is_set_while_it_trains_and_put_back(folder: Path, matrix: Matrix, capsys) -> None:
    before = Path("params.yaml").read_bytes()
    assert ran("--scale", "smoke", "--jobs", "1") == 0
    assert matrix.calls[0][3] == "smoke"
    assert "scale tiny -> smoke while the study trains" in capsys.readouterr().err
    assert Path("params.yaml").read_bytes() == before
    assert Path("reports/tables/scenes-smoke/neckless.md").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, UserError, ValueError])
def test_the_scale_is_put_back_however_it_ends(error: type[BaseException], folder: Path) -> None:
    before = Path("params.yaml").read_bytes()

    def interrupted() -> None:
        with scale_set("smoke", "tiny"):
            assert read_params().scale == "smoke"
            raise error

    with pytest.raises(error):
        interrupted()
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scale", "huge"], "scale must be one of "),
        (["--seeds", "7"], "--seeds 7: not in params.yaml; there are: 0, 1, 2"),
        (["--seeds", "one"], "--seeds one: whole numbers"),
        (["--no-train"], "no records of full-0, full-1"),
        (["--gaps"], "--gaps: goes with --no-train"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, told: str, folder: Path, matrix: Matrix, capsys) -> None:
    assert ran(*arguments) == 2
    err = capsys.readouterr().err
    assert told in err and err.startswith("wimfris: ") and err.count("\n") == 1
    assert not matrix.calls


def test_a_variant_that_params_does_not_have_is_refused(folder: Path, matrix: Matrix, capsys) -> None:
    assert ran(study=Study("s", "S", "?", "!", (Row("a", "full"), Row("b", "unheard_of")))) == 2
    assert "no variant 'unheard_of'" in capsys.readouterr().err and not matrix.calls


def test_trained_parameters_are_shown_where_asked_for(folder: Path, matrix: Matrix) -> None:
    rows = (Row("full", "full"), Row("frozen", "none"), Row("LoRA", "lora"))
    assert ran("--jobs", "1", study=Study("sizes", "Sizes", "?", "!", rows, parameters=True)) == 0
    table = pd.read_csv("reports/tables/scenes-tiny/sizes.csv")
    counts = table[table["split"] == "val"].set_index("label")["parameters"]
    assert counts["frozen"] < counts["LoRA"] and counts["LoRA"] == pytest.approx(counts["full"], rel=0.05)


def test_the_paper_table_shows_published_figures_and_gaps(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("comparison", ROOT / "studies/comparison.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params = read_params()
    for dataset, scale in (("scenes", "tiny"), ("refcoco", "base")):
        data = params.data | {"name": dataset}
        leave(params.model_copy(update={"scale": scale, "data": data}), "full-0")
    records = wimfris.cli.study.everything(["full"])
    assert set(records["dataset"]) == {"scenes", "refcoco"}
    cells = module.table_2(records, wimfris.cli.study.read_published()).cells.set_index(["system", "figures"])
    assert cells.loc[("DETRIS-B", "released"), "refcoco val"] == "76.0 / 74.3"
    assert cells.loc[("WIMFRIS-B", "paper"), "refcoco val"] == "77.3 / –"
    assert cells.loc[("WIMFRIS-B", "ours"), "refcoco testB"] == "–"
    assert cells.loc[("WIMFRIS-B", "ours"), "refcoco val"] not in ("–", "77.3 / –")
    assert set(cells.loc[("WIMFRIS-L", "ours")]) == {"–"}
    built_in = module.table_2(records[records["dataset"] == "scenes"], wimfris.cli.study.read_published()).cells
    assert set(built_in[built_in["figures"] == "ours"]["refcoco val"]) == {"–"}
