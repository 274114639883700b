"""The gallery shows good, median and worst predictions of a run."""

from typing import Any

import pytest

from wimfris.data.index import read_index
from wimfris.data.source import source_images
from wimfris.measure.gallery import gallery_examples
from wimfris.metrics import ious
from wimfris.runs.records import read_records

pytestmark = pytest.mark.slow


def test_gallery_shows_good_median_and_worst(trained: Any) -> None:
    settings = trained.params().settings()
    records = read_records(trained.files().records)
    index = read_index(trained.runs / "index" / "index.parquet")
    examples = gallery_examples(settings, "full-0", records, index, source_images(settings), "val", count=2)
    assert [example.label for example in examples] == ["good", "good", "median", "median", "worst", "worst"]
    scores = [example.iou for example in examples]
    assert scores == sorted(scores, reverse=True)
    for example in examples:
        area = (example.prediction & example.target).sum(), (example.prediction | example.target).sum()
        assert ious([area[0]], [area[1]])[0] == pytest.approx(example.iou, abs=0.05)
        assert example.image.shape[:2] == example.target.shape
