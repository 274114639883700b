"""What the bf16 residual stream of the frozen vision encoder saves, and what it costs in accuracy.

    python benchmarks/residual.py              # a few minutes on a CPU -> residual.csv

Autocast by itself leaves the sum of a block's input and output in float32. `VisionEncoder` keeps it in bf16. Here it is
switched off and on. The time and memory of a training step are counted as in step_operators.py. An error is the root
mean square of the difference from fp32, divided by that of fp32: that of the logits, and that of the encoder's last
feature map. Two models are compared: the shipped model of scale tiny on scenes of val, and one of scale base with
random weights on noise.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from measured import with_scan, write
from step_operators import count_step
from torch import Tensor

from wimfris.encoders import vision
from wimfris.inference.demo import val_evaluator
from wimfris.inference.predict import Predictor
from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.metrics import summarise
from wimfris.model.segmenter import Segmenter
from wimfris.settings.params import read_params
from wimfris.training.evaluate import precision_context

HERE = Path(__file__).parent
WAYS = ("float32", "bf16")  # the stream under autocast
Logits = Callable[[str], Tensor]  # of a precision, as in the settings


def wide_stream() -> AbstractContextManager[object]:
    """Leave the residual stream to autocast."""
    return patch.object(vision, "_in_bf16", lambda _: False)


def errors_of(segmenter: Segmenter, logits: Logits) -> list[dict[str, object]]:
    """Return the relative errors of both ways."""
    features: list[Tensor] = []
    hook = segmenter.vision.register_forward_hook(lambda *call: features.append(call[2][-1].float()))

    def outputs(precision: str) -> tuple[Tensor, Tensor]:
        features.clear()
        result = logits(precision)
        return result, torch.cat(features)

    exact = outputs("fp32")
    with wide_stream():
        ways = [outputs("bf16")]
    ways.append(outputs("bf16"))
    hook.remove()
    names = ("logits_error", "features_error")
    return [
        {
            name: f"{float((ours - true).square().mean().sqrt() / true.square().mean().sqrt()):.2e}"
            for name, ours, true in zip(names, way, exact, strict=True)
        }
        for way in ways
    ]


def shipped(images: int) -> list[dict[str, object]]:
    """Compare the shipped model's logits, and its mIoU, on the first images of val."""
    predictor, scores = Predictor.from_pretrained(), []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = val_evaluator(predictor, Path(folder))
        settings = evaluator.settings

        def logits(precision: str) -> Tensor:
            train = settings.train.model_copy(update={"precision": precision})
            evaluator.settings = settings.model_copy(update={"train": train})
            outputs: list[Tensor] = []
            hook = predictor.segmenter.register_forward_hook(lambda *call: outputs.append(call[2].logits.float()))
            records = evaluator.records(predictor.segmenter, "val", "sentence", images=images)
            hook.remove()
            scores.append(summarise(records["intersection"].to_numpy(), records["union"].to_numpy())["miou"])
            return torch.cat(outputs)

        errors = errors_of(predictor.segmenter, logits)
    ways = zip(("float32, no autocast", *WAYS), ({}, *errors), scores, strict=True)
    model = f"tiny, trained, {images} images"
    return [{"model": model, "stream": way, **error, "miou": f"{100 * score:.2f}"} for way, error, score in ways]


def untrained(batch: int) -> list[dict[str, object]]:
    """Compare the logits of scale base with random weights, and count the step of `full` with Triton."""
    settings = with_scan(read_params().at_scale("base").settings(), "reference")
    torch.manual_seed(0)
    segmenter = blank_segmenter(settings, "cpu").eval()
    inputs = example(segmenter, settings, batch, "cpu")

    @torch.no_grad()
    def logits(precision: str) -> Tensor:
        with precision_context(precision, torch.device("cpu")):
            output: Tensor = segmenter(*inputs).logits.float()
        return output

    rows: list[dict[str, object]] = []
    for way, error in zip(WAYS, errors_of(segmenter, logits), strict=True):
        with wide_stream() if way == "float32" else nullcontext():
            watcher = count_step(with_scan(settings, "triton"), settings.train.batch_size)
        _, moved, _, seconds = watcher.total
        rows.append(
            {
                "model": f"base, random weights, {batch} noise images",
                "stream": way,
                **error,
                "step_milliseconds": f"{1e3 * seconds:.1f}",
                "step_gigabytes_moved": f"{moved / 1e9:.0f}",
                "step_peak_gigabytes": f"{watcher.peak / 1e9:.1f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of val, for the trained model")
    parser.add_argument("--batch", type=int, default=2, help="of the random model")
    options = parser.parse_args()
    rows = shipped(options.images) + untrained(options.batch)
    write(rows, HERE / "residual.csv", options)
    print((HERE / "residual.csv").read_text())


if __name__ == "__main__":
    main()
