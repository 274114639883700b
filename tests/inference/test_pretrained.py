"""Exported models: what is written is what is loaded, with and without the encoders, and never anything unsafe."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from wimfris.cli.app import app
from wimfris.errors import UserError
from wimfris.inference import Predictor
from wimfris.inference.card import METRICS
from wimfris.inference.predict import CONFIG, SHIPPED, WEIGHTS

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SENTENCE = "the red circle"


@pytest.fixture
def predictor(trained: Any) -> Predictor:
    return Predictor.load(trained.params().settings(), "full-0")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("encoders", [False, True], ids=["weights alone", "with encoders"])
def test_a_saved_model_is_the_model(encoders: bool, predictor: Predictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path / "model", encoders=encoders)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {CONFIG, WEIGHTS, "README.md"} | (
        {"text_encoder.safetensors", "vision_encoder.safetensors"} if encoders else set()
    )
    loaded = Predictor.from_pretrained(tmp_path / "model")
    assert same(loaded.segmenter.state_dict(), predictor.segmenter.state_dict())
    assert loaded.settings.model_dump() == predictor.settings.model_dump()
    assert (loaded(IMAGE, SENTENCE) == predictor(IMAGE, SENTENCE)).all()
    loaded.save_pretrained(tmp_path / "again", encoders=encoders)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


def test_a_model_with_its_encoders_needs_no_others(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor.save_pretrained(tmp_path, encoders=True)
    monkeypatch.setattr("wimfris.encoders.load.BUILTIN", tmp_path / "nowhere")
    assert (Predictor.from_pretrained(tmp_path)(IMAGE, SENTENCE) == predictor(IMAGE, SENTENCE)).all()


def test_the_weights_hold_what_was_trained_and_nothing_else(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == predictor.segmenter.trained_state().keys()


def test_the_card_tells_data_commit_seed_scores_and_licence(predictor: Predictor, trained: Any, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "wimfris"
    manifest = json.loads(trained.files().manifest.read_text())
    metrics = json.loads(trained.files().metrics.read_text())
    for text in (f"commit {manifest['code']['commit']}", "Seed 0", "split train", *METRICS.values(), "## Limits"):
        assert text in card.text, text
    for split, conditions in metrics.items():
        assert (
            f"| {split} | {conditions['sentence']['n']:.0f} | {100 * conditions['sentence']['miou']:.1f} |" in card.text
        )


def damage_config(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def drop_settings(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    del content["settings"]["model"]["hmf"]
    (folder / CONFIG).write_text(json.dumps(content))


def other_window(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["settings"]["model"]["mta"]["width"] *= 2
    (folder / CONFIG).write_text(json.dumps(content))


def other_encoder(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["encoders"]["vision"]["sha256"] = "0" * 64
    (folder / CONFIG).write_text(json.dumps(content))


def truncate_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def pickle_instead(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_config, "damaged; export the model again"),
        (drop_settings, "not the settings of a model of this version"),
        (other_window, "does not fit config.json"),
        (other_encoder, "vision encoder is not the one that it was trained on"),
        (truncate_weights, "model.safetensors: damaged"),
        (pickle_instead, "model.safetensors: weights not found"),
        (lambda folder: (folder / CONFIG).unlink(), "no config.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_model_is_refused_in_one_line(harm: Any, message: str, predictor: Predictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        Predictor.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_neither_a_folder_nor_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no/such/folder", "somebody/no-such-model"):
        with pytest.raises(UserError, match=f"^{name}: neither a folder with an exported model nor a model of the hub"):
            Predictor.from_pretrained(name, local_files_only=True)


def test_the_export_verb_writes_a_folder_and_spares_others(trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "model"
    for _ in range(2):  # an exported model may be written again
        result = CliRunner().invoke(app, ["export", "full-0", "--out", str(out)])
        assert result.exit_code == 0, result.output
    assert "README.md, config.json, model.safetensors" in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    result = CliRunner().invoke(app, ["export", "full-0", "--out", str(tmp_path / "mine")])
    assert isinstance(result.exception, UserError) and "name a new folder" in str(result.exception)


# --- the shipped model ------------------------------------------------------------------------------------------------


def test_the_shipped_model_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2**21
    card = (SHIPPED / "README.md").read_text()
    assert "uncommitted changes" not in card and "Apache-2.0" in card


def test_the_shipped_model_works_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(SHIPPED.parent / "scenes" / "scene-0.jpg", tmp_path / "scene.jpg")
    mask = Predictor.from_pretrained()("scene.jpg", "the largest thing")
    assert mask.dtype == bool and mask.any() and not mask.all()


def test_predict_without_a_run_uses_the_shipped_model_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = str(SHIPPED.parent / "scenes" / "scene-1.jpg")
    result = CliRunner().invoke(app, ["predict", "--image", scene, "--text", "the largest thing", "--out", "out"])
    assert result.exit_code == 0, result.output
    assert "no --run: the shipped model, full-0 at scale tiny" in result.output
    assert {path.name for path in Path("out").iterdir()} == {"scene-1-mask.png", "scene-1-overlay.png"}
