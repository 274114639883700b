"""`wimfris measure decay`: what a scan reads, and the files that the study is made of."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from wimfris.data.index import read_index
from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.measure import decay
from wimfris.measure.decay import block_inputs, measure_decay, measure_scan, reach_curve, untrained
from wimfris.measure.text_reach import directions, text_reach
from wimfris.results.analyses.decay import decay_report
from wimfris.results.measured import Inputs, read_measure
from wimfris.settings.run import Run

pytestmark = pytest.mark.slow


def test_a_window_bounds_what_the_block_reads(project: Any) -> None:
    """The sequences are those of the windows, text token first and normalised; the same images each time."""
    settings = project.params().settings("window_2")
    rows = read_index(settings.folder / "index" / "index.parquet")
    read = [
        block_inputs(untrained(settings, 0), settings, rows, source_images(settings), count=4, most=10) for _ in "12"
    ]
    assert read[0].shape == (10, 5, settings.model.hmf.width) and torch.equal(*read)
    assert torch.allclose(read[0].mean(dim=-1), torch.zeros(10, 5), atol=1e-5)
    frame = reach_curve(text_reach(untrained(settings, 0).neck.fusion.mamba, read[0], directions(16, 16)))
    assert list(frame["t"]) == [1, 2, 3, 4] and frame["share"].iloc[0] == pytest.approx(1)
    assert (frame["low"] <= frame["high"]).all() and frame["bound"].notna().sum() == 1


def test_the_study_shows_rates_where_there_is_something_to_fit(project: Any, tmp_path: Path) -> None:
    params = project.params()
    settings = params.settings()
    rows, images = read_index(settings.folder / "index" / "index.parquet"), source_images(settings)
    summaries, curves = [], []
    for run in map(Run.parse, ("window_2-0", "full-0", "full-1")):
        settings = params.settings(run.variant)
        segmenter = untrained(settings, run.seed)
        row, curve = measure_scan(segmenter, block_inputs(segmenter, settings, rows, images, 8, 16))
        key: dict[str, Any] = {"variant": run.variant, "scan": "untrained", "seed": run.seed}
        summaries.append(key | row)
        curves.append(curve.assign(**key))
    measures = {"decay.csv": pd.DataFrame(summaries), "decay-curves.csv": pd.concat(curves, ignore_index=True)}
    inputs = Inputs(params, params.settings(), pd.DataFrame(), measures)
    report = decay_report(inputs, {"window_2": "window 2", "full": "window 4"})
    cells = report.sections[0].cells.set_index("window")
    assert list(cells.index) == ["window 2", "window 4"] and list(cells["tokens"]) == ["4", "16"]
    assert cells.loc["window 2", "rate a token"] == "" and cells.loc["window 4", "rate a token"].startswith("0.")
    assert cells.loc["window 4", "seeds"] == "0, 1"
    report.draw(tmp_path / "decay.png")
    assert (tmp_path / "decay.png").stat().st_size > 1000


def test_trained_and_untrained_scans_are_measured(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decay, "VARIANTS", ("full",))
    project.edit(seeds=[0])
    with pytest.raises(UserError, match="full-0 is not trained"):
        measure_decay(project.params())
    project.train()
    measure_decay(project.params())
    summary, curves = (
        read_measure(project.params().settings(), "decay.csv"),
        read_measure(project.params().settings(), "decay-curves.csv"),
    )
    assert list(summary["scan"]) == ["untrained", "trained"] and list(summary["tokens"]) == [16, 16]
    assert list(curves["t"]) == [*range(1, 17)] * 2
    last = curves[curves["t"] == 16]
    assert list(last["share"]) == list(summary["last_share"]) and last["share"].nunique() == 2
    assert list(last["bound"] / last["share"]) == pytest.approx(list(summary["bound_over_last"]))
