"""The score of resized targets is below one for small targets, and near one for large ones."""

import numpy as np
import pandas as pd
import pytest

from wimfris.data.rle import encode_segmentation
from wimfris.measure.target_resolution import GUESS, WAYS, ceiling, scores_without_model
from wimfris.settings.params import read_params


def _rows(side: int, extent: int) -> pd.DataFrame:
    box = [[4.0, 4.0, 4.0 + extent, 4.0, 4.0 + extent, 4.0 + extent, 4.0, 4.0 + extent]]
    counts = encode_segmentation(box, side, side)
    row = {
        "height": side,
        "width": side,
        "rle_counts": counts,
        "sentences": ["a", "b"],
        "split": "val",
        "chance_iou": 0.25,
    }
    return pd.DataFrame([row])


@pytest.mark.parametrize(("extent", "low", "high"), [(5, 0.3, 0.95), (40, 0.85, 1.0)])
def test_small_targets_lose_more(extent: int, low: float, high: float) -> None:
    settings = read_params().settings()
    score = ceiling(settings, _rows(settings.data.image_size, extent))
    assert score["n"] == 2
    assert low < score["miou"] < high
    assert np.isclose(score["miou"], score["oiou"])


def test_only_fitted_logits_come_near_a_bound() -> None:
    settings = read_params().settings()
    rows = _rows(settings.data.image_size, 9)
    scores = {way: ceiling(settings, rows, way)["miou"] for way in WAYS}
    assert max(scores, key=lambda way: scores[way]) == "fitted logits" and scores["fitted logits"] > 0.97


def test_scores_without_a_model_name_each_split_and_the_guess() -> None:
    settings = read_params().settings()
    rows = _rows(settings.data.image_size, 9)
    index = pd.concat([rows.assign(split=split) for split in settings.data.splits])
    scores = scores_without_model(settings, index)
    assert list(scores["mask"]) == [GUESS, *WAYS] * len(settings.data.splits)
    assert (scores["n"] == 2).all()
    guesses = scores[scores["mask"] == GUESS]
    assert (guesses["miou"] == 0.25).all() and guesses["oiou"].isna().all()
