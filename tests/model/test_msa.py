import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wimfris.encoders.vision import Guidance
from wimfris.model.msa import MultiScaleAligner, RFMixer
from wimfris.model.mta import MambaTextAdapter

GRID, PREFIX = (3, 4), 3  # patches; class and two register tokens


@pytest.fixture
def guidance() -> Guidance:
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    return Guidance(torch.randn(2, 5, 16, dtype=torch.float64), padding, GRID)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, PREFIX + GRID[0] * GRID[1], 16, dtype=torch.float64)


@pytest.fixture
def msa(build: Any, stir: Any) -> MultiScaleAligner:
    return stir(build["msa"]()).double()


def test_mixer_equals_full_kernels(stir: Any) -> None:
    """DWConv(c x 1)(DWConv(1 x c)(x)) is one depthwise convolution with the outer product of the two kernels."""
    mixer = stir(RFMixer(6, (3, 5, 7))).double()
    for branch in mixer.branches:
        torch.nn.init.zeros_(branch[0].bias)  # between the two, it would meet the border's zeros
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    total = x.clone()
    for size, branch in zip((3, 5, 7), mixer.branches, strict=True):
        kernel = branch[1].weight * branch[0].weight  # (r, 1, c, 1) * (r, 1, 1, c)
        assert kernel.shape == (6, 1, size, size)
        total += F.conv2d(x, kernel, branch[1].bias, padding=size // 2, groups=6)
    torch.testing.assert_close(mixer(x), F.relu(total) * x)


@pytest.mark.parametrize("kind", ["rfmixer", "depthwise", "dilated"])
@pytest.mark.parametrize("size", [3, 7])
def test_every_mixer_has_the_receptive_field_of_its_kernel(stir: Any, kind: str, size: int) -> None:
    """A cell reads cells up to size // 2 away and no further; `dilated` only those at that distance and itself."""
    mixer = stir(RFMixer(2, (size,), kind)).double()
    x = torch.rand(1, 2, 11, 11, dtype=torch.float64, requires_grad=True)
    total = x + sum(branch(x) for branch in mixer.branches)
    (grad,) = torch.autograd.grad(total[0, :, 5, 5].sum(), x)
    reached = {tuple(cell) for cell in (grad[0].abs().sum(0) > 0).nonzero().sub(5).tolist()}
    reach = range(-(size // 2), size // 2 + 1, size // 2 if kind == "dilated" else 1)
    assert reached == {(row, column) for row in reach for column in reach}
    torch.testing.assert_close(mixer(x), F.relu(total) * x)


def test_no_mixer_leaves_the_patches_as_they_are() -> None:
    msa = MultiScaleAligner(
        8, 6, 4, heads=2, kernels=(3,), mixer="none", emphasis="learned", emphasis_initial=0.5, init="zero"
    )
    assert isinstance(msa.mixer, torch.nn.Identity)


def test_the_equation(msa: Any, guidance: Guidance, tokens: Tensor) -> None:
    x = F.relu(tokens @ msa.down.weight.T + msa.down.bias)
    patches = x[:, PREFIX:].transpose(1, 2).reshape(2, 8, *GRID)
    mixed = msa.mixer(patches).reshape(2, 8, -1).transpose(1, 2)
    attention = msa.attention
    query_weight, key_weight, value_weight = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)
    query, key = mixed @ query_weight.T + query_bias, guidance.words @ key_weight.T + key_bias
    value = guidance.words @ value_weight.T + value_bias
    query, key, value = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (query, key, value))
    scores = (query @ key.mT / math.sqrt(4)).masked_fill(guidance.padding[:, None, None], -math.inf)
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(
        2
    ) @ attention.out_proj.weight.T + attention.out_proj.bias
    inner = torch.cat([x[:, :PREFIX], mixed + attended], dim=1)
    expected = torch.sigmoid(msa.emphasis.p) * (inner @ msa.up.weight.T + msa.up.bias)
    torch.testing.assert_close(msa(tokens, guidance), expected)


def test_class_and_register_tokens_bypass_mixer_and_attention(msa: Any, guidance: Guidance, tokens: Tensor) -> None:
    before = msa(tokens, guidance)
    changed = tokens.clone()
    changed[:, PREFIX:] += 1
    after = msa(changed, Guidance(guidance.words + 1, guidance.padding, GRID))
    torch.testing.assert_close(after[:, :PREFIX], before[:, :PREFIX], rtol=0, atol=0)
    changed = tokens.clone()
    changed[:, :PREFIX] += 1
    torch.testing.assert_close(msa(changed, guidance)[:, PREFIX:], before[:, PREFIX:], rtol=0, atol=0)
    bypass = msa.emphasis() * msa.up(F.relu(msa.down(tokens[:, :PREFIX])))
    torch.testing.assert_close(before[:, :PREFIX], bypass)


def test_patches_are_laid_out_as_the_grid(msa: Any, guidance: Guidance, tokens: Tensor) -> None:
    """With kernels up to 7 on a 3 x 20 grid, a patch reaches 3 columns to each side, and every row."""
    grid = (3, 20)
    tokens = torch.randn(1, PREFIX + 60, 16, dtype=torch.float64, requires_grad=True)
    out = msa(tokens, Guidance(guidance.words[:1], guidance.padding[:1], grid))
    (grad,) = torch.autograd.grad(out[0, PREFIX + 20 + 10].sum(), tokens)  # row 1, column 10
    reached = (grad[0, PREFIX:] != 0).any(-1).reshape(grid)
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[:, 7:14] = True
    assert (reached <= expected).all() and reached[1, 10]
    assert reached[0].any() and reached[2].any() and reached[1, 7] | reached[0, 7] | reached[2, 7]


def test_padded_words_change_nothing(msa: Any, guidance: Guidance, tokens: Tensor) -> None:
    before = msa(tokens, guidance)
    words = torch.where(guidance.padding[..., None], 99.0, guidance.words)
    torch.testing.assert_close(msa(tokens, Guidance(words, guidance.padding, GRID)), before, rtol=0, atol=0)
    longer = torch.cat([words, torch.full((2, 4, 16), -5.0, dtype=torch.float64)], dim=1)
    padding = torch.cat([guidance.padding, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(msa(tokens, Guidance(longer, padding, GRID)), before)


def test_emphasis_starts_at_initial_and_scales_the_output(build: Any, guidance: Guidance, tokens: Tensor) -> None:
    learned = build["msa"]().double()
    assert torch.isclose(learned.emphasis(), torch.tensor(0.3, dtype=torch.float64))
    one = learned(tokens, guidance) / learned.emphasis()
    for p in (-2.0, 0.0, 4.0):
        learned.emphasis.p.data.fill_(p)
        torch.testing.assert_close(learned(tokens, guidance), one / (1 + math.exp(-p)))
    learned(tokens, guidance).sum().backward()
    assert learned.emphasis.p.grad is not None and learned.emphasis.p.shape == ()


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_fixed_emphasis_is_no_parameter(build: Any, guidance: Guidance, tokens: Tensor, alpha: float) -> None:
    fixed, learned = build["msa"](emphasis=alpha).double(), build["msa"]().double()
    assert fixed.emphasis() == alpha
    assert learned.state_dict().keys() - fixed.state_dict().keys() == {"emphasis.p"}
    fixed.load_state_dict(learned.state_dict(), strict=False)
    torch.testing.assert_close(fixed(tokens, guidance) / alpha, learned(tokens, guidance) / learned.emphasis())


def test_untrained_it_adds_nothing_and_still_learns(build: Any, guidance: Guidance, tokens: Tensor) -> None:
    msa = build["msa"]("zero").double()
    out = msa(tokens, guidance)
    assert (out == 0).all()
    (out * torch.randn_like(out)).sum().backward()
    assert msa.up.weight.grad.abs().max() > 0


def test_parameters_at_base_are_what_the_paper_reports() -> None:
    """2.8M for MSA alone, 3.0M with MTA."""
    msa = MultiScaleAligner(
        768, 512, 160, heads=8, kernels=(3, 5, 7), emphasis="learned", emphasis_initial=0.5, init="zero"
    )
    mta = MambaTextAdapter(512, 24, state=16, conv=4, expand=2, scale=0.2, init="zero")
    aligners, adapters = (6 * sum(p.numel() for p in module.parameters()) for module in (msa, mta))
    assert aligners == pytest.approx(2.809e6, rel=1e-3)
    assert aligners + adapters == pytest.approx(2.997e6, rel=1e-3)
