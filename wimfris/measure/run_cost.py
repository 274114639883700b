"""`wimfris estimate`: time, memory and disk of a run on this device, from a few timed steps.

The model has its real size and random weights, and images are noise: neither encoders nor data are needed. Without the
scale's GPU, steps are timed on the CPU at batches of 2 and 4, time and memory are extrapolated linearly, and the
estimate says so.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from wimfris.data.counts import Counts
from wimfris.data.images import read_image
from wimfris.data.index import read_index
from wimfris.data.letterbox import letterbox_mask
from wimfris.data.protocol import PROTOCOLS
from wimfris.errors import UserError
from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.measure.memory import Memory
from wimfris.measure.parameters import count
from wimfris.measure.timing import WARM_UP, seconds, training_step
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings
from wimfris.training.determinism import be_deterministic
from wimfris.training.evaluate import CONDITIONS, precision_context

COCO_SIZE = (480, 640)  # of most of COCO's images, pixels
COCO_BYTES = 14e9  # train2014, unpacked
ROW_BYTES = 8  # of a record in its Parquet file: 58 kB for 7,848 rows at scale tiny
INDEX_BYTES = 300  # of an object in the index and its share of the table of images, about
CLIP_IMAGE_BYTES = 3.5e8  # of the image encoder in the hub's file of CLIP, which is fetched whole
REPETITIONS = 2
_IMAGE = ["dataset", "image_id"]
SMALL = (2, 4)  # batches that stand for larger ones on a CPU
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Volume:
    """The size of a data set: objects to train on, sentences scored after an epoch, sentences evaluated at the end
    (those of the controls count too), and objects.
    """

    train: int
    validated: int
    evaluated: int
    objects: int
    source: str


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step, of one evaluated case, and of one image read by one worker; peak bytes in
    training.
    """

    device: str
    step: float
    case: float
    image: float
    memory: float | None


@dataclass(frozen=True)
class Cost:
    """The cost of one run."""

    steps: int
    seconds: float
    evaluation: float  # seconds of it
    loader: float  # images a second that the workers read
    memory: float | None  # bytes
    running: float  # bytes on disk while it runs
    left: float  # bytes on disk after it


def volume(settings: Settings) -> Volume:
    """Count the index where there is one, else take the declared counts. Raises UserError without either."""
    path = settings.folder / "index" / "index.parquet"
    if path.is_file():
        index = read_index(path)
        counts = {
            str(split): Counts(len(part), int(part["sentences"].map(len).sum()), len(part.drop_duplicates(_IMAGE)))
            for split, part in index.groupby("split")
        }
        return volume_of(settings, counts, "the index")
    declared = [files.counts for files in settings.data.files.values()]
    if not declared or not all(declared):
        raise UserError(
            f"{path}: missing, and params.yaml declares no counts of {settings.data.name}; write the index with "
            "`dvc repro prepare`"
        )
    parts = {
        split: [one[split] for one in declared if split in one] for split in {key for one in declared for key in one}
    }
    sums = {split: Counts(*map(sum, zip(*own, strict=True))) for split, own in parts.items()}
    source = "the declared counts" + (", shared images included" if settings.data.drop_shared else "")
    return volume_of(settings, sums, source)


def volume_of(settings: Settings, counts: Mapping[str, Counts], source: str) -> Volume:
    """Return the volume of a data set with these counts of its splits."""

    def sentences(split: str, images: int | None) -> float:
        part = counts[split]
        return part.sentences * (1.0 if images is None else min(images / part.images, 1.0))

    controls = settings.evaluate.control_images
    splits = [split for split in settings.data.splits if split in counts]
    evaluated = sum(sentences(split, None) + (len(CONDITIONS) - 1) * sentences(split, controls) for split in splits)
    validated = sentences("val", settings.train.validation_images)
    objects = sum(part.objects for part in counts.values())
    return Volume(counts["train"].objects, round(validated), round(evaluated), objects, source)


def time_steps(settings: Settings) -> StepTimes:
    """Time training steps, evaluation and the reading of images; on a GPU at the settings' batches."""
    wanted = settings.train.device
    device = torch.device(wanted if wanted == "cpu" or torch.cuda.is_available() else "cpu")
    threads = min(settings.train.threads, torch.get_num_threads())
    be_deterministic(settings)  # as in training
    torch.set_num_threads(threads)
    batch, cases = settings.train.batch_size, settings.evaluate.batch_size
    stands_in, on_gpu = device.type != wanted, device.type == "cuda"
    if stands_in:  # many CPUs emulate half precision
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"precision": "fp32"})})

    def median(work: Callable[[], object]) -> float:
        if stands_in:  # a step takes seconds, and shows the order of magnitude at best
            return seconds(work, 1, device, warm_up=0)[0]
        return float(np.median(seconds(work, REPETITIONS, device, WARM_UP if on_gpu else 1)))

    held = Memory(device)
    segmenter = blank_segmenter(settings, device.type)
    steps: list[float] = []
    memories: list[int | None] = []
    for size in SMALL if stands_in else (batch,):
        held.restart()
        steps.append(median(training_step(segmenter, settings, device, size)))
        memories.append(held.peak())
    step, memory = (along(values, batch) if stands_in else values[0] for values in (steps, memories))
    segmenter.eval()
    shown = SMALL[0] if stands_in else cases
    case = median(partial(_evaluate, segmenter, settings, device, shown)) / shown
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    name += "" if device.type == wanted else f", fp32 (scale {settings.scale} trains on {wanted}, not here)"
    assert step is not None
    return StepTimes(name, step, case, _read_seconds(settings), memory)


