"""Count the bytes and the floating-point operations of every operator of one training step, on fake tensors.

    python benchmarks/step_operators.py                # scale base, a batch of 32 -> step_operators.csv

Nothing is computed, and neither a GPU nor much memory is needed. An operator counts the bytes of the tensors that it
reads and writes; a view moves none. Operations are those of torch's counter. The step is the CPU's with the scale's
precision: on CUDA autocast and attention differ in a few operators, and deterministic upsampling reads and writes
more. Every operator counts as if each of its tensors crossed the memory bus once.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from measured import write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from wimfris.measure.fake_step import watch_step
from wimfris.settings.params import read_params

HERE = Path(__file__).parent
VARIANTS = (
    "full",
    "detris_adapters_detris_neck",
    "etris_adapters_etris_neck",
    "lora",
    "bottleneck",
    "finetune",
)
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # torch's counter does not know it

UNMOVED = ("_unsafe_view", "empty", "empty_like", "new_empty", "new_empty_strided")  # they neither read nor write


def _bytes(x: torch.Tensor) -> int:
    """Return the bytes of a tensor; an expanded one is read from fewer."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Traffic(TorchDispatchMode):
    """Sums calls, bytes and operations by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, packet = function(*args, **kwargs), function.overloadpacket
        if function.namespace == "prim":  # questions about a tensor, such as its device
            return out
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        moved = 0 if function.is_view or packet.__name__ in UNMOVED else sum(map(_bytes, tensors))
        sums = self.sums[packet.__name__]
        for place, value in enumerate((1, moved, self._operations(packet, args, kwargs, out))):
            sums[place] += value
        return out

    @staticmethod
    def _operations(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
        if packet.__name__ == ATTENTION:
            return sdpa_flop_count(*(x.shape for x in args[:3]))
        if packet.__name__ == f"{ATTENTION}_backward":
            return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--out", type=Path, default=HERE / "step_operators.csv")
    options = parser.parse_args()
    params = read_params().at_scale(options.scale)
    rows: list[dict[str, object]] = []
    for variant in options.variants:
        settings = params.settings(variant)
        settings = settings.model_copy(
            update={"model": settings.model.model_copy(update={"scan": "reference"})}  # its operators can be counted
        )
        watcher = Traffic()
        watch_step(settings, options.batch, watcher)
        by_bytes = sorted(watcher.sums.items(), key=lambda item: -item[1][1])
        total = [sum(values) for values in zip(*watcher.sums.values(), strict=True)]
        for name, (calls, moved, operations) in [("total", total), *by_bytes]:
            if moved or operations:
                rows.append(
                    {
                        "scale": options.scale,
                        "batch": options.batch,
                        "variant": variant,
                        "operator": name,
                        "calls": calls,
                        "megabytes": round(moved / 1e6, 1),
                        "gflop": round(operations / 1e9, 1),
                    }
                )
        print(f"{variant}: {total[1] / 1e9:.1f} GB moved, {total[2] / 1e12:.2f} TFLOP", flush=True)
    write(rows, options.out, options)


if __name__ == "__main__":
    main()
