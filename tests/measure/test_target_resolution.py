"""The score of resized targets is below one for small targets, and near one for large ones."""

import numpy as np
import pandas as pd
import pytest

from wimfris.data.rle import encode_segmentation
from wimfris.measure.target_resolution import WAYS, ceiling
from wimfris.settings.params import read_params


def _rows(side: int, extent: int) -> pd.DataFrame:
    box = [[4.0, 4.0, 4.0 + extent, 4.0, 4.0 + extent, 4.0 + extent, 4.0, 4.0 + extent]]
    counts = encode_segmentation(box, side, side)
    return pd.DataFrame([{"height": side, "width": side, "rle_counts": counts, "sentences": ["a", "b"]}])


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
