"""The demo: shipped scenes are those of the val split, and the val split that it draws is the data set's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.cli.use import _committed
from wimfris.data.images import read_image
from wimfris.data.scenes import draw_scene, write_scenes
from wimfris.inference.demo import score_val, segment_scenes, shipped_scenes, val_evaluator
from wimfris.inference.overlay import DIMMED, OUTLINE, enlarged
from wimfris.inference.predict import Predictor
from wimfris.runs.records import read_records
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow


def test_the_shipped_scenes_are_the_first_of_val() -> None:
    examples = shipped_scenes()
    assert [example.path.name for example in examples] == ["scene-0.jpg", "scene-1.jpg", "scene-2.jpg"]
    for number, example in enumerate(examples):
        scene = draw_scene("val", number)
        assert np.abs(read_image(example.path).astype(int) - scene.image).mean() < 5, "but for the JPEG's losses"
        assert example.target.any() and example.sentence.split()


def test_scores_on_val_are_those_of_the_run(trained: Any, tmp_path: Path) -> None:
    predictor = Predictor.load(trained.params().settings(), "full-0")
    records = score_val(predictor, val_evaluator(predictor, tmp_path), lambda: None)
    own = read_records(trained.files().records)
    own = own[(own["condition"] == "sentence") & (own["split"] == "val")].reset_index(drop=True)
    columns = ["sentence", "target_area", "intersection", "union", "run", "protocol"]
    assert records[columns].to_numpy().tolist() == own[columns].to_numpy().tolist()


def test_an_overlay_is_enlarged_by_a_whole_factor() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    picture = enlarged(np.full((4, 6, 3), 90, np.uint8), mask, 5)
    assert picture.shape == (20, 30, 3)
    inside = np.zeros((20, 30), bool)
    inside[5:10, 10:15] = True
    assert (picture[~inside] == 90 * DIMMED).all()
    assert (picture[6:9, 11:14] == 90).all() and (picture[5, 10] == OUTLINE).all()


def test_the_shipped_model_finds_the_objects() -> None:
    """It was trained: a mask drawn at random has an IoU of some percent."""
    scores = [iou for *_, iou in segment_scenes(Predictor.from_pretrained())]
    assert len(scores) == 3 and np.mean(scores) > 0.3


@pytest.mark.slow
def test_the_demo_says_what_it_did_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])

    def write_few(folder: Path, counts: dict[str, int], size: int) -> None:
        assert counts["val"] >= 250 and not counts["train"]
        write_scenes(folder, counts | {"val": 20}, size)

    monkeypatch.setattr("wimfris.inference.demo.write_scenes", write_few)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.count("-overlay.png") == 3 and len(list(tmp_path.glob("*.png"))) == 3
    assert "shipped model, scored here" in result.output
    assert "evidence release" in result.output and "`make repro` trains the core's" in result.output


@pytest.mark.slow
def test_the_demo_ends_with_commands_outside_the_project_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in ("_segment_scenes", "_score_val"):
        monkeypatch.setattr(f"wimfris.cli.use.{step}", lambda *_: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0, result.output
    assert "wimfris demo --serve" in result.output and "make repro" not in result.output


def test_image_and_text_go_together() -> None:
    result = CliRunner().invoke(app, ["demo", "--image", "photo.jpg"])
    assert "give --image and --text together" in str(result.exception)


def test_the_committed_scores_are_of_the_core_seeds(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirmatory seeds of `full` decide claims, and enter no table of results."""
    monkeypatch.chdir(committed)
    params = read_params()
    assert params.extra_seeds["full"], "there are confirmatory seeds that could enter"
    demonstrated: Any = SimpleNamespace(settings=params.settings())
    core = _committed(demonstrated)
    assert core is not None
    _, records = core
    assert sorted(records["seed"].unique()) == params.seeds
