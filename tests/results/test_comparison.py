"""Comparison tables of simulated records: correct numbers, gaps for unknown values, and no mixed runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.comparison import Row, Study
from wimfris.results.comparisons import EXPLORATORY, PRIMARY, Comparisons
from wimfris.results.evidence import EMPHASIS_COLUMNS, Evidence
from wimfris.results.formats import DASH
from wimfris.results.plan import CLAIMS, read_plan
from wimfris.results.published import Figure
from wimfris.results.report.comparison_figure import draw
from wimfris.results.report.comparison_tables import answer, sections
from wimfris.results.report.tables import main_table
from wimfris.results.tiers import compute_comparisons
from wimfris.settings.params import read_params

PUBLISHED = {
    ("T", system, variant, dataset, split, "miou"): Figure(
        "T", system, variant, dataset, split, "miou", value, "somewhere", trust
    )
    for system, variant, dataset, split, value, trust in (
        ("WIMFRIS-B", "whole", "refcoco", "val", 77.3, "medium"),
        ("WIMFRIS-B", "whole", "refcoco", "testA", 79.2, "medium"),
        ("WIMFRIS-B", "part", "refcoco", "val", 75.1, "low"),
        ("RIVAL", "part", "refcoco", "val", 70.0, "high"),
    )
}

STUDY = Study(
    name="parts",
    title="Parts",
    question="Does the part help?",
    paper="Yes.",
    rows=(
        Row("all", "full", ("T", "whole"), block="first"),
        Row("part", "part", ("T", "part"), block="first"),
        Row("other", "other", block="second"),
        Row("part again", "part", block="second"),
        Row("untrained", "untrained", ("T", "nowhere"), block="second"),
    ),
    note="A note of its own.",
)


def records(
    runs: dict[str, int],
    shifts: dict[str, float] | None = None,
    splits: tuple[str, ...] = ("val",),
    dataset: str = "scenes",
    scale: str = "tiny",
    protocol: str = "cris",
    images: int = 40,
) -> pd.DataFrame:
    """Simulate records, variant -> number of seeds: IoUs with little noise, lower by the variant's shift."""
    parts = []
    for split in splits:
        rng = np.random.default_rng(len(split))
        difficulty = rng.uniform(0.3, 0.9, 2 * images)
        for variant, seeds in runs.items():
            for seed in range(seeds):
                iou = difficulty - (shifts or {}).get(variant, 0.0) + 0.02 * rng.normal(size=2 * images)
                count = np.arange(2 * images)
                parts.append(
                    pd.DataFrame(
                        {
                            "run": f"{variant}-{seed}",
                            "variant": variant,
                            "seed": seed,
                            "dataset": dataset,
                            "scale": scale,
                            "protocol": protocol,
                            "split": split,
                            "condition": "sentence",
                            "ref_id": count,
                            "sent_id": count,
                            "image_id": count // 2,
                            "sentence": "a thing",
                            "kind": "",
                            "target_area": 1000,
                            "intersection": (1000 * iou.clip(0, 1)).astype(int),
                            "union": 1000,
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


PLAN = read_plan(Path(__file__).parents[2] / CLAIMS)


def quoted(frame: pd.DataFrame, study: Study = STUDY) -> Comparisons:
    """Return the comparisons of a study, all of them exploratory."""
    pairs = dict.fromkeys(study.pairs, False)
    return compute_comparisons(
        Evidence(frame, pd.DataFrame(), pd.DataFrame(columns=list(EMPHASIS_COLUMNS))), PLAN, pairs, 8
    )


def table_of(frame: pd.DataFrame, split: str = "val", study: Study = STUDY) -> pd.DataFrame:
    return study.table(frame, quoted(frame, study), split, PUBLISHED)


def tables_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    return STUDY.tables(frame, quoted(frame), PUBLISHED)


RUNS = {"full": 3, "part": 3, "other": 2}
SHIFTS = {"part": 0.2}


def test_values_and_differences_are_those_of_the_records() -> None:
    frame = records(RUNS, SHIFTS)
    table = table_of(frame).set_index("label")
    assert list(table.index) == ["all", "part", "other", "part again", "untrained"]
    main = main_table(frame).set_index("system")
    for label, variant in (("all", "full"), ("part", "part"), ("other", "other")):
        for name in ("miou", "miou_sd", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90"):
            assert table.loc[label, name] == pytest.approx(main.loc[variant, name])
        assert table.loc[label, "seeds"] == RUNS[variant] and table.loc[label, "n"] == 80
    comparisons = quoted(frame)
    for metric, prefix in (("miou", ""), ("oiou", "oiou_"), ("pr70", "pr70_")):
        for label in ("part", "other", "part again"):
            expected = comparisons.quote(table.loc[label, "variant"], "full", metric=metric)
            assert expected
            for name in ("difference", "these_low", "these_high", "low", "high", "error"):
                assert table.loc[label, prefix + name] == expected[name], (label, metric, name)
    assert table.loc["part", "verdict"] == "lower" and table.loc["other", "verdict"] == "undecided"
    assert set(table["tier"]) == {"exploratory", ""} and len(comparisons.exploratory) == 2
    assert table.loc["all", "verdict"] == "" and np.isnan(table.loc["all", "difference"])


def test_published_figures_are_beside_ours_with_visible_gaps() -> None:
    table = table_of(records(RUNS, SHIFTS)).set_index("label")
    assert table.loc["all", "published"] == pytest.approx(0.773) and np.isnan(table.loc["all", "published_gain"])
    part = table.loc["part"]
    assert part["published_gain"] == pytest.approx(-0.022) and part["trust"] == "low"
    assert part["difference_of_differences"] == pytest.approx(part["difference"] + 0.022)
    for label in ("other", "part again", "untrained"):
        assert np.isnan(table.loc[label, "published"]) and table.loc[label, "trust"] == ""


def test_a_row_without_runs_is_a_gap() -> None:
    row = table_of(records(RUNS)).set_index("label").loc["untrained"]
    assert pd.isna(row["seeds"]) and pd.isna(row["n"]) and np.isnan(row["miou"]) and np.isnan(row["difference"])


def test_the_built_in_sets_test_splits_have_no_published_counterpart() -> None:
    scenes = records(RUNS, splits=("testA",))
    assert table_of(scenes, "testA")["published"].isna().all()
    natural = records(RUNS, splits=("testA",), dataset="refcoco", scale="base")
    assert table_of(natural, "testA")["published"].tolist()[0] == pytest.approx(0.792)
    other = records(RUNS, dataset="refcoco+", scale="base")
    assert table_of(other, "val")["published"].isna().all()


def test_the_large_model_is_not_shown_beside_figures_of_the_small_one() -> None:
    frame = records(RUNS, dataset="refcoco", scale="large")
    assert table_of(frame, "val")["published"].isna().all()


def test_a_row_may_have_a_baseline_of_its_own() -> None:
    other = Row("base", "part", ("T", "part"), system="RIVAL")
    study = Study("s", "S", "?", "!", (Row("over", "full", ("T", "whole"), against=other), Row("other", "other")))
    assert study.variants == ["full", "other", "part"]
    table = table_of(records(RUNS, SHIFTS), study=study).set_index("label")
    assert list(table["baseline"]) == ["part", "full"]
    assert table.loc["over", "difference"] == pytest.approx(0.2, abs=0.01)
    assert table.loc["over", "published_gain"] == pytest.approx(0.073)


def test_one_seed_gives_no_verdict() -> None:
    table = table_of(records({"full": 1, "part": 1}, SHIFTS)).set_index("label")
    assert table.loc["part", "verdict"] == "" and np.isnan(table.loc["part", "low"])
    (section, *_) = sections(STUDY, [table.reset_index()])
    assert "no interval for any seed and no verdict" in section.foot
    assert answer(table.assign(tier=EXPLORATORY).reset_index()).endswith(
        "No verdict, because a system has one seed: part (first); part again (second)."
    )


def test_before_the_first_look_no_power_is_stated() -> None:
    table = table_of(records(RUNS, SHIFTS)).assign(tier=PRIMARY, verdict="undecided")
    (early, *_), (late, *_) = (sections(STUDY, [table.assign(look=look)]) for look in (0, 1))
    assert "Primary intervals before the first look: level" in early.foot and "decide nothing" in early.foot
    assert "separate" not in early.foot and "which separate a true difference of" in late.foot


def test_the_rows_do_not_depend_on_the_order_of_the_records() -> None:
    frame = records(RUNS, SHIFTS)
    pd.testing.assert_frame_equal(table_of(frame.sample(frac=1, random_state=0)), table_of(frame))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": "other"}, r"protocols 'cris' \(run full-0\) and 'other' \(run part-0\)"),
        ({"images": 39}, r"run part-0 \(78 sentences\) was not evaluated on the sentences of run full-0 \(80\)"),
        ({"dataset": "refcoco"}, r"data sets 'refcoco' \(run part-0\) and 'scenes' \(run full-0\)"),
        ({"scale": "base"}, r"scales 'base' \(run part-0\) and 'tiny' \(run full-0\)"),
    ],
)
def test_a_table_does_not_mix(other: dict, message: str) -> None:
    frame = pd.concat([records({"full": 1}), records({"part": 1}, **other)])
    with pytest.raises(UserError, match=message):
        table_of(frame)


def test_without_the_baseline_there_is_no_table() -> None:
    with pytest.raises(UserError, match=r"study parts, split val: no evidence of full"):
        table_of(records({"part": 2}))
    with pytest.raises(UserError, match=r"split testB: no evidence of full"):
        table_of(records(RUNS), "testB")


def test_every_split_is_a_table_of_its_own() -> None:
    frame = records(RUNS, SHIFTS, splits=("testB", "val", "testA"))
    tables = tables_of(frame)
    assert [table["split"].iloc[0] for table in tables] == ["val", "testA", "testB"]
    shown = sections(STUDY, tables)
    assert [section.title for section in shown] == [
        f"{name}: scenes, scale tiny, protocol cris, split {split}, seeds 0, 1, 2 (some rows 0, 1)"
        for name, split in (
            ("Parts", "val"),
            ("Parts, against the paper", "val"),
            ("Parts", "testA"),
            ("Parts", "testB"),
        )
    ]
    assert sum(map(len, tables)) == 15


def test_sections_state_their_scope_and_show_gaps_as_dashes() -> None:
    main, paper = sections(STUDY, tables_of(records(RUNS, SHIFTS)))
    for section in (main, paper):
        assert section.guide and "they say nothing about the figures in the paper" in section.note
    assert main.note.startswith("Baseline: full. A note of its own.") and "are of refcoco val." in paper.note
    assert main.foot.startswith("Exploratory intervals: level 97.50%, which separate")
    rows = main.cells.set_index("row")
    assert set(rows.loc["untrained"]) == {"second", DASH}
    assert (
        float(rows.loc["part", "diff"]) == pytest.approx(-20, abs=0.5) and rows.loc["other", "verdict"] == "undecided"
    )
    beside = paper.cells.set_index("row")
    assert list(beside.index) == ["all", "part"]  # the second block has no published figure at all
    assert beside.loc["part", "paper"] == "75.1?" and beside.loc["part", "paper's gain"] == "-2.2?"
    assert beside.loc["all", "paper's gain"] == DASH and beside.loc["part", "trust"] == "low"


def test_natural_data_carry_no_caveat() -> None:
    frame = records(RUNS, SHIFTS, dataset="refcoco", scale="base")
    for section in sections(STUDY, tables_of(frame)):
        assert "built-in" not in section.note and "figures are of" not in section.note


def test_rows_that_mean_nothing_at_a_scale_are_left_out() -> None:
    params = read_params(Path(__file__).parents[2] / "params.yaml")
    tiny, small = params.at_scale("tiny"), params.at_scale("small")
    study = Study("w", "W", "?", "!", (Row("4x4", "full"), Row("8x8", "window_8", grids=range(9, 100))))
    here = study.at(tiny)
    assert here.variants == ["full"] and here.note == "A grid of 8 x 8 has no row 8x8."
    assert study.at(small) is study
    study = Study("r", "R", "?", "!", (Row("LoRA", "lora"), Row("LoRA", "lora_tuned", block="tuned")))
    here = study.at(small)
    assert study.at(tiny) is study and here.variants == ["full", "lora"]
    assert here.note == 'Scale small has no row of "tuned".'


def test_a_grid_shows_every_block_by_label() -> None:
    rows = (Row("x", "full", block="a"), Row("y", "part", block="a"), Row("x", "other", block="b"))
    study = Study("g", "G", "?", "!", rows, grid=True)
    table = table_of(records(RUNS, SHIFTS), study=study)
    _, grid = sections(study, [table])
    cells = grid.cells.set_index("block of rows")
    assert list(cells.columns) == ["x", "y"] and cells.loc["b", "y"] == DASH
    assert cells.loc["a", "x"] == f"{100 * table['miou'][0]:.1f} ± {100 * table['miou_sd'][0]:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("runs", [RUNS, {"full": 1, "part": 1}, {"full": 1}])
def test_the_figure_is_drawn_for_any_number_of_runs(runs: dict[str, int], tmp_path: Path) -> None:
    frame = records(runs, SHIFTS)
    for name in ("one.png", "two.png"):
        draw(table_of(frame), frame, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_comparisons_of_other_runs_are_refused() -> None:
    """A study never shows the difference of other seeds, or of runs trained again, beside its mIoU."""
    frame, pairs, seeds = records(RUNS, SHIFTS), STUDY.pairs, (0, 1, 2)
    comparisons = quoted(frame)
    assert comparisons.for_study(frame, pairs, seeds).frame.equals(comparisons.frame)
    later = frame.assign(seed=frame["seed"] + 10, run="later")
    assert comparisons.for_study(pd.concat([frame, later]), pairs, seeds).frame.equals(comparisons.frame)
    for other in (frame[frame["run"] != "part-2"], records(RUNS, {"part": 0.1})):
        with pytest.raises(UserError, match="other runs of part than the evidence holds now; run `wimfris compare`"):
            comparisons.for_study(other, pairs, seeds)
