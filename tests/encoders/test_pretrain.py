"""Pretraining of the built-in pair: the targets describe the scene, and a few steps reduce the loss."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from params_file import SHIPPED

from wimfris.data.letterbox import letterbox_image, normalise
from wimfris.data.scenes import draw_scene
from wimfris.data.sentences import COLOURS, SHAPES, SIZES, Description, to_sentence, vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.encoders import load, pretrain
from wimfris.encoders.load import new_text, new_vision, weights_hash
from wimfris.encoders.pretrain import from_coarser, pretrain_builtin, pretrain_text, pretrain_vision
from wimfris.encoders.text_task import SLOTS, random_description, slot_classes
from wimfris.encoders.vision_task import BACKGROUND, CELLS, DenseHead, draw_pool
from wimfris.settings.params import Params, read_params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE, GRID = 64, 8


@pytest.fixture(scope="module")
def pool() -> Any:
    return draw_pool(40, SIZE, GRID, first=5)


def test_images_are_the_scenes_as_the_letterbox_shows_them(pool: Any) -> None:
    """The letterbox does not scale them: the longer side of a built-in scene is that of the input."""
    images, _ = pool
    for k in range(10):
        shown = draw_scene("pretrain", 5 + k, SIZE).image, images[k]
        seen, own = (normalise(torch.from_numpy(letterbox_image(image, SIZE))) for image in shown)
        np.testing.assert_allclose(own, seen, atol=0.02)


def test_classes_and_values_are_those_of_the_thing_in_the_cell(pool: Any) -> None:
    _, targets = pool
    cells, side = GRID * CELLS, SIZE // (GRID * CELLS)
    checked = 0
    for k in range(40):
        scene = draw_scene("pretrain", 5 + k, SIZE)
        height, width = scene.image.shape[:2]
        left, top = (SIZE - width) // 2, (SIZE - height) // 2
        masks = np.zeros((len(scene.things), SIZE, SIZE), bool)
        masks[:, top : top + height, left : left + width] = scene.masks
        assert (targets.outline[k] == masks.any(0)).all()
        for row in range(0, cells, 3):
            for column in range(0, cells, 2):
                here = masks[:, row * side : (row + 1) * side, column * side : (column + 1) * side].sum((1, 2))
                classes, values = targets.classes[k, row, column], targets.values[k, row, column]
                if here.max() <= side**2 / 4:
                    assert (classes == BACKGROUND).all() and not values.any()
                    continue
                checked += 1
                thing = scene.things[int(here.argmax())]
                names = [attributes[c] for attributes, c in zip((SHAPES, COLOURS, SIZES), classes, strict=True)]
                assert names == [thing.shape, thing.colour, thing.size]
                centre = (column + 0.5) * side + values[0] * SIZE, (row + 0.5) * side + values[1] * SIZE
                assert centre == pytest.approx((thing.x + left, thing.y + top), abs=1e-3)
                assert values[2] * SIZE == pytest.approx(thing.radius, abs=1e-4)
                for place, key in enumerate(("x", "y", "radius")):
                    below = sum(getattr(o, key) < getattr(thing, key) for o in scene.things)
                    assert values[3 + place] == pytest.approx(below / (len(scene.things) - 1))
                for place, key in enumerate(("shape", "colour", "size")):
                    share = np.mean([getattr(o, key) == getattr(thing, key) for o in scene.things])
                    assert values[6 + place] == pytest.approx(share)
    assert checked > 300


def test_cells_and_pixels_are_unfolded_in_place() -> None:
    """The head's output for patch (r, c) is in that patch's cells and pixels."""
    head = DenseHead(4, patch=8)
    tokens = torch.randn(1, 9, 4, requires_grad=True)
    classes, values, outline = head(tokens, 3)
    assert classes[0].shape == (1, 6, 6, 6) and values.shape == (1, 6, 6, 9) and outline.shape == (1, 24, 24)
    for output, row, column in (
        (values[0, 3, 4].sum(), 1, 2),
        (outline[0, 17, 3], 2, 0),
        (classes[1][0, 0, 5].sum(), 0, 2),
    ):
        (gradient,) = torch.autograd.grad(output, tokens, retain_graph=True)
        assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == [row * 3 + column]


@pytest.fixture(scope="module")
def small() -> Params:
    """params.yaml with a few steps of pretraining at scale smoke."""
    step = {"batch_size": 8, "learning_rate": 3e-3}
    own = {"scale": "smoke", "seed": 0, "text": step | {"steps": 4}, "vision": step | {"steps": 3, "scenes": 20}}
    return Params.model_validate(SHIPPED | {"scale": "smoke", "pretrain": own})


def test_vision_learns(small: Params) -> None:
    backbone, losses = new_vision(small.settings()), []
    scores = pretrain_vision(
        backbone,
        size=32,
        scenes_drawn=60,
        steps=40,
        batch=16,
        learning_rate=3e-3,
        seed=0,
        report=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 40 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert {"shape", "colour", "size", "outline IoU"} <= set(scores)
    assert all(0 <= value <= 1 for value in scores.values())
    assert not backbone.training


def test_text_learns(small: Params) -> None:
    settings, losses = small.settings(), []
    tokenizer = WordTokenizer(vocabulary(), settings.data.length)
    scores = pretrain_text(
        new_text(settings, tokenizer),
        tokenizer,
        steps=60,
        batch=32,
        learning_rate=5e-3,
        seed=0,
        report=lambda step, loss: losses.append(loss),
    )
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert 0 <= scores["sentences read exactly"] <= 1


def test_slots_hold_every_condition() -> None:
    described = Description(
        (("colour", "red"), ("size", "small")), relation="left", landmark=(("shape", "cross"), ("colour", "blue"))
    )
    slots = {slot: values[k] for (slot, values), k in zip(SLOTS.items(), slot_classes(described), strict=True)}
    assert slots == {
        "size": "small",
        "colour": "red",
        "shape": None,
        "superlative": None,
        "rank": 1,
        "relation": "left",
        "landmark size": None,
        "landmark colour": "blue",
        "landmark shape": "cross",
    }
    ranked = Description((), superlative="topmost", rank=2)
    assert slot_classes(ranked) != slot_classes(Description((), superlative="topmost"))


def test_any_description_fits_the_tokens_of_scale_tiny() -> None:
    rng = np.random.default_rng(0)
    tokenizer = WordTokenizer(vocabulary(), 16)
    for _ in range(500):
        ids = tokenizer.encode(to_sentence(random_description(rng), rng))
        assert tokenizer.eot_id in ids


def test_both_encoders_are_written_with_their_card_and_load(
    small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (load, pretrain):
        monkeypatch.setattr(module, "BUILTIN", tmp_path)
    pretrain_builtin(small, small.pretrain)
    assert {path.name for path in tmp_path.iterdir()} == {"text.safetensors", "vision.safetensors", "CARD.md"}
    card = (tmp_path / "CARD.md").read_text()
    assert "| text | steps 4," in card and "| vision | steps 3," in card and "scenes 20" in card
    settings = small.settings()
    own = {"source": "builtin"}
    encoders = settings.encoders.model_copy(
        update={
            "text": settings.encoders.text.model_copy(update=own),
            "vision": settings.encoders.vision.model_copy(update=own),
        }
    )
    built_in = settings.model_copy(update={"encoders": encoders})
    random = load.load_vision(settings)
    assert weights_hash(load.load_vision(built_in)) != weights_hash(random)
    tokenizer = load.load_tokenizer(settings)
    assert weights_hash(load.load_text(built_in, tokenizer)) != weights_hash(load.load_text(settings, tokenizer))


def test_a_finer_vision_encoder_starts_from_the_built_in_one(
    small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a text section, the vision encoder starts as built in, with interpolated positions."""
    for module in (load, pretrain):
        monkeypatch.setattr(module, "BUILTIN", tmp_path)
    finer = copy.deepcopy(small.scales["smoke"])
    finer["data"]["image_size"] = 64
    params = small.model_copy(update={"scales": small.scales | {"finer": finer}})
    section = small.pretrain.model_copy(update={"scale": "finer", "text": None})
    pretrain_builtin(params, section)
    assert {path.name for path in tmp_path.iterdir()} == {"vision-finer.safetensors", "CARD-finer.md"}
    coarse, fine = new_vision(small.settings()), new_vision(params.model_copy(update={"scale": "finer"}).settings())
    from_coarser(fine, coarse)
    ours, theirs = fine.state_dict(), coarse.state_dict()
    positions = "embeddings.position_embeddings"
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != positions)
    assert ours[positions].shape == (1, 1 + 16 * 16, 16)
    averaged = torch.nn.functional.avg_pool2d(ours[positions][:, 1:].unflatten(1, (16, 16)).permute(0, 3, 1, 2), 2)
    expected = theirs[positions][:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    assert torch.corrcoef(torch.stack([averaged.flatten(), expected.flatten()]))[0, 1] > 0.98


def test_pretraining_settings_name_existing_scales() -> None:
    params = read_params(ROOT / "params.yaml")
    settings = params.model_copy(update={"scale": params.pretrain.scale}).settings()
    assert settings.encoders.text.source == settings.encoders.vision.source == "builtin"
    finer = params.model_copy(update={"scale": params.pretrain_small.scale}).settings()
    assert finer.encoders.vision.source == "builtin-small" and finer.encoders.text == settings.encoders.text
    assert finer.grid == 2 * settings.grid
