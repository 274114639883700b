"""Evaluation protocols: each equals its own paper's code."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from wimfris.data.letterbox import normalise
from wimfris.data.protocol import PROTOCOLS, SQUASHED_SIDE
from wimfris.metrics import ious
from wimfris.settings.sections import Evaluate

HEIGHT, WIDTH, SIZE = 75, 110, 56


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - 30) ** 2 + (columns - 60) ** 2 < 25**2).astype(np.uint8)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16)


def test_the_settings_allow_these_names() -> None:
    allowed = Evaluate.model_json_schema()["properties"]["protocol"]["enum"]
    assert list(PROTOCOLS) == allowed


def test_cris_equals_its_golden_numbers(golden: object) -> None:
    case = golden("protocol.npz", "case2")  # type: ignore[operator]
    protocol = PROTOCOLS["cris"]
    height, width = case["mask"].shape
    pixels = normalise(torch.from_numpy(protocol.image(case["image"], 448))).numpy()
    assert np.array_equal(pixels.astype(np.float16), case["letterbox_image_mean_std"])
    assert np.array_equal(protocol.mask(case["mask"], 448).astype(np.float16), case["letterbox_mask"])
    scores = protocol.scores(torch.from_numpy(case["logits"])[None, None], 448)
    predicted = protocol.predicted(scores[0], height, width)
    assert np.array_equal(predicted, case["prediction"])
    target = protocol.target(case["mask"])
    assert target.dtype == bool and np.array_equal(target, case["mask"] > 0)


def two_classes(logits: torch.Tensor) -> torch.Tensor:
    """Return two channels, background and object, whose difference is the logit."""
    return torch.cat([-logits / 2, logits / 2], dim=1)


def test_lavt_is_an_argmax_at_480(logits: torch.Tensor, mask: np.ndarray) -> None:
    protocol = PROTOCOLS["lavt"]
    scaled = F.interpolate(two_classes(logits), size=(480, 480), mode="bilinear", align_corners=True)
    expected = scaled.argmax(1).numpy() > 0
    predicted = np.stack([protocol.predicted(scores, HEIGHT, WIDTH) for scores in protocol.scores(logits, SIZE)])
    assert predicted.shape == (2, 480, 480) and (predicted == expected).all()
    target = protocol.target(mask)
    assert target.shape == (480, 480) and target.dtype == bool
    # Nearest interpolation takes the pixel that holds the centre.
    rows = ((np.arange(480) + 0.5) * HEIGHT / 480).astype(int)
    columns = ((np.arange(480) + 0.5) * WIDTH / 480).astype(int)
    assert np.array_equal(target, mask[rows][:, columns] > 0)


def test_remamber_thresholds_at_a_half_at_the_image_s_own_size(logits: torch.Tensor, mask: np.ndarray) -> None:
    protocol = PROTOCOLS["remamber"]
    scaled = F.interpolate(logits, size=(480, 480), mode="bilinear", align_corners=True)
    expected = F.interpolate(scaled, (HEIGHT, WIDTH)).sigmoid()[:, 0].numpy() > 0.5
    predicted = np.stack([protocol.predicted(scores, HEIGHT, WIDTH) for scores in protocol.scores(logits, SIZE)])
    assert (predicted == expected).all()
    assert np.array_equal(protocol.target(mask), mask > 0)


@pytest.mark.parametrize("name", ["lavt", "remamber"])
def test_squashing_loses_the_aspect_ratio_and_nothing_else(name: str, mask: np.ndarray) -> None:
    """The image fills its square, in the colours of training, and a perfect mask is recovered."""
    protocol = PROTOCOLS[name]
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[mask > 0] = 255
    seen = protocol.image(picture, SIZE)
    assert seen.shape == (3, SIZE, SIZE) and seen.dtype == np.uint8
    assert (seen.max(axis=(1, 2)) == 255).all() and (seen.min(axis=(1, 2)) == 0).all()
    expected = np.asarray(Image.fromarray(mask * 255).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255
    assert np.allclose(protocol.mask(mask, SIZE), expected)
    sure = torch.logit(torch.from_numpy(protocol.mask(mask, SQUASHED_SIDE))[None, None], eps=1e-4)
    predicted, target = protocol.predicted(protocol.scores(sure, SIZE)[0], HEIGHT, WIDTH), protocol.target(mask)
    assert ious([(predicted & target).sum()], [(predicted | target).sum()])[0] > 0.95
