"""A compiled model is the same model: what it computes, what it is made of, what it starts training from."""

import copy
import json
import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.encoders.load import load_tokenizer
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter
from wimfris.training.compilation import compile_segmenter

CPU = torch.device("cpu")
ALONE = pytest.mark.skipif(
    "WIMFRIS_TEST_COMPILE" not in os.environ,
    reason="minutes, in a process that has compiled nothing else: WIMFRIS_TEST_COMPILE=1 pytest tests/test_compile.py",
)
WITHOUT_CODE = "aot_eager_decomp_partition"  # traces and differentiates as inductor does, and compiles no C++


def smoke(project: Any, **train: Any) -> tuple[Settings, Segmenter]:
    """The smoke model without dropout, which a compiler draws in another order."""
    settings = project.params().settings()
    decoder = settings.model.decoder.model_copy(update={"dropout": 0.0})
    model = settings.model.model_copy(update={"decoder": decoder})
    settings = settings.model_copy(update={"model": model, "train": settings.train.model_copy(update=train)})
    return settings, build_segmenter(settings, load_tokenizer(settings)).train()


def step(segmenter: Segmenter, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a batch."""
    torch.manual_seed(3)
    size = settings.data.image_size
    token_ids = torch.full((settings.train.batch_size, settings.data.length), segmenter.text.end_token)
    token_ids[:, :4] = torch.randint(1, 9, (settings.train.batch_size, 4))
    output = segmenter(torch.randn(settings.train.batch_size, 3, size, size), token_ids)
    (output.logits.square().mean() + output.fused.square().mean() + output.anchor.square().mean()).backward()
    return output.logits.detach(), {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}


def assert_equivalent(project: Any, backend: str, **train: Any) -> None:
    settings, plain = smoke(project, **train)
    compiled = copy.deepcopy(plain)
    random, state = torch.get_rng_state(), copy.deepcopy(plain.state_dict())
    assert compile_segmenter(compiled, settings, CPU, backend)
    assert torch.equal(torch.get_rng_state(), random) and compiled.training
    assert all(p.grad is None for p in compiled.parameters())
    found = compiled.state_dict()
    assert list(found) == list(state) and all(torch.equal(found[name], state[name]) for name in state)
    (logits, gradients), (expected, of_plain) = step(compiled, settings), step(plain, settings)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == of_plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, of_plain[name], rtol=1e-3, atol=1e-5, msg=name)
    for (name, value), other in zip(compiled.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)


@ALONE
@pytest.mark.slow
def test_a_traced_model_that_computes_layers_again_computes_the_same(project: Any) -> None:
    assert_equivalent(project, WITHOUT_CODE, gradient_checkpointing=True)


@ALONE
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_a_compiled_model_computes_the_same(project: Any) -> None:
    assert_equivalent(project, "inductor")


def test_where_compiling_fails_a_run_goes_on_eagerly(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With one line that says so, and to the bits of a run that was never to be compiled."""
    project.edit(scales__smoke__train__epochs=1)
    project.train()
    expected = project.outs()["weights/full-0.safetensors"]
    project.edit(scales__smoke__train__compile=True)

    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand more about it")

    monkeypatch.setattr("wimfris.training.compilation.compile_segmenter.__defaults__", (no_compiler,))
    capfd.readouterr()
    project.train()
    told = [line for line in capfd.readouterr().err.splitlines() if "compile" in line.lower()]
    assert len(told) == 1 and told[0].startswith("train.compile: the model does not compile here and runs eagerly (")
    assert "no C++ compiler" in told[0]
    assert project.outs()["weights/full-0.safetensors"] == expected
    manifest = json.loads((project.runs / "manifests" / "full-0.json").read_text())
    assert manifest["settings"]["train"]["compile"] and not manifest["compiled"]
