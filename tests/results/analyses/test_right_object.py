"""Wrong object or bad mask: the planted shares and IoUs come back, and records of earlier versions show nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wimfris.results.analyses.right_object import draw, objects_table, sections
from wimfris.results.differences import compare
from wimfris.results.report.tables import main_cells, main_table
from wimfris.results.scores import of_objects
from wimfris.runs.records import NO_SEED, OBJECT_COLUMNS

IMAGES = 40


def run(name: str, seed: int, every: int) -> pd.DataFrame:
    """Simulate one run: of every `every`-th sentence the object is wrong and the IoU 0, else the IoU is 0.8."""
    image = np.arange(IMAGES)
    right = image % every != 0
    return pd.DataFrame(
        {
            "run": f"{name}-{seed}" if seed != NO_SEED else name,
            "variant": name,
            "seed": seed,
            "dataset": "scenes",
            "scale": "tiny",
            "protocol": "cris",
            "split": "val",
            "condition": "sentence",
            "ref_id": image,
            "sent_id": image,
            "image_id": image,
            "sentence": "x",
            "kind": np.where(image < 20, "attribute", "relation"),
            "target_area": 9,
            "intersection": np.where(right, 8, 0),
            "union": 10,
            "best_object": np.where(right, image, -1),
            "best_iou": np.where(right, 0.8, 0.0),
            "right_object": right,
            "distractors": image % 3,
        }
    )


@pytest.fixture
def records() -> pd.DataFrame:
    return pd.concat([run("full", 0, 4), run("full", 1, 4), run("other", NO_SEED, 2)], ignore_index=True)


@pytest.fixture
def labels() -> pd.DataFrame:
    image = np.arange(IMAGES)
    return pd.DataFrame({"split": "val", "ref_id": image, "sent_id": image, "share": 0.01})


def test_shares_and_ious_are_the_planted_ones(records: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path) -> None:
    table = objects_table(records, labels, ["full", "other"], resamples=200)
    assert set(table["stratum"]) == {"all", "kind", "distractors"}  # all targets have one size
    overall = table[table["stratum"] == "all"].set_index("system")
    assert overall["right"].to_dict() == pytest.approx({"full": 0.75, "other": 0.5})
    assert overall["iou_right"].to_dict() == pytest.approx({"full": 0.8, "other": 0.8})
    assert overall.loc["full", "miou"] == pytest.approx(0.75 * 0.8)
    assert (overall["right_low"] < overall["right"]).all() and (overall["right"] < overall["right_high"]).all()
    (section,) = sections(table, {"full": "ours"})
    assert {"ours", "other"} <= set(section.cells["system"])
    assert "nan" not in section.cells.to_string().lower()
    draw(table, {"full": "ours"}, tmp_path / "objects.png")
    assert (tmp_path / "objects.png").stat().st_size > 10_000


def test_the_share_can_be_compared(records: pd.DataFrame) -> None:
    worse = pd.concat([run("worse", seed, 2) for seed in (0, 1)])
    rows = compare(pd.concat([records, worse]), [("worse", "full")], "val", resamples=200)
    differences = {row.metric: row.any_seed.difference for row in rows}
    assert differences["right"] == pytest.approx(-0.25) and differences["iou_right"] == pytest.approx(0)


def test_records_of_earlier_versions_stay_right(records: pd.DataFrame, labels: pd.DataFrame) -> None:
    old = records.drop(columns=list(OBJECT_COLUMNS))
    assert of_objects(old) == {} and objects_table(old, labels, ["full"]).empty
    assert "right" not in main_table(old) and "right object" not in main_cells(main_table(old))
    mixed = pd.concat([records[records["variant"] == "full"], old[old["variant"] == "other"]], ignore_index=True)
    cells = main_cells(main_table(mixed)).set_index("system")
    assert cells.loc["full", "right object"] == "75.0" and cells.loc["other", "right object"] == ""
    assert set(objects_table(mixed, labels, ["full", "other"], resamples=50)["system"]) == {"full"}
