"""The golden numbers of mamba_ssm's scan, as our scans take and give them: channels last."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

Golden = Callable[[str, str], dict[str, np.ndarray]]
GoldenScan = Callable[[str], tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]


@pytest.fixture
def golden_scan(golden: Golden) -> GoldenScan:
    """golden_scan(case): the inputs; a weight for the output; what the output, "y", is, and the derivatives of the
    weighted sum by the inputs.
    """

    def load(case: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        arrays = golden("mamba_reference.npz", case)

        def ours(name: str) -> Tensor:
            value = torch.from_numpy(arrays[name])
            return value.mT.contiguous() if value.dim() == 3 else value

        y = arrays["out/y"]
        weight = torch.from_numpy(np.cos(np.arange(y.size)).reshape(y.shape).astype(np.float32)).mT
        inputs = {name.removeprefix("in/"): ours(name) for name in arrays if name.startswith("in/")}
        return inputs, weight, {"y": ours("out/y")} | {name: ours(f"grad/{name}") for name in inputs}

    return load
