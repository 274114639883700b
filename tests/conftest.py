"""What the tests of encoders and model share: golden numbers, and a small model with random frozen backbones."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wimfris.encoders.text import TextEncoder, text_backbone
from wimfris.encoders.vision import VisionEncoder, vision_backbone
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.msa import MultiScaleAligner
from wimfris.model.mta import MambaTextAdapter
from wimfris.model.segmenter import Segmenter

torch.set_num_threads(1)  # the sums, and so the bits, depend on it

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 16  # of both small backbones and of the small neck
START, END, VOCABULARY = 18, 19, 20

Stir = Callable[[nn.Module], Any]
Golden = Callable[[str, str], dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Golden:
    """golden(file, prefix): the arrays of a file under a prefix, named without it."""

    def load(file: str, prefix: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / file) as arrays:
            return {
                name.removeprefix(f"{prefix}/"): arrays[name] for name in arrays.files if name.startswith(f"{prefix}/")
            }

    return load


@pytest.fixture(scope="session")
def fill() -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """The rule that the weights behind the golden numbers were made with."""
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


def _stir(module: nn.Module) -> Any:
    """Every parameter and running statistic moved off its initial value: zeros, ones and tiny weights hide mistakes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3 * torch.rand_like(buffer))
    return module


@pytest.fixture(scope="session")
def stir() -> Stir:
    return _stir


def small_text() -> Any:
    return _stir(text_backbone(width=WIDTH, layers=3, heads=2, vocabulary=VOCABULARY, length=16, end_token=END))


def small_vision() -> Any:
    return _stir(vision_backbone(width=WIDTH, layers=4, heads=2, patch=4, registers=2, image_size=32, layer_scale=0.5))


def small_mta(init: str = "kaiming") -> nn.Module:
    return MambaTextAdapter(WIDTH, 6, state=3, conv=4, expand=2, scale=0.2, init=init)


def small_msa(init: str = "kaiming", emphasis: Any = "learned") -> nn.Module:
    return MultiScaleAligner(
        WIDTH, WIDTH, 8, heads=2, kernels=(3, 5, 7), emphasis=emphasis, emphasis_initial=0.3, init=init
    )


def small_segmenter(
    *, init: str = "kaiming", window: int | None = 4, gate: Any = "attention", neck: bool = True
) -> Segmenter:
    """All parts, 8 x 8 patches of a 32 px image, width 16."""
    text = TextEncoder(small_text(), {layer: small_mta(init) for layer in (0, 2)})
    vision = VisionEncoder(small_vision(), {layer: small_msa(init) for layer in (1, 3)}, taps=(1, 2))
    fusion = WindowMambaFusion(WIDTH, WIDTH, window=window, gate=gate, norm=True, heads=2, state=3, conv=4, expand=1)
    return Segmenter(
        text,
        vision,
        Neck(WIDTH, WIDTH, fusion if neck else None),
        Decoder(WIDTH, WIDTH, layers=2, heads=2, ffn=24, dropout=0.1),
        Projector(WIDTH, WIDTH),
        nn.Linear(WIDTH, WIDTH),
    )


@pytest.fixture(scope="session")
def build() -> dict[str, Callable[..., Any]]:
    """Builders of the small parts, by name."""
    return {
        "text_backbone": small_text,
        "vision_backbone": small_vision,
        "mta": small_mta,
        "msa": small_msa,
        "segmenter": small_segmenter,
    }


@pytest.fixture
def token_ids() -> Tensor:
    """(3, 9): two padded sentences and one that fills its row. Id 0 is padding, and a word of the second sentence."""
    ids = torch.zeros(3, 9, dtype=torch.int64)
    for row, words in enumerate(([3, 5], [7, 0, 2, 4], [1, 2, 3, 4, 5, 6, 7])):
        ids[row, : len(words) + 2] = torch.tensor([START, *words, END])
    return ids


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 32, 32)
