"""The operators of a training step on fake tensors are those that run on CUDA."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import wimfris
from wimfris.measure.fake_step import watch_step
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow


class Names(TorchDispatchMode):
    """Counts the operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def test_attention_is_fused_and_triton_runs_the_scan() -> None:
    settings = read_params(Path(wimfris.__file__).parents[1] / "params.yaml").at_scale("smoke").settings("full")
    train = settings.train.model_copy(update={"precision": "bf16"})
    model = settings.model.model_copy(update={"scan": "triton"})
    names = Names()
    watch_step(settings.model_copy(update={"train": train, "model": model}), 2, names, as_on_cuda=True)
    forward = {name for name in names.counts if "attention" in name and not name.endswith("backward")}
    assert forward == {"_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"}
    assert names.counts["fused_scan"] == names.counts["fused_scan_backward"] > 0
    assert not names.counts["_softmax"] and not names.counts["_safe_softmax"], "no attention weights are stored"
