"""The frozen vision encoder: adapters act in their place, and the backbone stays as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wimfris.encoders.backbones import vision_backbone
from wimfris.encoders.vision import Guidance, VisionEncoder, interpolate_positions, set_positions

TAPS = (1, 2)
PREFIX = 3  # the class token and two register tokens


class Probe(nn.Module):
    """An adapter that stores its inputs and returns a known function of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Guidance]] = []

    def forward(self, tokens: Tensor, guidance: Guidance) -> Tensor:
        self.seen.append((tokens, guidance))
        return torch.sin(tokens)


@pytest.fixture
def backbone(build: Any) -> nn.Module:
    return build["vision_backbone"]().double().eval()


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    """Words and their padding."""
    return torch.randn(3, 5, 16, dtype=torch.float64), torch.tensor(
        [[False] * 3 + [True] * 2, [False] * 5, [False] * 5]
    )


def to_map(tokens: Tensor, grid: tuple[int, int] = (8, 8)) -> Tensor:
    """(B, 1 + R + H W, D) -> (B, D, H, W), cell by cell."""
    batch, _, width = tokens.shape
    out = tokens.new_empty(batch, width, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            out[:, :, row, column] = tokens[:, PREFIX + row * grid[1] + column]
    return out


@torch.no_grad()
def test_an_adapter_reads_the_second_norm_and_adds_to_the_mlp_before_the_layer_scale(
    backbone: Any, image: Tensor, text: tuple[Tensor, Tensor]
) -> None:
    before = backbone(pixel_values=image.double(), output_hidden_states=True).hidden_states
    block, probe = backbone.encoder.layer[1], Probe()
    stages = VisionEncoder(backbone, {1: probe}, TAPS)(image.double(), *text)
    stream = before[1] + block.layer_scale1.lambda1 * block.attention(block.norm1(before[1]))[0]
    normed = block.norm2(stream)
    seen, guidance = probe.seen[0]
    torch.testing.assert_close(seen, normed)
    assert guidance.words is text[0] and guidance.padding is text[1] and guidance.grid == (8, 8)
    mlp = block.mlp.fc2(block.mlp.activation_fn(block.mlp.fc1(normed)))
    torch.testing.assert_close(stream + block.layer_scale2.lambda1 * mlp, before[2])
    torch.testing.assert_close(stages[0], to_map(stream + block.layer_scale2.lambda1 * (mlp + torch.sin(normed))))


@torch.no_grad()
def test_padded_words_change_nothing(
    build: Any, stir: Any, backbone: Any, image: Tensor, text: tuple[Tensor, Tensor]
) -> None:
    encoder = VisionEncoder(backbone, {layer: stir(build["msa"]()).double() for layer in (1, 3)}, TAPS)
    words, padding = text
    before = encoder(image.double(), words, padding)
    longer = torch.cat(
        [torch.where(padding[..., None], 20.0, words), torch.full((3, 4, 16), -3.0, dtype=torch.float64)], dim=1
    )
    after = encoder(image.double(), longer, torch.cat([padding, torch.ones(3, 4, dtype=torch.bool)], dim=1))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)
    assert (encoder(image.double(), words + 1, padding)[0] != before[0]).any()


def test_gradients_reach_adapters_and_words_through_the_frozen_backbone_and_leave_it_alone(
    build: Any, backbone: Any, image: Tensor, text: tuple[Tensor, Tensor]
) -> None:
    encoder = VisionEncoder(backbone, {layer: build["msa"]().double() for layer in (1, 3)}, TAPS)
    words = text[0].requires_grad_()
    sum(stage.square().sum() for stage in encoder(image.double(), words, text[1])).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())
    assert words.grad is not None and (words.grad[~text[1]] != 0).all() and (words.grad[text[1]] == 0).all()
    for adapter in encoder.adapters.values():
        assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in adapter.parameters())


def test_the_backbone_stays_in_eval_mode(build: Any, backbone: Any) -> None:
    encoder = VisionEncoder(backbone, {1: build["msa"]()}, TAPS)
    outer = nn.Sequential(encoder).train()
    assert encoder.training and encoder.adapters["1"].training
    assert not any(module.training for module in backbone.modules())
    outer.eval()
    assert not any(module.training for module in encoder.modules())


def test_a_failed_pass_does_not_change_the_next(
    build: Any, backbone: Any, image: Tensor, text: tuple[Tensor, Tensor]
) -> None:
    encoder = VisionEncoder(backbone, {3: build["msa"]().double()}, TAPS)
    before = encoder(image.double(), *text)
    with pytest.raises(AssertionError, match="key weights"):
        encoder(image.double(), text[0][..., :3], text[1])  # words of a wrong width
    for one, other in zip(encoder(image.double(), *text), before, strict=True):
        assert torch.equal(one, other)


def test_positions_of_another_grid_are_set_as_given() -> None:
    """DETRIS's interpolation is another function of the image than that of transformers."""
    own = vision_backbone(width=16, layers=1, heads=2, patch=4, registers=1, image_size=24).eval()
    embeddings: Any = own.embeddings
    torch.nn.init.normal_(embeddings.position_embeddings)
    image = torch.randn(1, 3, 32, 32)
    before = own(pixel_values=image).last_hidden_state
    positions = interpolate_positions(embeddings.position_embeddings, 8)
    set_positions(own, positions)
    assert embeddings.position_embeddings.shape == (1, 1 + 64, 16)
    assert torch.equal(embeddings.interpolate_pos_encoding(torch.zeros(1, 65, 16), 32, 32), positions)
    after = own(pixel_values=image).last_hidden_state
    assert after.shape == before.shape and not torch.allclose(after, before)


@pytest.mark.parametrize(
    ("precision", "stream"),
    [(None, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_the_residual_stream_is_bf16_under_autocast_to_bf16_alone(
    precision: torch.dtype | None, stream: torch.dtype
) -> None:
    """Its error stays that of bf16; in other precisions the output is that of the backbone."""
    torch.manual_seed(0)
    own = vision_backbone(width=16, layers=2, heads=2, patch=4, registers=1, image_size=16, layer_scale=0.3).eval()
    image, words, padding = torch.randn(8, 3, 16, 16), torch.randn(8, 3, 8), torch.zeros(8, 3, dtype=torch.bool)
    exact = own(pixel_values=image).last_hidden_state[:, 2:]
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        expected = own(pixel_values=image).last_hidden_state[:, 2:]
        first, second, last = VisionEncoder(own, {}, (0, 1))(image, words, padding)
    assert first.dtype == second.dtype == stream
    result = last.flatten(2).mT
    if precision is not torch.bfloat16:
        assert torch.equal(result, expected)
    else:
        assert (result - exact).square().mean().sqrt() < 3 * (expected - exact).square().mean().sqrt()
