"""The operators of a training step, held against those that torch cannot run deterministically on CUDA."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wimfris
from wimfris.errors import UserError
from wimfris.measure.fake_step import watch_step
from wimfris.model.windows import window_index
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.determinism import CUBLAS, be_deterministic, operator_without_kernel

PARAMS = Path(wimfris.__file__).parents[1] / "params.yaml"
FAMILIES = tuple(json.loads((PARAMS.parent / "tests" / "golden" / "smoke_losses.json").read_text()))
# The functions that raise in the documentation of `torch.use_deterministic_algorithms` (2.13), by their operators.
WITHOUT_KERNEL = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss_forward",
    "nll_loss2d_forward",
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
    "put_",
    "histc",
    "bincount",
    "median",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "cumsum of floats",
    "scatter_reduce",
    # The documentation counts these as deterministic. Their sums over an index of several dimensions are not in every
    # release, and an index does the same.
    "scatter_add",
    "scatter_add_",
}


class Operators(TorchDispatchMode):
    """Notes the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        floats = name == "cumsum" and args[0].is_floating_point()
        self.names.add("cumsum of floats" if floats else name)
        return function(*args, **kwargs or {})


def settings_of(variant: str, scale: str, device: str = "cpu") -> Settings:
    settings = read_params(PARAMS).at_scale(scale).settings(variant)
    train = settings.train.model_copy(update={"device": device, "precision": "fp32"})
    model = settings.model.model_copy(update={"scan": "reference"})  # the other backends bring their own kernels
    return settings.model_copy(update={"train": train, "model": model})


def operators(settings: Settings) -> set[str]:
    watcher = Operators()
    watch_step(settings, 2, watcher)
    return watcher.names


@pytest.mark.slow
@pytest.mark.parametrize("variant", FAMILIES)
def test_every_operator_of_a_step_has_a_deterministic_kernel(variant: str) -> None:
    names = operators(settings_of(variant, "smoke"))
    assert {"convolution_backward", "_fused_adamw_"} <= names, "forward, backward and update are seen"
    assert not names & WITHOUT_KERNEL


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        *("full", "finetune", "mixing_ssd", "pwam"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("cross", "text_words", "etris_adapters_etris_neck")),
    ],
)
def test_at_the_papers_scale_finetuning_alone_has_an_operator_without_one(variant: str) -> None:
    """DINOv2's positions are interpolated in every pass there, and `finetune` trains them."""
    settings = settings_of(variant, "base", "cuda")
    expected = {"_upsample_bicubic2d_aa_backward"} if variant == "finetune" else set()
    assert operators(settings) & WITHOUT_KERNEL == expected
    assert (operator_without_kernel(settings) is not None) == bool(expected)
    assert operator_without_kernel(settings_of(variant, "base", "cpu")) is None


@pytest.mark.slow
def test_a_fake_step_leaves_no_fake_index_behind() -> None:
    operators(settings_of("full", "smoke"))
    assert type(window_index(4, 4, (2, 2))[0]) is torch.Tensor


@pytest.fixture
def restored() -> Any:
    """Torch's switches, put back after the test."""
    threads, before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.set_deterministic_debug_mode, before)
        yield


@pytest.mark.usefixtures("restored")
def test_training_is_strict_but_where_a_kernel_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for variant, warns in (("full", False), ("finetune", True)):
        be_deterministic(settings_of(variant, "base", "cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warns
        assert ("no deterministic CUDA kernel" in capsys.readouterr().err) is warns


@pytest.mark.usefixtures("restored")
def test_cublas_is_set_before_cuda_starts_and_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("full", "base", "cuda")
    be_deterministic(settings)  # importing the package has set it
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(UserError, match=f"{CUBLAS} must be :4096:8 or :16:8, got ':0:0'; unset it"):
        be_deterministic(settings)
    be_deterministic(settings_of("full", "smoke"))  # a CPU does not need it
