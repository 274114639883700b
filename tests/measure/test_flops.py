"""Counted operations equal a count by hand."""

from pathlib import Path

import pytest
import torch

from wimfris.measure.flops import count_flops, count_step_flops, counting
from wimfris.model import mamba as mamba_module
from wimfris.model import mamba2 as mamba2_module
from wimfris.model.mamba import Mamba
from wimfris.model.mamba2 import Mamba2
from wimfris.model.scan import conv_flops, scan_flops
from wimfris.model.scan.ssd import CHUNK
from wimfris.settings.params import Params, read_params

ROOT = Path(__file__).parents[2]


def test_a_mamba_block_counts_as_by_hand() -> None:
    """Two sequences of 5 tokens, width 8, inner 16, 3 states, rank 1: four matrix products, convolution and scan."""
    block, tokens = Mamba(8, state=3, conv=4, expand=2), 2 * 5
    original = mamba_module.selective_scan, mamba_module.causal_conv_silu
    with counting() as counter:
        block(torch.randn(2, 5, 8))
    products = 2 * tokens * (8 * 32 + 16 * (1 + 2 * 3) + 1 * 16 + 16 * 8)
    assert scan_flops(2, 5, 16, 3) == 2 * 5 * 16 * (9 * 3 + 2)
    assert conv_flops(2, 5, 16, 4) == 2 * 5 * 16 * 2 * 4
    assert counter.get_total_flops() == products + conv_flops(2, 5, 16, 4) + scan_flops(2, 5, 16, 3)
    assert original == (mamba_module.selective_scan, mamba_module.causal_conv_silu), "counting restores both"


@pytest.mark.parametrize("length", [5, 130])
def test_a_mamba2_block_counts_as_by_hand(length: int) -> None:
    """Width 8, inner 16, 2 heads of 8 channels, 3 states: projections, convolution, and the products of the chunks."""
    block, chunks = Mamba2(8, heads=2, state=3, conv=4, expand=2), -(-length // CHUNK)
    size = -(-length // chunks)
    original = mamba2_module.causal_conv_silu
    with counting() as counter:
        block(torch.randn(2, length, 8))
    projections = 2 * 2 * length * 8 * (16 + 22 + 2 + 16)
    products = 2 * 2 * chunks * size**2 * (3 + 2 * size + 2 * 8)  # C B^T; sums of decays, and y, of each head
    if chunks > 1:
        products += 2 * 2 * 2 * chunks * 2 * size * 3 * 8  # the states at the chunks' ends, and what is read of them
        products += 2 * 2 * 2 * chunks**2 * (chunks + 3 * 8)  # between chunks: sums of decays, states
    assert counter.get_total_flops() == projections + conv_flops(2, length, 22, 4) + products
    assert mamba2_module.causal_conv_silu is original, "counting restores it"


@pytest.mark.slow
def test_parts_past_the_paper_count_what_they_run(smoke: Params) -> None:
    """A second pass scans once more, four directions four times; all words are 15 tokens more in each window."""
    counts = {name: count_flops(smoke.settings(name)) for name in ("full", "passes_2", "cross", "text_words")}
    adapter = scan_flops(1, 16, 8, 4)  # MTA's, in all of them
    neck = {name: count["scan"] - adapter for name, count in counts.items()}
    assert neck["full"] == scan_flops(4, 17, 16, 4)
    assert neck["passes_2"] == neck["full"] + scan_flops(9, 17, 16, 4), "a window and a half wide: three by three"
    assert neck["cross"] == 4 * neck["full"] and neck["text_words"] == scan_flops(4, 32, 16, 4)
    for name in ("windows_2_4_8_grid", "mixing_ssd", "pwam", "passes_2", "cross", "text_words"):
        settings = smoke.settings(name)
        forward, step = count_flops(settings)["total"], count_step_flops(settings, 2)
        assert 2 * forward < step / 2 < 3 * forward, name


def test_counting_does_not_change_what_is_computed() -> None:
    block, x = Mamba(8, state=3, conv=4, expand=2), torch.randn(2, 5, 8)
    with counting():
        counted = block(x)
    torch.testing.assert_close(counted, block(x))


def test_attention_counts() -> None:
    """Self-attention of 7 tokens, width 8, two heads: the projections and the two products, whichever kernel runs."""
    attention, x = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 7, 8)
    with counting() as counter:
        attention(x, x, x, need_weights=False)
    assert counter.get_total_flops() == 2 * 7 * 8 * (3 * 8 + 8) + 2 * 2 * 7 * 7 * 8


@pytest.fixture
def smoke() -> Params:
    """The project's params at scale smoke."""
    return read_params(ROOT / "params.yaml").model_copy(update={"scale": "smoke"})


def test_parts_add_up_and_the_window_moves_the_scan_alone(smoke: Params) -> None:
    full, whole = (count_flops(smoke.settings(variant)) for variant in ("full", "no_window"))
    parts = ("text", "vision", "neck", "decoder", "projector")
    alignment = 2 * 16 * 16
    assert full["total"] == sum(full[part] for part in parts) + alignment
    assert 0 < full["adapters"] < full["text"] + full["vision"] and 0 < full["scan"] < full["total"]
    # 64 tokens and 4 text tokens instead of one: in the products of the Mamba block and its convolution, in the scan
    inner, state, rank, width, taps = 16, 4, 1, 16, 4
    a_token = 2 * (width * 2 * inner + inner * taps + inner * (rank + 2 * state) + rank * inner + inner * width)
    assert full["scan"] - whole["scan"] == scan_flops(1, 3, inner, state)
    assert full["neck"] - whole["neck"] == 3 * a_token + scan_flops(1, 3, inner, state)
    assert {part: full[part] for part in ("text", "vision", "decoder")} == {
        part: whole[part] for part in ("text", "vision", "decoder")
    }


@pytest.mark.slow
def test_a_step_counts_forward_and_backward_once(smoke: Params) -> None:
    """Between two and three forwards: frozen weights have no gradients, and nothing that is repeated counts."""
    settings, scan = smoke.settings("full"), mamba_module.selective_scan
    forward, step = count_flops(settings)["total"], count_step_flops(settings, 2)
    assert 2 * forward < step / 2 < 3 * forward
    train = settings.train.model_copy(update={"gradient_checkpointing": True})
    assert count_step_flops(settings.model_copy(update={"train": train}), 2) == step
    assert mamba_module.selective_scan is scan, "counting restores it"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "cpu", "triton"])
def test_the_backend_does_not_change_the_count(smoke: Params, backend: str) -> None:
    settings = smoke.settings("full")
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"scan": backend})})
    assert count_flops(other) == count_flops(settings)
