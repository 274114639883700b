"""mIoU, oIoU and precision: golden numbers, thresholds and bounds."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wimfris.metrics import NO_TARGET_PIXELS, PRECISION_THRESHOLDS, ious, summarise, summarise_generalised

GOLDEN = Path(__file__).parent / "golden" / "protocol.npz"
# The golden IoUs add this to the union, to avoid division by 0.
GOLDEN_EPSILON = 1e-6

AREAS = st.lists(
    st.integers(0, 10_000).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union))),
    min_size=1,
    max_size=50,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {key.removeprefix("areas/"): file[key] for key in file.files if key.startswith("areas/")}


def test_the_golden_numbers_are_reproduced(golden: dict[str, np.ndarray]) -> None:
    intersection, union = golden["intersection"], golden["union"]
    assert (union == 0).sum() == 3
    assert np.array_equal(ious(intersection, union + GOLDEN_EPSILON), golden["iou"])
    assert np.allclose(ious(intersection, union), golden["iou"], rtol=0, atol=1e-8)
    summary = summarise(intersection, union)
    assert summary["n"] == 500
    assert summary["miou"] == pytest.approx(float(golden["miou"]), abs=1e-8)
    assert summary["oiou"] == float(golden["oiou"])
    for threshold in PRECISION_THRESHOLDS:
        assert summary[f"pr{round(100 * threshold)}"] == float(golden[f"precision@{threshold}"])


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
@pytest.mark.parametrize("union", [10, 70, 12_340])
def test_an_iou_on_the_threshold_does_not_pass(tenths: int, union: int) -> None:
    # So it is in the golden numbers, whose epsilon puts such a case below the threshold.
    exactly = tenths * union // 10
    assert summarise([exactly, exactly + 1], [union, union])[f"pr{tenths}0"] == 0.5


def test_an_empty_union_is_zero_and_counts() -> None:
    summary = summarise([0, 8], [0, 10])
    assert summary["miou"] == pytest.approx(0.4)
    assert summary["oiou"] == 0.8
    assert summary["pr50"] == 0.5
    assert summarise([0], [0])["oiou"] == 0.0


@given(AREAS, st.randoms())
def test_the_order_of_the_cases_does_not_matter_and_bounds_hold(areas: list[tuple[int, int]], random: object) -> None:
    intersection, union = np.array(areas).T
    summary = summarise(intersection, union)
    order = np.argsort([random.random() for _ in areas])  # type: ignore[attr-defined]
    assert summarise(intersection[order], union[order]) == pytest.approx(summary)
    precision = [summary[f"pr{t}"] for t in (50, 60, 70, 80, 90)]
    assert precision == sorted(precision, reverse=True)
    scores = ious(intersection, union)
    assert scores.min() - 1e-12 <= summary["miou"] <= scores.max() + 1e-12
    assert 0 <= summary["oiou"] <= 1


@given(AREAS)
def test_miou_and_oiou_of_one_case_are_equal(areas: list[tuple[int, int]]) -> None:
    for inside, around in areas:
        one = summarise([inside], [around])
        assert one["miou"] == one["oiou"]
        assert one["n"] == 1


def test_impossible_areas_are_refused() -> None:
    with pytest.raises(ValueError, match="no cases"):
        summarise([], [])
    with pytest.raises(ValueError, match="at most its union"):
        ious([3], [2])
    with pytest.raises(ValueError, match="one length"):
        ious([1, 2], [2])


def test_sentences_without_a_target_are_scored_as_in_gres() -> None:
    """Each line: (intersection, union, target), whose prediction has union + intersection - target pixels."""
    hit, missed, silent = (60, 100, 80), (0, 160, 80), (20, 100, 100)  # the last predicts 20 pixels
    quiet, wrong = (0, 49, 0), (0, NO_TARGET_PIXELS, 0)
    cases = np.array([hit, missed, silent, quiet, wrong])
    scores = summarise_generalised(*cases.T)
    assert scores["giou"] == pytest.approx((0.6 + 0 + 0 + 1 + 0) / 5)
    assert scores["ciou"] == pytest.approx((60 + 0 + 0) / (100 + 160 + 100 + 0 + 50))
    assert scores["n_acc"] == 0.5 and scores["t_acc"] == pytest.approx(2 / 3)
    assert np.isnan(summarise_generalised(*cases[:3].T)["n_acc"]) and np.isnan(
        summarise_generalised(*cases[3:].T)["t_acc"]
    )


def test_gres_measures_are_the_usual_ones_where_every_target_is_predicted() -> None:
    inside, around, target = np.array([60, 70]), np.array([100, 200]), np.array([80, 90])
    usual, scores = summarise(inside, around), summarise_generalised(inside, around, target)
    assert scores["giou"] == pytest.approx(usual["miou"]) and scores["ciou"] == pytest.approx(usual["oiou"])
    assert scores["t_acc"] == 1
