"""The gallery shows sentences of a run at stated quantiles of IoU."""

from typing import Any

import numpy as np
import pytest

from wimfris.data.index import read_index
from wimfris.data.source import source_images
from wimfris.measure.gallery import gallery_examples
from wimfris.metrics import ious
from wimfris.results.figures import QUANTILES
from wimfris.runs.records import read_records

pytestmark = pytest.mark.slow


def test_every_row_of_the_gallery_lies_at_its_quantile(trained: Any) -> None:
    settings = trained.params().settings()
    records = read_records(trained.files().records)
    index = read_index(trained.runs / "index" / "index.parquet")
    examples = gallery_examples(settings, "full-0", records, index, source_images(settings), "val", count=2)
    assert [example.label for example in examples] == [label for label in QUANTILES for _ in range(2)]
    scores = [example.iou for example in examples]
    assert scores == sorted(scores, reverse=True)
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    everything = np.sort(ious(own["intersection"].to_numpy(), own["union"].to_numpy()))
    for example in examples:
        place = QUANTILES[example.label] * (len(everything) - 1)
        low, high = (everything[np.clip(round(place) + step, 0, len(everything) - 1)] for step in (-2, 2))
        assert low <= example.iou <= high
        area = (example.prediction & example.target).sum(), (example.prediction | example.target).sum()
        assert ious([area[0]], [area[1]])[0] == pytest.approx(example.iou, abs=0.05)
        assert example.image.shape[:2] == example.target.shape
    assert min(scores) == everything[0]
