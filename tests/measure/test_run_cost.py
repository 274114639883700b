"""`wimfris estimate`: what a run costs, from a timed handful of steps and the size of the data."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from wimfris.cli.inspect import estimate as command
from wimfris.data.counts import Counts
from wimfris.data.index import read_index
from wimfris.errors import UserError
from wimfris.measure import run_cost
from wimfris.measure.blank_model import blank_segmenter
from wimfris.measure.parameters import count
from wimfris.measure.run_cost import (
    StepTimes,
    Volume,
    along,
    at_batch,
    cost,
    shared_bytes,
    time_steps,
    volume,
    volume_of,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_volume_is_that_of_the_index_or_the_declared_one(project: Any) -> None:
    settings = project.params().settings()
    index = read_index(settings.folder / "index" / "index.parquet")
    counted = volume(settings)
    assert counted.train == (index["split"] == "train").sum() and counted.objects == len(index)
    sentences = index.loc[index["split"] == "val", "sentences"].map(len).sum()
    assert counted.validated == sentences < counted.evaluated
    project.edit(scale="base", data__name="refcoco")
    published = volume(project.params().settings())
    assert (published.train, published.validated) == (42404, 10834)
    assert published.evaluated == 3 * (10834 + 5657 + 5095)
    project.edit(data__name="mixed_strict")
    mixed = volume(project.params().settings())
    assert mixed.train == 42404 + 42278 + 42226
    assert "shared images included" in mixed.source
    project.edit(data__name="scenes")
    with pytest.raises(UserError, match=r"index\.parquet: missing, .*dvc repro prepare"):
        volume(project.params().settings())


def test_limits_of_images_count(project: Any) -> None:
    settings = project.params().settings()
    train = settings.train.model_copy(update={"validation_images": 5})
    limited = settings.model_copy(
        update={"train": train, "evaluate": settings.evaluate.model_copy(update={"control_images": 10})}
    )
    counts = {"train": Counts(25, 50, 20), "val": Counts(10, 40, 20), "testA": Counts(10, 30, 5)}
    whole, part = (volume_of(one, counts, "") for one in (settings, limited))
    assert (whole.validated, whole.evaluated) == (40, 3 * (40 + 30))
    assert (part.validated, part.evaluated) == (10, 40 + 2 * 20 + 3 * 30)


def test_cost_adds_up(project: Any) -> None:
    settings = project.params().settings()  # three epochs of batches of eight, no workers
    times = StepTimes("a device", step=2.0, case=0.5, image=0.25, memory=7.0)
    size = Volume(train=25, validated=10, evaluated=30, objects=60, source="")
    run = cost(settings, times, size)
    assert run.steps == 3 * (25 // 8)
    assert run.evaluation == pytest.approx(0.75 * (3 * 10 + 30))
    assert run.seconds == pytest.approx(9 * (2.0 + 8 * 0.25) + run.evaluation)
    assert run.memory == 7.0 and run.loader == pytest.approx(4.0)
    fed = settings.model_copy(update={"train": settings.train.model_copy(update={"workers": 4})})
    hidden = cost(fed, times, size)
    assert hidden.seconds - hidden.evaluation == pytest.approx(9 * 2.0), "workers read while the device computes"
    slow = cost(fed, StepTimes("a device", step=0.1, case=0.5, image=4.0, memory=None), size)
    assert slow.seconds - slow.evaluation == pytest.approx(9 * 8.0), "a slow loader is what a step waits for"
    trained = 4 * count(blank_segmenter(settings))
    assert run.running == 8 * trained and run.left > 2 * trained
    with pytest.raises(
        UserError, match=r"train.batch_size must be at most the number of training objects \(25\), got 26"
    ):
        cost(at_batch(settings, 26), times, size)


def test_large_batches_lie_on_the_line_through_small_ones() -> None:
    assert along([3.0, 5.0], 32) == pytest.approx(33.0)
    assert along([None, 5.0], 32) is None


def test_encoders_and_images_are_shared(project: Any) -> None:
    project.edit(scale="base", data__name="refcoco")
    shared = shared_bytes(project.params().settings(), Volume(1, 1, 1, 50000, ""))
    # CLIP whole, 600 MB, and DINOv2 with registers, 346 MB
    assert shared["encoders"] == pytest.approx(0.95e9, rel=0.1) and shared["images"] > 1e10


def test_a_batch_that_does_not_fit_is_one_line(project: Any) -> None:
    settings = project.params().settings()
    with pytest.raises(UserError, match=r"a batch of \d+ does not fit into the memory; try a smaller one with --batch"):
        run_cost.time_apart(at_batch(settings, 10**9))
    with pytest.raises(UserError, match="--batch must be at least 2"):
        at_batch(settings, 0)


def test_small_models_are_timed_as_they_are(
    project: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    times = time_steps(project.params().settings())
    assert times.step > 0 and times.case > 0 and times.image > 0 and times.device.startswith("CPU")
    monkeypatch.setattr(run_cost, "time_apart", lambda settings: times)
    command(batch=4)
    out = " ".join(capsys.readouterr().out.split())
    assert "scenes at scale smoke" in out and "one run" in out and "at batch 4" in out
    assert "studies/neck.py" not in out, "there are no studies in this folder"
    shutil.copytree(ROOT / "studies", "studies")
    command(batch=4)
    assert "studies/neck.py, " in " ".join(capsys.readouterr().out.split())
    torch.set_num_threads(threads)


def test_the_cpu_stands_in_for_a_gpu_that_is_not_here(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    project.edit(scales__smoke__train__device="cuda", scales__smoke__train__precision="bf16")
    threads = torch.get_num_threads()
    times = time_steps(project.params().settings())
    assert "fp32 (scale smoke trains on cuda, not here)" in times.device and times.case > 0
    torch.set_num_threads(threads)
