"""How fast the loader reads images, by its number of workers, and whether that is enough for training.

    python benchmarks/loader.py                              # this machine, a minute -> loader_cpu.csv beside this file
    python benchmarks/loader.py --time-step --workers 0 4 8  # beside the scale's training step, timed first
    python benchmarks/loader.py --step 0.25 --workers 0 4 8  # beside a step of 0.25 s

A JSON file beside the CSV has the same rows, with the settings, device, versions and commit of the measurement.

Some hundred JPEGs of COCO's most common size are drawn in a temporary folder: noise and shapes, with about half the
bytes of COCO's. An item is what training reads: JPEG, letterbox to the input's size, mask, token ids. OpenCV's reduced
decoding would be faster, but its pixels differ from the protocol's.
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from measured import write
from pycocotools import mask as rle
from torch.utils.data import DataLoader

from wimfris.data.dataset import ReferDataset, every_sentence
from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.measure.run_cost import time_steps
from wimfris.runs.manifest import platform_of
from wimfris.settings.params import read_params

HERE = Path(__file__).parent
SIZE = (480, 640)  # height and width of most of COCO's images, pixels
SHAPES = 12  # circles on an image
QUALITY = 90  # of the JPEGs: 73 kB each, where COCO's have 160


def draw(folder: Path, images: int) -> pd.DataFrame:
    """Draw images into a folder; return an index with one object and one sentence for each."""
    rng, rows = np.random.default_rng(0), []
    for number in range(images):
        noise = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        image = cv2.GaussianBlur(noise, (7, 7), 0)
        for _ in range(SHAPES):
            centre = (int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0])))
            cv2.circle(image, centre, int(rng.integers(10, 90)), rng.integers(0, 256, 3).tolist(), -1)
        mask = np.zeros(SIZE, np.uint8)
        cv2.circle(mask, centre, 60, 1, -1)
        name = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        counts = rle.encode(np.asfortranarray(mask))["counts"].decode("ascii")
        rows.append(
            {
                "file_name": name,
                "height": SIZE[0],
                "width": SIZE[1],
                "rle_counts": counts,
                "sentences": ["the red circle left of the small blue cross"],
            }
        )
    return pd.DataFrame(rows)


def images_per_second(dataset: ReferDataset, batch: int, workers: int) -> float:
    """Time one pass over the dataset; it starts the workers, as training does every epoch."""
    started = time.perf_counter()
    images = sum(len(items["image"]) for items in DataLoader(dataset, batch, num_workers=workers))
    return images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--scale", default="base")
    parser.add_argument("--step", type=float, help="seconds of a training step at the scale's batch, on its device")
    parser.add_argument("--time-step", action="store_true", help="time that step, as `wimfris estimate` does")
    parser.add_argument("--note", default="", help="what a reader of the numbers should know")
    parser.add_argument("--out", type=Path, default=HERE / "loader_cpu.csv")
    options = parser.parse_args()
    settings = read_params().model_copy(update={"scale": options.scale}).settings()
    batch, size = settings.train.batch_size, settings.data.image_size
    if options.time_step:
        options.step = time_steps(settings).step
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        index = draw(folder, options.images)
        kilobytes = sum(path.stat().st_size for path in folder.iterdir()) / options.images / 1000
        tokenizer = WordTokenizer(vocabulary(), settings.data.length)
        dataset = ReferDataset(index, every_sentence(index), folder, tokenizer, size, with_mask=True)
        images_per_second(dataset, batch, 0)  # now the files are in memory
        measured: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for _ in range(options.repetitions):
            for workers in options.workers:
                measured[workers].append(images_per_second(dataset, batch, workers))
    for workers, rates in measured.items():
        low, rate, high = np.quantile(rates, [0.25, 0.5, 0.75])
        rows.append(
            {
                "workers": workers,
                "images_per_second": f"{rate:.1f}",
                "images_per_second_q1": f"{low:.1f}",
                "images_per_second_q3": f"{high:.1f}",
                "batch": batch,
                "seconds_per_batch": f"{batch / rate:.3f}",  # a longer step does not wait for the loader
                "step_seconds": options.step or "",
                "loader_over_step": f"{rate * options.step / batch:.2f}" if options.step else "",
                "image_size": size,
                "jpeg_kilobytes": f"{kilobytes:.0f}",
                "images": options.images,
                "repetitions": options.repetitions,
                "device": platform_of(torch.device("cpu"))["device"],
                "opencv": cv2.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "note": options.note,
            }
        )
        print({key: rows[-1][key] for key in ("workers", "images_per_second", "seconds_per_batch")}, flush=True)
    write(rows, options.out, options)
    print(options.out)


if __name__ == "__main__":
    main()
