"""Count the bytes, the floating-point operations, the least time and the memory of one training step on a GPU.

    python benchmarks/step_operators.py                # scale base, a batch of 32 -> step_operators.csv

The step runs on fake tensors: nothing is computed, and neither a GPU nor much memory is needed. The precision is the
scale's, deterministic algorithms are on as in training, and autocast and attention choose as on CUDA. An operator
counts the bytes of the tensors that it reads and writes; a view moves none. Operations are those of torch's counter.
The time of an operator is that of its bytes at an H100's bandwidth or of its operations at its bf16 rate, whichever is
longer. A real step takes longer. The memory is the largest sum of the bytes of all tensors that live at one time:
weights, what autograd saves, gradients and the optimizer's state.
"""

import argparse
import weakref
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from measured import with_scan, write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from wimfris.measure.fake_step import watch_step
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.determinism import be_deterministic

HERE = Path(__file__).parent
VARIANTS = (
    "full",
    "detris_adapters_detris_neck",
    "etris_adapters_etris_neck",
    "lora",
    "bottleneck",
    "finetune",
)
BYTES_A_SECOND, OPERATIONS_A_SECOND = 3.0e12, 742e12  # of an H100 SXM: measured copies and bf16 matrix products
UNMOVED = ("_unsafe_view", "empty", "empty_like", "new_empty", "new_empty_strided")  # they neither read nor write


def _bytes(x: torch.Tensor) -> int:
    """Return the bytes of a tensor; an expanded one is read from fewer."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Traffic(TorchDispatchMode):
    """Sums calls, bytes, operations and least seconds by operator, and the bytes that live at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, packet = function(*args, **kwargs), function.overloadpacket
        if function.namespace == "prim":  # questions about a tensor, such as its device
            return out
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        for tensor in tensors:
            self._note(tensor.untyped_storage())
        moved = 0 if function.is_view or packet.__name__ in UNMOVED else sum(map(_bytes, tensors))
        operations = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        seconds = max(moved / BYTES_A_SECOND, operations / OPERATIONS_A_SECOND)
        sums = self.sums[packet.__name__]
        for place, value in enumerate((1, moved, operations, seconds)):
            sums[place] += value
        return out

    @property
    def total(self) -> list[float]:
        """Calls, bytes, operations and least seconds of all operators."""
        return [sum(values) for values in zip(*self.sums.values(), strict=True)]

    def _note(self, storage: torch.UntypedStorage) -> None:
        """Count a storage from its first use until it is freed."""
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def count_step(settings: Settings, batch: int) -> Traffic:
    """Count a training step as on CUDA."""
    be_deterministic(settings)  # as in training
    watcher = Traffic()
    watch_step(settings, batch, watcher, as_on_cuda=True)
    return watcher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--out", type=Path, default=HERE / "step_operators.csv")
    options = parser.parse_args()
    params = read_params().at_scale(options.scale)
    rows: list[dict[str, object]] = []
    for variant, backend in [(name, "triton") for name in options.variants] + [("full", "reference")]:
        watcher = count_step(with_scan(params.settings(variant), backend), options.batch)
        by_time, total = sorted(watcher.sums.items(), key=lambda item: -item[1][3]), watcher.total
        for name, (calls, moved, operations, seconds) in [("total", total), *by_time]:
            if moved or operations:
                rows.append(
                    {
                        "scale": options.scale,
                        "batch": options.batch,
                        "variant": variant,
                        "backend": backend,
                        "operator": name,
                        "calls": calls,
                        "megabytes": round(moved / 1e6, 1),
                        "gflop": round(operations / 1e9, 1),
                        "milliseconds": round(1e3 * seconds, 3),
                        "peak_gigabytes": round(watcher.peak / 1e9, 1) if name == "total" else None,
                    }
                )
        print(f"{variant}, {backend}: {1e3 * total[3]:.1f} ms, {total[1] / 1e9:.0f} GB, peak {watcher.peak / 1e9:.1f}")
    write(rows, options.out, options)


if __name__ == "__main__":
    main()
