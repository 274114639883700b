"""`wimfris measure efficiency`: its file has a row a system, from which the study makes its tables and picture."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from wimfris.cli.measure import measure_app
from wimfris.measure import efficiency
from wimfris.measure.timing import time_variant
from wimfris.results.analyses.efficiency import efficiency_report
from wimfris.results.formats import markdown_text
from wimfris.results.measured import Inputs, read_measure

pytestmark = pytest.mark.slow


@pytest.fixture
def small(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The project, two systems, one round in this process, and smoke in the place of the paper's scale."""
    monkeypatch.setattr(efficiency, "SYSTEMS", ("full", "no_neck", "unknown"))
    monkeypatch.setattr(efficiency, "ROUNDS", 1)
    monkeypatch.setattr(efficiency, "PAPERS_SCALE", "smoke")
    monkeypatch.setattr(
        efficiency, "time_apart", lambda variant, scale, n: time_variant(project.params().settings(variant), n)
    )
    return project


@pytest.mark.parametrize("repetitions", [0, 2])
def test_the_study_shows_what_is_measured(small: Any, repetitions: int, tmp_path: Path) -> None:
    params = small.params()
    efficiency.measure_efficiency(params, repetitions)
    frame = read_measure(params.settings(), "efficiency.csv")
    assert list(frame["variant"]) == ["full", "no_neck"], "params.yaml does not have `unknown`"
    columns = {"gflops_scan", "base_gflops_total", "trained_neck"}
    columns |= {"latency_ms_1", "latency_ms_1_q1", "repetitions", "machine"} if repetitions else set()
    assert columns <= set(frame)
    inputs = Inputs(params, params.settings(), pd.DataFrame(), {"efficiency.csv": frame})
    report = efficiency_report(inputs, {"full": "full (window 4)", "no_neck": "no neck", "other": "not measured"})
    assert list(report.frame["label"]) == ["full (window 4)", "no neck"]
    text = markdown_text("Efficiency", report.sections)
    assert ("medians over 2 repetitions in 1 processes" if repetitions else "Times were not taken") in text
    report.draw(tmp_path / "efficiency.png")
    assert (tmp_path / "efficiency.png").stat().st_size > 1000


def test_repetitions_below_zero_are_refused() -> None:
    result = CliRunner().invoke(measure_app, ["efficiency", "--repetitions", "-1"])
    assert result.exit_code == 2 and "Invalid value for '--repetitions'" in result.output
