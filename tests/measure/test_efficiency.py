"""What is counted equals a count by hand, and the profile; what is timed comes out whole."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wimfris.errors import UserError
from wimfris.measure.efficiency import (
    BATCHES,
    count_flops,
    count_step_flops,
    counting,
    measure,
    measure_apart,
    quartiles,
)
from wimfris.measure.parameters import blank_segmenter, parameters, trained_parameters
from wimfris.model import mamba as mamba_module
from wimfris.model.mamba import Mamba
from wimfris.model.scan import conv_flops, scan_flops
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]


def test_a_mamba_block_counts_as_by_hand() -> None:
    """Two sequences of 5 tokens, width 8, inner 16, 3 states, rank 1: four matrix products, convolution and scan."""
    block, tokens = Mamba(8, state=3, conv=4, expand=2), 2 * 5
    own = mamba_module.selective_scan, mamba_module.causal_conv_silu
    with counting() as counter:
        block(torch.randn(2, 5, 8))
    products = 2 * tokens * (8 * 32 + 16 * (1 + 2 * 3) + 1 * 16 + 16 * 8)
    assert scan_flops(2, 5, 16, 3) == 2 * 5 * 16 * (9 * 3 + 2)
    assert conv_flops(2, 5, 16, 4) == 2 * 5 * 16 * 2 * 4
    assert counter.get_total_flops() == products + conv_flops(2, 5, 16, 4) + scan_flops(2, 5, 16, 3)
    assert own == (mamba_module.selective_scan, mamba_module.causal_conv_silu)  # as they were


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
def smoke(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The project's params at scale smoke."""
    monkeypatch.chdir(ROOT)
    return read_params().model_copy(update={"scale": "smoke"})


def test_parts_add_up_and_the_window_moves_the_scan_alone(smoke) -> None:  # type: ignore[no-untyped-def]
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


def test_a_step_counts_forward_and_backward_once(smoke) -> None:  # type: ignore[no-untyped-def]
    """Between two and three forwards: frozen weights have no gradients. What is computed again is not counted."""
    settings, scan = smoke.settings("full"), mamba_module.selective_scan
    forward, step = count_flops(settings)["total"], count_step_flops(settings, 2)
    assert 2 * forward < step / 2 < 3 * forward
    train = settings.train.model_copy(update={"gradient_checkpointing": True})
    assert count_step_flops(settings.model_copy(update={"train": train}), 2) == step
    assert mamba_module.selective_scan is scan  # as it was


@pytest.mark.parametrize("backend", ["auto", "cpu", "triton"])
def test_the_backend_does_not_change_the_count(smoke, backend: str) -> None:  # type: ignore[no-untyped-def]
    settings = smoke.settings("full")
    other = settings.model_copy(update={"model": settings.model.model_copy(update={"scan": backend})})
    assert count_flops(other) == count_flops(settings)


@pytest.mark.parametrize("variant", ["full", "none", "detris_adapters_detris_neck", "lora", "finetune"])
def test_a_blank_model_has_the_parameters_of_the_real_one(project, variant: str) -> None:  # type: ignore[no-untyped-def]
    from wimfris.encoders.load import load_tokenizer
    from wimfris.training.build import build_segmenter

    settings = project.params().settings(variant)
    blank, real = blank_segmenter(settings), build_segmenter(settings, load_tokenizer(settings))
    shapes = [{name: (p.shape, p.requires_grad) for name, p in model.named_parameters()} for model in (blank, real)]
    assert shapes[0] == shapes[1]
    assert trained_parameters(settings)["total"] == sum(p.numel() for p in real.parameters() if p.requires_grad)
    parts = parameters(blank, trained=False)
    adapters = sum(parts[part] for part in ("text adapters", "vision adapters", "backbones"))
    assert parts["total"] == sum(p.numel() for p in real.parameters()) and parts["adapters"] == adapters


def test_the_papers_sizes(smoke) -> None:  # type: ignore[no-untyped-def]
    """2.997M in the adapters, and the hub's encoders: CLIP's text tower with projection and DINOv2-B with registers."""
    settings = smoke.model_copy(update={"scale": "base"}).settings("full")
    assert trained_parameters(settings)["adapters"] == 2_997_174
    frozen = parameters(blank_segmenter(settings), trained=False)["backbones"]
    assert frozen == 63_428_096 + 86_583_552


def test_measuring_leaves_every_time_and_the_memory(smoke) -> None:  # type: ignore[no-untyped-def]
    found = measure(smoke.settings("full"), repetitions=2)
    assert set(found.latency) == set(found.neck) == {str(batch) for batch in BATCHES}
    times = [*found.latency.values(), *found.neck.values(), found.step]
    assert all(len(part) == 2 and min(part) > 0 for part in times)
    assert found.device and found.threads >= 1
    if sys.platform == "linux":
        assert all(value is not None and value >= 0 for value in found.memory.values())


def test_a_variant_that_cannot_be_measured_is_told_in_one_line(smoke) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"measuring nothing failed: .*no variant 'nothing'"):
        measure_apart("nothing", "smoke", 1)


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)


def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("efficiency_study", ROOT / "studies" / "efficiency.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_writes_its_tables(project, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    module = study()
    monkeypatch.setattr(module, "ROWS", {"full": "full (window 4)", "no_neck": "no neck", "unknown": "left out"})
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "PAPERS_SCALE", "smoke")
    monkeypatch.setattr(
        module, "measure_apart", lambda variant, scale, n: measure(project.params().settings(variant), n)
    )
    module.run(["--repetitions", "2"])
    folder = project.folder / "reports" / "tables" / "scenes-smoke"
    text = (folder / "efficiency.md").read_text()
    assert "torch" in text and "no neck" in text and "unknown" not in text
    assert (project.folder / "reports" / "figures" / "scenes-smoke" / "efficiency.png").stat().st_size > 1000
    header = (folder / "efficiency.csv").read_text().splitlines()[0].split(",")
    assert {"latency_ms_1", "latency_ms_1_q1", "gflops_scan", "base_gflops_total", "trained_neck"} <= set(header)
    with pytest.raises(UserError, match="--repetitions -1"):
        module.run(["--repetitions", "-1"])