def time_apart(settings: Settings) -> StepTimes:
    """Time as `time_steps` does, in a process of its own: a batch that does not fit ends that process alone.

    Raises UserError where the batch does not fit into the memory.
    """
    message = f"a batch of {settings.train.batch_size} does not fit into the memory; try a smaller one with --batch"
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_give_way) as pool:
        try:
            return pool.submit(time_steps, settings).result()
        except BrokenProcessPool:  # the kernel killed it
            raise UserError(message) from None
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is a CPU's failed allocation
            if "memory" not in str(error):
                raise
            raise UserError(message) from None


def _give_way() -> None:
    """Let the kernel end this process first where memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


def along(values: Sequence[float | None], batch: int) -> float | None:
    """Return the value at a batch, on the line through those at the batches `SMALL`; None where one is unknown."""
    first, last = values
    if first is None or last is None:
        return None
    return last + (last - first) / (SMALL[1] - SMALL[0]) * (batch - SMALL[1])


def cost(settings: Settings, times: StepTimes, size: Volume) -> Cost:
    """Return a run's cost: all epochs with their validation, and the evaluation of all splits under every condition.

    Raises UserError where a batch is larger than the train split.
    """
    train = settings.train
    steps = train.steps(size.train)
    if not steps:
        raise UserError(
            f"train.batch_size must be at most the number of training objects ({size.train}), got {train.batch_size}"
        )
    reading = times.image / max(train.workers, 1)
    if train.workers:  # they read while the device computes
        step, case = max(times.step, train.batch_size * reading), max(times.case, reading)
    else:
        step, case = times.step + train.batch_size * reading, times.case + reading
    evaluation = case * (train.epochs * size.validated + size.evaluated)
    trained = FLOAT * count(blank_segmenter(settings))
    records = ROW_BYTES * size.evaluated
    return Cost(
        steps=train.epochs * steps,
        seconds=train.epochs * steps * step + evaluation,
        evaluation=evaluation,
        loader=1 / reading,
        memory=times.memory,
        # Two checkpoints at a time, each with the weights, the best weights and Adam's two moments.
        running=2 * 4 * trained,
        left=2 * trained + records,  # weights in the workspace and, as a copy, in DVC's cache
    )


def shared_bytes(settings: Settings, size: Volume) -> dict[str, float]:
    """Return the bytes on disk that all runs of a data set and scale share: images, index, encoders."""
    public = settings.encoders.text.is_public or settings.encoders.vision.is_public
    blank = blank_segmenter(settings)
    backbones = count(blank, trained=False) - count(blank)
    return {
        "images": COCO_BYTES if settings.data.name != "scenes" else 0.0,
        "index": INDEX_BYTES * size.objects,
        "encoders": FLOAT * backbones + (CLIP_IMAGE_BYTES if public else 0.0),
    }


def at_batch(settings: Settings, batch: int | None) -> Settings:
    """Return the settings with another batch size of training; None leaves them as they are."""
    if batch is None:
        return settings
    if batch < 2:
        raise UserError(f"--batch must be at least 2, because batch norm needs two samples; got {batch}")
    return settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch})})


def _image_size(settings: Settings) -> tuple[int, int]:
    """Return height and width of the data set's images."""
    return COCO_SIZE if settings.data.name != "scenes" else (settings.data.image_size, settings.data.image_size)


@torch.no_grad()
def _evaluate(segmenter: Segmenter, settings: Settings, device: torch.device, batch: int) -> None:
    protocol, size = PROTOCOLS[settings.evaluate.protocol], settings.data.image_size
    with precision_context(settings.train.precision, device):
        logits = segmenter(*example(segmenter, settings, batch, device.type)).logits
    for scores in protocol.scores(logits, size):
        protocol.predicted(scores, *_image_size(settings))


def _read_seconds(settings: Settings) -> float:
    """Return the seconds that one worker takes for one image: JPEG, letterbox, mask."""
    image = np.random.default_rng(0).integers(0, 256, (*_image_size(settings), 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(image, (9, 9), 0)  # about as many bytes as a photograph has
    protocol, mask = PROTOCOLS["cris"], np.ones(image.shape[:2], np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), smooth)

        def read() -> None:
            protocol.image(read_image(path), settings.data.image_size)
            letterbox_mask(mask, settings.data.image_size)

        return float(np.median(seconds(read, 10, torch.device("cpu"))))
