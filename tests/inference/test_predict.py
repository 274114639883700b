"""Prediction with a trained run."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.data.images import read_image
from wimfris.data.index import decode_mask, read_index
from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.inference.overlay import DIMMED, OUTLINE, write_prediction
from wimfris.inference.predict import Predictor
from wimfris.runs.records import read_records
from wimfris.training.checkpoint import load_weights, save_weights

pytestmark = pytest.mark.slow


def test_a_prediction_agrees_with_the_records(trained: Any) -> None:
    settings = trained.params().settings()
    predictor = Predictor.load(settings, "full-0")
    records = read_records(trained.files().records)
    own = records[records["condition"] == "sentence"].iloc[::9]
    index = read_index(trained.runs / "index" / "index.parquet").set_index("ref_id")
    for row in own.to_dict("records"):
        entry = index.loc[row["ref_id"]]
        mask = predictor(read_image(source_images(settings) / entry["file_name"]), row["sentence"])
        target = decode_mask(entry).astype(bool)
        assert mask.shape == target.shape and mask.dtype == bool
        assert abs((mask & target).sum() - row["intersection"]) <= 1
        assert abs((mask | target).sum() - row["union"]) <= 1


@pytest.mark.parametrize("shape", [(20, 90), (300, 17), (1, 1)], ids=str)
def test_a_picture_may_have_any_shape(shape: tuple[int, int], trained: Any) -> None:
    predictor = Predictor.load(trained.params().settings(), "full-0")
    assert predictor(np.full((*shape, 3), 128, np.uint8), "red circle").shape == shape


def test_an_unknown_word_is_named(trained: Any) -> None:
    predictor = Predictor.load(trained.params().settings(), "full-0")
    with pytest.raises(UserError, match="'dinosaur'"):
        predictor(np.zeros((8, 8, 3), np.uint8), "the red dinosaur")


def test_written_mask_and_overlay(tmp_path: Path) -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[50:120, 80:200] = True
    write_prediction(image, mask, tmp_path / "new" / "m.png", tmp_path / "new" / "o.png")
    written = cv2.imread(str(tmp_path / "new" / "m.png"), cv2.IMREAD_UNCHANGED)
    assert written is not None and ((written == 255) == mask).all() and set(np.unique(written)) == {0, 255}
    overlay = read_image(tmp_path / "new" / "o.png")
    assert (overlay[0, 0] == 100 * DIMMED).all(), "dimmed outside"
    assert (overlay[80, 140] == 100).all(), "as it is inside"
    assert (overlay[50, 80] == OUTLINE).all(), "outlined"
    assert (image == 100).all(), "the input is not changed"


def test_an_empty_mask_changes_nothing(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    write_prediction(image, np.zeros((9, 7), bool), tmp_path / "m.png", tmp_path / "o.png")
    assert (read_image(tmp_path / "o.png") == image.repeat(6, 0).repeat(6, 1)).all(), "enlarged, and nothing else"


# --- weights that do not fit ------------------------------------------------------------------------------------------


def refusal(project: Any, run: str = "full-0") -> str:
    """Return the message with which loading the run is refused."""
    with pytest.raises(UserError) as error:
        Predictor.load(project.params().settings(), run)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copied(project: Any, trained_folder: Path) -> Any:
    shutil.copytree(trained_folder / "runs", project.folder / "runs", dirs_exist_ok=True)
    return project


def test_weights_of_another_encoder_are_refused(copied: Any) -> None:
    path = copied.files().weights
    state, metadata = load_weights(path)
    save_weights(state, metadata | {"vision_encoder": "0" * 64}, path)
    assert "was trained on another vision encoder" in refusal(copied)


def test_weights_that_do_not_fit_their_manifest_are_refused(copied: Any) -> None:
    path = copied.files().weights
    state, metadata = load_weights(path)
    state.pop(next(iter(state)))
    save_weights(state, metadata, path)
    assert "does not fit the settings" in refusal(copied)


# --- the command ------------------------------------------------------------------------------------------------------


def predict(**options: str) -> Any:
    arguments = {"run": "full-0", "image": "photo.png", "text": "the red circle", "out": "out"} | options
    return CliRunner().invoke(app, ["predict", *(f"--{name}={value}" for name, value in arguments.items())])


@pytest.fixture
def photo(copied: Any) -> Any:
    cv2.imwrite("photo.png", np.full((40, 60, 3), 90, np.uint8))
    return copied


def test_the_command_writes_both_files(photo: Any) -> None:
    result = predict()
    assert result.exit_code == 0, result.exception
    assert "out/photo-mask.png" in result.stdout and "out/photo-overlay.png" in result.stdout
    assert {path.name for path in Path("out").iterdir()} == {"photo-mask.png", "photo-overlay.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "absent.png"}, r"absent\.png: missing"),
        ({"image": "params.yaml"}, r"params\.yaml: not a JPEG, PNG, WebP or BMP image"),
        ({"text": "the red dinosaur"}, "'dinosaur'"),
        ({"run": "full"}, r"run full: a run is named <variant>-<seed>"),
        ({"run": "full-2"}, "full-2 is not trained"),
        ({"run": "half-0"}, "no variant 'half'"),
        ({"text": "  "}, "the sentence is empty"),
        ({"out": "photo.png"}, r"--out photo\.png: not a folder"),
    ],
)
def test_the_command_refuses_in_one_line(options: dict[str, str], message: str, photo: Any) -> None:
    result = predict(**options)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert "\n" not in str(result.exception)
    assert not Path("out").exists()
