"""The letterbox equals CRIS's golden numbers, and is undone exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wimfris.data import letterbox

GOLDEN = Path(__file__).parents[1] / "golden" / "protocol.npz"
SIDES = st.integers(8, 700)
SIZES = st.integers(16, 480)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {key.removeprefix("case2/"): file[key] for key in file.files if key.startswith("case2/")}


def predict(logits: torch.Tensor, height: int, width: int, size: int, threshold: float) -> np.ndarray:
    """Return the mask (height, width) bool of one image's logits (h, w)."""
    probabilities = letterbox.input_probabilities(logits[None, None], size)[0]
    return letterbox.original_probabilities(probabilities, height, width) > threshold


def seen(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image (H, W, 3) as the model sees it, (3, size, size) float32."""
    return letterbox.normalise(torch.from_numpy(letterbox.letterbox_image(image, size))).numpy()


def test_torch_normalises_every_level_to_the_bits_of_numpy() -> None:
    """CRIS normalises with numpy."""
    levels = np.arange(256, dtype=np.uint8)
    mean, std = (np.float32(value).reshape(3, 1) for value in (letterbox.CLIP_MEAN, letterbox.CLIP_STD))
    expected = (levels.astype(np.float32) / np.float32(255) - mean) / std
    image = torch.from_numpy(np.broadcast_to(levels, (3, 1, 256)).copy())
    assert np.array_equal(letterbox.normalise(image).numpy()[:, 0], expected)
    assert np.array_equal(letterbox.fraction(image[0]).numpy()[0], levels.astype(np.float32) / np.float32(255))


def test_the_golden_numbers_are_reproduced(golden: dict[str, np.ndarray]) -> None:
    height, width = golden["mask"].shape
    place = letterbox.geometry(height, width, 448)
    assert np.array_equal(place.forward, golden["matrix"])
    assert np.array_equal(place.inverse, golden["inverse"])
    image = seen(golden["image"], 448)
    assert image.dtype == np.float32
    assert np.array_equal(image.astype(np.float16), golden["letterbox_image_mean_std"])
    mask = letterbox.letterbox_mask(golden["mask"], 448)
    assert np.array_equal(mask.astype(np.float16), golden["letterbox_mask"])
    assert np.array_equal(predict(torch.from_numpy(golden["logits"]), height, width, 448, 0.35), golden["prediction"])


@given(SIDES, SIDES, SIZES)
def test_forward_and_inverse_are_the_identity(height: int, width: int, size: int) -> None:
    place = letterbox.geometry(height, width, size)
    row = np.array([[0, 0, 1]])
    product = np.vstack([place.inverse, row]) @ np.vstack([place.forward, row])
    assert np.allclose(product, np.eye(3), atol=1e-3)
    # One scale for both axes, no shear, the centre stays the centre, and the longer side fills the input.
    assert place.forward[0, 0] == pytest.approx(place.forward[1, 1], rel=1e-4)
    assert np.allclose(place.forward[[0, 1], [1, 0]], 0, atol=1e-6)
    assert np.allclose(place.forward @ [width / 2, height / 2, 1], size / 2, atol=1e-3)
    assert max(height, width) * place.forward[0, 0] == pytest.approx(size, rel=1e-4)


@settings(max_examples=25)
@given(st.integers(60, 300), st.integers(60, 300), st.integers(150, 300), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_mask_is_recovered(height: int, width: int, size: int, x: float, y: float) -> None:
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - y * height) ** 2 + (columns - x * width) ** 2 < (0.25 * min(height, width)) ** 2
    boxed = letterbox.letterbox_mask(mask, size)
    assert boxed.shape == (size, size)
    assert 0 <= boxed.min() <= boxed.max() == 1
    back = letterbox.original_probabilities(boxed, height, width) > 0.5
    assert back.shape == mask.shape
    assert (back & mask).sum() / (back | mask).sum() > 0.9
    logits = torch.logit(torch.from_numpy(boxed), eps=1e-4)
    predicted = predict(logits, height, width, size, 0.5)
    assert (predicted & mask).sum() / (predicted | mask).sum() > 0.9


def test_the_border_is_the_mean_colour() -> None:
    image = seen(np.full((20, 40, 3), 255, np.uint8), 64)
    assert image.shape == (3, 64, 64)
    half_a_level = 0.5 / 255 / letterbox.CLIP_STD
    # The image fills rows 16 to 47, and the cubic kernel reaches two pixels further.
    for border in (image[:, :13], image[:, 51:]):
        assert np.all(np.abs(border) <= half_a_level.reshape(3, 1, 1) + 1e-6)
    white = (1 - letterbox.CLIP_MEAN) / letterbox.CLIP_STD
    assert np.allclose(image[:, 20:44, 4:60], white.reshape(3, 1, 1), atol=1e-6)
    assert not letterbox.letterbox_mask(np.ones((20, 40), bool), 64)[:14].any()


def test_a_batch_equals_its_images_one_by_one() -> None:
    logits = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = letterbox.input_probabilities(logits, 30)
    assert batch.shape == (3, 30, 30)
    for one, probabilities in zip(logits, batch, strict=True):
        alone = letterbox.original_probabilities(letterbox.input_probabilities(one[None], 30)[0], 20, 40)
        assert np.allclose(letterbox.original_probabilities(probabilities, 20, 40), alone, atol=1e-6)
    # align_corners=True: the corners of the logits are the corners of the input.
    assert np.allclose(
        batch[:, [0, 0, -1, -1], [0, -1, 0, -1]], torch.sigmoid(logits[:, 0])[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    )


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="RGB image"):
        letterbox.letterbox_image(np.zeros((4, 4), np.uint8), 8)
    with pytest.raises(ValueError, match="RGB image"):
        letterbox.letterbox_image(np.zeros((4, 4, 3), np.float32), 8)
    with pytest.raises(ValueError, match="mask"):
        letterbox.letterbox_mask(np.zeros((4, 4, 1)), 8)
