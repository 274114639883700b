from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.rivals.bottleneck import Bottleneck
from wimfris.rivals.detris import DenseAligner, DenseMixer, DenseTextAdapter, GatedNeck
from wimfris.rivals.etris import TextBridge, VisionBridge
from wimfris.rivals.lora import inject_lora

GRID, PREFIX, WIDTH, TEXT = (3, 4), 3, 16, 12  # patches; class and two register tokens; widths of the encoders


@pytest.fixture
def guidance() -> Guidance:
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    return Guidance(torch.randn(2, 5, TEXT, dtype=torch.float64), padding, GRID)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, PREFIX + GRID[0] * GRID[1], WIDTH, dtype=torch.float64)


def with_words(guidance: Guidance, change: Tensor) -> Guidance:
    return Guidance(guidance.words + change, guidance.padding, guidance.grid)


@pytest.fixture
def aligner(stir: Any) -> Any:
    return stir(DenseAligner(WIDTH, TEXT, 8, attention_width=4, heads=2, scale=0.2)).double().eval()


def test_each_dense_branch_reads_the_ones_before_it(stir: Any) -> None:
    mixer: Any = stir(DenseMixer(16, 2)).double().eval()
    x = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    out = mixer(x)
    assert out.shape == x.shape
    first, second, third = out.split([8, 4, 4], dim=1)
    torch.testing.assert_close(first, mixer.branch1(x))
    torch.testing.assert_close(second, mixer.branch2(torch.cat([x, first], dim=1)))
    torch.testing.assert_close(third, mixer.branch3(torch.cat([x, first, second], dim=1)))
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        DenseMixer(6, 2)


def test_the_dense_aligner_doubles_its_prefix(aligner: Any, guidance: Guidance, tokens: Tensor) -> None:
    out = aligner(tokens, guidance)
    assert out.shape == tokens.shape
    prefix = F.relu(aligner.down(tokens[:, :PREFIX]))
    torch.testing.assert_close(out[:, :PREFIX], 0.2 * aligner.up(2 * prefix))
    patches = F.relu(aligner.down(tokens[:, PREFIX:]))
    grid = patches.transpose(1, 2).reshape(2, 8, *GRID)
    mixed = (aligner.mixer(grid) + grid).flatten(2).transpose(1, 2)
    expected = 0.2 * aligner.up(patches + aligner.cross(mixed, guidance.words))
    torch.testing.assert_close(out[:, PREFIX:], expected)


def test_the_dense_aligner_attends_to_padding_too(aligner: Any, guidance: Guidance, tokens: Tensor) -> None:
    changed = aligner(tokens, with_words(guidance, guidance.padding[..., None].double()))
    assert (changed[0] != aligner(tokens, guidance)[0]).any()


def test_the_dense_text_adapter_reaches_two_words_each_way_and_leaves_the_first(stir: Any) -> None:
    adapter: Any = stir(DenseTextAdapter(TEXT, 16, scale=0.2)).double().eval()
    x = torch.randn(1, 9, TEXT, dtype=torch.float64)
    torch.testing.assert_close(adapter(x)[:, 0], 0.2 * adapter.up(2 * F.relu(adapter.down(x[:, 0]))))
    reached = torch.autograd.functional.jacobian(lambda given: adapter(given)[0, 5].sum(), x)[0].abs().sum(-1) > 0
    assert reached[5] and not reached[0]
    # 3 reads 1 to each side, 5 reads 2 of what 3 has read
    assert not reached[:2].any() and set(reached.nonzero().flatten().tolist()) <= {2, 3, 4, 5, 6, 7, 8}
    first = torch.autograd.functional.jacobian(lambda given: adapter(given)[0, 0].sum(), x)[0].abs().sum(-1) > 0
    assert first.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("residual", [True, False])
def test_a_sentence_gates_every_channel_of_every_stage(stir: Any, residual: bool) -> None:
    neck: Any = stir(GatedNeck(WIDTH, TEXT, 8, heads=2, residual=residual)).double().eval()
    stages = [torch.randn(2, WIDTH, *GRID, dtype=torch.float64) for _ in range(3)]
    words, sentence = torch.randn(2, 5, TEXT, dtype=torch.float64), torch.randn(2, TEXT, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    text = neck.text(sentence)
    gated = []
    for stage, project, gate in zip(stages, neck.projections, neck.gates, strict=True):
        attention = gate.attention
        value = text @ attention.in_proj_weight[16:].T + attention.in_proj_bias[16:]
        gated.append(project(stage) * attention.out_proj(value)[:, :, None, None])
    fused = neck.aggregate(torch.cat(gated, dim=1))
    out = neck(stages, words, sentence, padding)
    assert out.shape == (2, 8, *GRID)
    torch.testing.assert_close(out - neck.coordinates(fused), fused if residual else torch.zeros_like(fused))
    assert torch.equal(out, neck(stages, words + 1, sentence, ~padding))


def test_padded_words_do_not_change_the_bridge(stir: Any, guidance: Guidance, tokens: Tensor) -> None:
    bridge = stir(VisionBridge(WIDTH, TEXT, 8, heads=2)).double()
    out = bridge(tokens, guidance)
    assert out.shape == tokens.shape and not out[:, :PREFIX].any() and out[:, PREFIX:].any()
    change = guidance.padding[..., None].double()
    torch.testing.assert_close(bridge(tokens, with_words(guidance, 9 * change)), out)
    assert not torch.allclose(bridge(tokens, with_words(guidance, 9 * (1 - change))), out)


def test_the_text_bridge_sees_no_later_word(stir: Any) -> None:
    bridge = stir(TextBridge(TEXT, 8, heads=2)).double()
    x = torch.randn(2, 6, TEXT, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(bridge(changed)[:, :4], bridge(x)[:, :4])
    assert not torch.allclose(bridge(changed)[:, 4:], bridge(x)[:, 4:])
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(bridge(changed)[:, 4:], bridge(x)[:, 4:])


def test_a_bottleneck_starts_at_zero(stir: Any, guidance: Guidance, tokens: Tensor) -> None:
    adapter = Bottleneck(WIDTH, 8, scale=0.3).double()
    assert not adapter(tokens, guidance).any()
    stir(adapter)
    expected = 0.3 * adapter.up(F.relu(adapter.down(tokens)))
    torch.testing.assert_close(adapter(tokens, guidance), expected)
    torch.testing.assert_close(adapter(tokens), expected)


@pytest.mark.parametrize("part", ["text_backbone", "vision_backbone"])
def test_lora_adds_a_product_of_low_rank_to_queries_and_values(build: Any, stir: Any, part: str) -> None:
    backbone = build[part]().requires_grad_(False)
    before = dict(backbone.named_modules())
    inject_lora(backbone, 3, 6.0)
    after = dict(backbone.named_modules())
    changed = {name for name in before if name.endswith(("q_proj", "v_proj"))}
    layers = {name.rpartition(".")[0] for name in changed}
    assert {name for name in before if after[name] is not before[name]} == changed and len(changed) == 2 * len(layers)
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == 2 * len(layers) * 2 * 16 * 3
    for name in changed:
        inner: Any = stir(after[name])
        x, low, high = torch.randn(2, 5, 16), inner.lora_A["default"].weight, inner.lora_B["default"].weight
        weight = inner.base_layer.weight + 6 / 3 * high @ low
        torch.testing.assert_close(inner(x), F.linear(x, weight, inner.base_layer.bias))
