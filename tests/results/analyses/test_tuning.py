"""What tuning measured: rows that accumulate, the best trial of a family, and the cost of a recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wimfris.cli.tuning import main
from wimfris.results.analyses import tuning as measured
from wimfris.settings.params import Params, merge, read_params
from wimfris.settings.tuning import flat, nested

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def params() -> Params:
    return read_params(ROOT / "params.yaml")


def row(params: Params, run: str, miou: float, **others: Any) -> dict[str, Any]:
    """Return a row as `measured_row` does."""
    variant, _, seed = run.rpartition("-")
    values = json.dumps(params.tuned[variant][1], sort_keys=True)
    kind, name = (
        ("recipe", variant.removeprefix("recipe_"))
        if variant.startswith("recipe")
        else ("trial", variant.removesuffix("_whole")[5:-3])
    )
    scores = dict.fromkeys(measured.METRICS, miou)
    base = {
        "run": run,
        "seed": int(seed),
        "kind": kind,
        "name": name,
        "values": values,
        **scores,
        "n": 9,
        "settings": measured.settings_digest(params, variant),
    }
    return base | {"minutes": 2.0, "commit": "c", "fingerprint": "f", "device": "d"} | others


def trials(params: Params, family: str, scores: dict[int, float]) -> list[dict[str, Any]]:
    """Return rows of all trials of a family from the first seed: 0.1 where `scores` has none."""
    names = params.tuning.trial_names(family)
    return [row(params, f"{name}-100", scores.get(number, 0.1)) for number, name in enumerate(names)]


def test_rows_accumulate_and_a_new_measurement_replaces_the_old(params: Params, tmp_path: Path) -> None:
    path = tmp_path / "tuning" / "x.csv"
    measured.add_rows(path, trials(params, "lora", {}))
    measured.add_rows(path, [row(params, "tune_lora_03-100", 0.7), row(params, "tune_full_00-100", 0.5)])
    frame = measured.read_tuning(params, path).set_index("run")["miou"]
    assert len(frame) == params.tuning.trials + 1
    assert frame["tune_lora_03-100"] == 0.7 and frame["tune_full_00-100"] == 0.5


def test_settings_that_do_not_reach_a_run_leave_its_row_current(params: Params) -> None:
    """Tuned values of `full`, and more scenes of another split or the controls, change no tuning run of a rival."""
    tiny = {"model": {"mta": {"scale": 0.4}, "msa": {"width": 48}}, "data": {"scenes": {"val": 999}}}
    tiny |= {"evaluate": {"control_images": 9}}
    changed = params.model_copy(update={"scales": merge(params.scales, {"tiny": tiny})})
    for variant in ("tune_lora_03", "tune_none_03"):
        assert measured.settings_digest(changed, variant) == measured.settings_digest(params, variant)
    assert measured.settings_digest(changed, "recipe_averaged_full") != measured.settings_digest(
        params, "recipe_averaged_full"
    )


def test_a_row_of_other_settings_does_not_count(params: Params, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    other = params.model_copy(update={"scales": merge(params.scales, {"tiny": {"train": {"batch_size": 9}}})})
    old = row(other, "tune_lora_03-100", 0.7)
    measured.add_rows(path, [old, row(params, "tune_lora_04-100", 0.5)])
    assert measured.read_tuning(params, path)["run"].tolist() == ["tune_lora_04-100"]


def test_every_committed_row_is_of_the_present_settings(committed: Path) -> None:
    params = read_params(committed / "params.yaml")
    path = measured.tuning_file(params, committed / "reports")
    assert len(measured.read_tuning(params, path)) == len(pd.read_csv(path))


def test_the_best_trials_are_trained_whole_once_all_have_run(params: Params) -> None:
    rows = trials(params, "lora", {5: 0.9, 2: 0.8, 7: 0.7, 3: 0.6})
    best = [5, 2, 7][: params.tuning.best]
    whole = measured.whole_runs(params, ["lora"], pd.DataFrame(rows))
    assert [str(run) for run in whole] == [
        f"tune_lora_{k:02d}_whole-{seed}" for k in best for seed in params.tuning.seeds
    ]
    assert not measured.whole_runs(params, ["lora"], pd.DataFrame(rows[1:]))


def test_the_best_trial_is_the_best_at_full_length_by_its_mean_over_all_seeds(params: Params) -> None:
    """A trial that is best when shortened does not count, nor one that lacks a seed."""
    seeds = (100, 101)
    params = params.model_copy(update={"tuning": params.tuning.model_copy(update={"seeds": list(seeds)})})
    rows = trials(params, "lora", {5: 0.9, 2: 0.8, 7: 0.95})
    rows += [row(params, f"tune_lora_05_whole-{seed}", miou) for seed, miou in zip(seeds, (0.9, 0.1), strict=True)]
    rows += [row(params, f"tune_lora_02_whole-{seed}", 0.7) for seed in seeds]
    rows += [row(params, "tune_lora_07_whole-100", 0.95)]
    best = measured.best_trial(params, "lora", pd.DataFrame(rows))
    assert sorted(best["run"]) == ["tune_lora_02_whole-100", "tune_lora_02_whole-101"]
    cells = measured.families_section(params, pd.DataFrame(rows)).cells.set_index("family")
    assert cells.loc["lora", "best"] == "tune_lora_02_whole" and cells.loc["full", "best"] == "–"
    assert cells.loc["lora", "trials"] == str(params.tuning.trials)


def test_the_table_says_whether_params_yaml_has_the_best_values(params: Params) -> None:
    best = params.tuning.trial_values("lora")[2]
    adopted = params.model_copy(update={"everywhere": merge(params.everywhere, {"lora": nested(best)})})
    assert (
        measured.variant_with(adopted, "lora", best) == "lora" and measured.variant_with(params, "lora", best) is None
    )
    own = {params.scale: {"variants": {"lora_tuned": nested(best)}}}
    declared = params.model_copy(update={"scales": merge(params.scales, own)})
    assert measured.variant_with(declared, "lora", best) == "lora_tuned"


def test_the_cost_of_a_recipe_is_its_variance_times_its_steps(params: Params) -> None:
    """Twice the epochs at a quarter of the variance cost half, whatever the minutes were."""
    spread = {"as_before": 1.0, "averaged_longer": 0.5}
    rows = [
        row(params, f"recipe_{name}_full-{seed}", 0.5 + scale * 0.01 * sign, minutes=float(seed))
        for name, scale in spread.items()
        for seed, sign in zip(params.tuning.recipe.seeds, [-1, 1, -1, 1, -1, 1], strict=True)
    ]
    cells = measured.recipe_section(params, pd.DataFrame(rows)).cells.set_index("candidate")
    assert cells["cost, of the first"][["as_before_full", "averaged_longer_full"]].tolist() == ["1.00", "0.50"]


def test_the_interval_of_a_deviation_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 2, (2000, 6)).std(axis=1, ddof=1)
    inside = [low <= 2 <= high for low, high in (measured.deviation_interval(sd, 6) for sd in samples)]
    assert stats.binomtest(sum(inside), 2000, 0.95).pvalue > 1e-3


def test_flat_is_the_inverse_of_nested() -> None:
    values = {"a.b.c": 1, "a.d": 2, "e": 3}
    assert flat(nested(values)) == values


@pytest.mark.slow
@pytest.mark.parametrize("measured_kinds", ["trials", "recipe", "both"])
def test_the_picture_shows_what_was_measured(params: Params, tmp_path: Path, measured_kinds: str) -> None:
    rows = [one for family in params.tuning.families for one in trials(params, family, {3: 0.5})]
    candidates = [row(params, f"recipe_averaged_full-{seed}", 0.5) for seed in params.tuning.recipe.seeds]
    shown = {"trials": rows, "recipe": candidates, "both": rows + candidates}[measured_kinds]
    measured.draw_tuning(params, pd.DataFrame(shown), tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_command_writes_the_report_of_what_is_measured(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    measured.add_rows(
        measured.tuning_file(params, Path("reports")),
        [row(params, str(run), 0.5 + run.seed / 1e4) for run in measured.recipe_runs(params.tuning)],
    )
    with pytest.raises(SystemExit) as ended:
        main(["--recipe"])  # nothing is left to train
    assert not ended.value.code
    text = Path("reports/tables/scenes-tiny/tuning.md").read_text(encoding="utf-8")
    assert "| averaged\\_longer\\_full |" in text and Path("reports/figures/scenes-tiny/tuning.png").is_file()
