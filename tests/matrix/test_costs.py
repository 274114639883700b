"""How long runs take: recorded times say how variants compare, the first steps how fast this machine is."""

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest

from wimfris.matrix.costs import EVALUATION, Costs, Progress, duration, recorded_seconds, wall_seconds
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

FULL, NONE = Run("full", 0), Run("none", 0)


def test_nothing_is_estimated_before_something_ran_here() -> None:
    costs = Costs({"full": 100.0})
    assert costs.seconds(FULL) is None


def test_the_pace_of_this_machine_scales_the_recorded_times() -> None:
    costs = Costs({"full": 100.0, "none": 50.0})
    costs.observe(FULL, 30.0)
    assert costs.seconds(FULL) == 30.0
    assert costs.seconds(NONE) == pytest.approx(15.0)
    assert costs.seconds(Run("new", 0)) == pytest.approx(0.3 * 75)


def test_without_recorded_times_a_run_costs_what_others_cost() -> None:
    costs = Costs({})
    costs.observe(FULL, 30.0)
    assert costs.seconds(NONE) == 30.0


def test_progress_projects_a_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    progress = Progress(started=time.time() - 20)
    progress.read(path)
    assert progress.step == 0 and progress.whole is None
    path.write_text("10 100")
    progress.read(path)
    assert progress.whole is None, "one reading has no rate"
    assert progress.first is not None
    progress.first = (progress.first[0] - 5, 10)
    path.write_text("20 100")
    progress.read(path)
    assert progress.whole == pytest.approx(100 * 0.5 * EVALUATION, rel=0.1)
    assert progress.left(progress.whole) == pytest.approx(progress.whole - 10, rel=0.1)


def test_progress_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.write_text("90 100")
    os.utime(path, (1, 1))
    progress = Progress()
    progress.read(path)
    assert progress.step == 0


def test_workers_take_the_next_run() -> None:
    assert wall_seconds([10, 10, 10], 2) == 20
    assert wall_seconds([10], 2, [5, 30]) == 30
    assert wall_seconds([], 2, [7]) == 7


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_shortened_trial_costs_its_share_of_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = read_params(Path(__file__).parents[2] / "params.yaml")
    folder = tmp_path / params.settings().folder / "core" / "lora-0"
    folder.mkdir(parents=True)
    manifest = {"settings": {"variant": "lora"}, "wall_seconds": 100, "device": "C", "cpu_capability": "AVX2"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    recorded = recorded_seconds(params, [Run("tune_lora_00", 100), Run("tune_lora_00_whole", 100)])
    assert {name: recorded[name] for name in ("lora", "full", "tune_lora_00", "tune_lora_00_whole")} == {
        "lora": 100,
        "full": 100,
        "tune_lora_00": 25,
        "tune_lora_00_whole": 100,
    }


def test_times_of_one_processor_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor with the most runs of `full`; a variant with few runs there costs what runs there usually cost."""
    params = read_params(Path(__file__).parents[2] / "params.yaml")
    rows = [("full", "fast", 5.0), ("full", "fast", 6.0), ("full", "fast", 7.0), ("full", "slow", 20.0)]
    rows += [("none", "fast", minutes) for minutes in (1.0, 3.0, 2.0)]
    rows += [("kernels_555", "slow", 43.0), ("msa", "fast", 30.0)]
    frame = pd.DataFrame(rows, columns=["variant", "device", "minutes"]).assign(cpu_capability="")
    frame["run"] = [f"{name}-{number}" for number, name in enumerate(frame["variant"])]
    for number in range(20):  # short trials, and a run that the evidence holds, too
        for place, name, seconds in (("tuning", f"tune_lora_{number:02}", 1), ("core", "full-0", 300)):
            path = tmp_path / params.settings().folder / place / name / "manifest.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            settings = {"variant": name.partition("-")[0]}
            path.write_text(json.dumps({"settings": settings, "wall_seconds": seconds, "device": "fast"}))
    (tmp_path / "reports" / "records").mkdir(parents=True)
    frame.to_csv(tmp_path / "reports" / "records" / f"{params.settings().folder.name}-runs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    seconds = recorded_seconds(params, [])
    assert (seconds["full"], seconds["none"]) == (360, 120)
    assert {seconds[name] for name in ("kernels_555", "msa", "mta")} == {300}
