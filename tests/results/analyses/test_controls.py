"""Controls: planted damage is detected as often as the power says, and a function is not separated from itself."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wimfris.results.analyses.controls import (
    HALVES,
    NETWORKS,
    SEEDS,
    VARIANTS,
    damage_table,
    halved,
    rates_table,
    same_function_table,
)
from wimfris.results.comparisons import Comparisons, rows_frame
from wimfris.results.plan import CLAIMS, read_plan
from wimfris.results.scores import Scores
from wimfris.results.studies import control_pairs
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[3]
PLAN = read_plan(ROOT / CLAIMS)
IMAGES, SENTENCES = 60, 3


def scores(systems: int, seeds: int, scatter: float = 0.01, seed: int = 0) -> Scores:
    """Simulate systems of one function: the same images, and normal effects of seed and seed x sentence."""
    rng = np.random.default_rng(seed)
    shape = (systems, seeds, IMAGES * SENTENCES)
    iou = 0.6 + 0.1 * rng.standard_normal(shape[2]) + scatter * rng.standard_normal((*shape[:2], 1))
    iou = iou + 0.02 * rng.standard_normal(shape)
    starts = np.arange(0, shape[2], SENTENCES)
    return Scores(np.ones(shape[:2], dtype=bool), np.arange(seeds), iou, iou, np.ones(shape), starts)


def test_the_pairs_are_the_controls_of_params() -> None:
    params = read_params(ROOT / "params.yaml")
    pairs = control_pairs(params)
    assert set(pairs) == {(name, control["same_as"]) for name, control in params.controls.items()}


@pytest.mark.slow
def test_damage_is_detected_as_often_as_the_power_says() -> None:
    table = damage_table(scores(20, 6), PLAN, [0.01, 0.02, 0.04]).set_index(["test", "size"])
    assert list(table.index.get_level_values("size").unique()) == [0.0, 0.01, 0.02, 0.04]
    for (_, size), row in table.iterrows():
        assert row["difference"] == pytest.approx(-size, abs=0.001), "the planted damage has its size"
        caution = 0.08 if row["seeds"] < 6 else 0.05  # few seeds are covered more than their level
        assert -caution < row["detected"] - row["expected"] < 0.03
        assert row["wrong"] <= row["error"] and (row["detected"] <= row["error"] + 0.02 or size > 0)
        assert row["expected"] == pytest.approx(row["error"], abs=1e-3) or size > 0
    last = table.loc["claim, last look"]
    assert last["detected"].is_monotonic_increasing and last.loc[0.04, "detected"] > 0.9


def test_nothing_can_be_planted_without_two_seeds_of_a_system() -> None:
    assert damage_table(scores(3, 1), PLAN, [0.01]).empty


def test_halves_of_one_function_are_separated_as_often_as_the_level_allows() -> None:
    """About 5% of many functions with many seeds. A second run with the same seed does not count."""
    many = scores(30, 8)
    shares = halved(many, [[place] for place in range(30)])
    assert len(shares) == 30 and np.mean(shares) == pytest.approx(0.05, abs=0.03)
    assert halved(scores(4, 3), [[0], [1], [2, 3]]) == []
    doubled = halved(many, [[0, 1]])
    assert doubled == halved(many, [[0]]) and (np.array(doubled) * HALVES % 1 == 0).all()


def test_rates_have_the_binomial_interval() -> None:
    separated = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.nan]
    rates = rates_table(pd.DataFrame({"kind": [VARIANTS] * 11, "separated": separated}), []).set_index("kind")
    row = rates.loc[VARIANTS]
    assert (row["comparisons"], row["separated"], row["share"]) == (10, 1, 0.1)
    assert (row["low"], row["high"]) == (pytest.approx(0.00253, abs=1e-5), pytest.approx(0.44502, abs=1e-5))
    assert rates.loc[NETWORKS, "comparisons"] == 0 and np.isnan(rates.loc[SEEDS, "share"])


def test_a_pair_without_runs_is_left_out() -> None:
    assert same_function_table(pd.DataFrame(), Comparisons(rows_frame([])), [("a", "b")]).empty
