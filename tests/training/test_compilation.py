"""A compiled model has the outputs, the parameters and the initial state of the eager model."""

import copy
import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from wimfris.encoders.load import load_tokenizer
from wimfris.model.segmenter import Segmenter
from wimfris.runs.manifest import read_manifest
from wimfris.settings.schema import Settings
from wimfris.training.build import build_loss, build_segmenter
from wimfris.training.compilation import compile_segmenter

pytestmark = pytest.mark.slow

ALONE = pytest.mark.skipif(
    "WIMFRIS_TEST_COMPILE" not in os.environ,
    reason=(
        "takes minutes, and needs a process that has compiled nothing else: "
        "WIMFRIS_TEST_COMPILE=1 pytest tests/training/test_compilation.py"
    ),
)
CUDA = torch.cuda.is_available()
WITHOUT_CODE = "aot_eager_decomp_partition"  # traces and differentiates like inductor, and compiles no C++


def smoke_model(project: Any, device: str = "cpu", **train: Any) -> tuple[Settings, Segmenter]:
    """Return the smoke model on a device, without dropout: a compiler draws it in another order."""
    settings = project.params().settings()
    decoder = settings.model.decoder.model_copy(update={"dropout": 0.0})
    model = settings.model.model_copy(update={"decoder": decoder})
    settings = settings.model_copy(update={"model": model, "train": settings.train.model_copy(update=train)})
    return settings, build_segmenter(settings, load_tokenizer(settings)).to(device).train()


def step(segmenter: Segmenter, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits and the gradients of a batch."""
    torch.manual_seed(3)
    size = settings.data.image_size
    token_ids = torch.full((settings.train.batch_size, settings.data.length), segmenter.text.end_token)
    token_ids[:, :4] = torch.randint(1, 9, (settings.train.batch_size, 4))
    device = next(segmenter.parameters()).device
    output = segmenter(torch.randn(settings.train.batch_size, 3, size, size).to(device), token_ids.to(device))
    (output.logits.square().mean() + output.fused.square().mean() + output.anchor.square().mean()).backward()
    return output.logits.detach(), {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}


def assert_equivalent(project: Any, backend: str, device: str = "cpu", **train: Any) -> None:
    settings, eager = smoke_model(project, device, **train)
    compiled = copy.deepcopy(eager)
    random, state = torch.get_rng_state(), copy.deepcopy(eager.state_dict())
    assert compile_segmenter(compiled, settings, torch.device(device), backend)
    assert torch.equal(torch.get_rng_state(), random) and compiled.training
    assert all(p.grad is None for p in compiled.parameters())
    compiled_state = compiled.state_dict()
    assert list(compiled_state) == list(state)
    assert all(torch.equal(compiled_state[name], state[name]) for name in state)
    (logits, gradients), (eager_logits, eager_gradients) = step(compiled, settings), step(eager, settings)
    torch.testing.assert_close(logits, eager_logits, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == eager_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, eager_gradients[name], rtol=1e-3, atol=1e-5, msg=name)
    for (name, value), other in zip(compiled.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4, msg=name)


@ALONE
def test_traced_model_with_gradient_checkpointing_is_equivalent(project: Any) -> None:
    assert_equivalent(project, WITHOUT_CODE, gradient_checkpointing=True)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=[ALONE, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")]),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]),
    ],
)
def test_compiled_model_is_equivalent(device: str, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits of a float32 are too few to compare
    torch.compiler.reset()
    assert_equivalent(project, "inductor", device)


def test_run_continues_eagerly_if_compilation_fails(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line says so, and the run has the bits of a run without compilation."""
    project.edit(scales__smoke__train__epochs=1)
    project.train()
    eager_weights = project.files().weights.read_bytes()
    project.edit(scales__smoke__train__compile=True)

    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand more about it")

    monkeypatch.setattr("wimfris.training.compilation.compile_segmenter.__defaults__", (no_compiler,))
    capfd.readouterr()
    project.train()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "compile" in line.lower()]
    assert line.startswith("train.compile: the model does not compile here and runs eagerly (")
    assert "no C++ compiler" in line
    assert project.files().weights.read_bytes() == eager_weights
    manifest = read_manifest(project.files().manifest)
    assert manifest["settings"]["train"]["compile"] and not manifest["compiled"]


def test_forward_and_losses_are_one_graph_without_warnings(project: Any, recwarn: pytest.WarningsRecorder) -> None:
    settings, segmenter = smoke_model(project)
    loss, size, batch = build_loss(settings), settings.data.image_size, settings.train.batch_size

    @torch.compile(backend="eager", fullgraph=True, dynamic=False)  # type: ignore[untyped-decorator]  # a break raises
    def total(image: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        return loss(segmenter(image, token_ids), mask).total

    token_ids = torch.full((batch, settings.data.length), segmenter.text.end_token)
    total(torch.randn(batch, 3, size, size), token_ids, torch.zeros(batch, 1, size, size)).backward()
    assert not [warning for warning in recwarn if "lru_cache" in str(warning.message)]
