"""The built-in scenes for a first look: three shipped pictures, and the val split to score a model on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from wimfris.data.images import read_image
from wimfris.data.index import write_index
from wimfris.data.refer import read_refer, scenes_source
from wimfris.data.scenes import draw_scene, write_scenes
from wimfris.inference.predict import Predictor
from wimfris.training.evaluate import Evaluator

SCENES = Path(__file__).parents[1] / "builtin" / "scenes"  # scene-<number of the val split>.jpg


@dataclass(frozen=True)
class Example:
    """A shipped scene: its picture, a sentence about it, and the mask (H, W) bool of the object it names."""

    path: Path
    sentence: str
    target: np.ndarray


def shipped_scenes() -> list[Example]:
    """Return the first three scenes of the val split, with their first sentences."""
    examples = []
    for path in sorted(SCENES.glob("scene-*.jpg")):
        scene = draw_scene("val", int(path.stem.removeprefix("scene-")))
        thing, described = scene.refs[0]
        examples.append(Example(path, described[0][1], scene.masks[thing]))
    return examples


def segment_scenes(predictor: Predictor) -> Iterator[tuple[Example, np.ndarray, np.ndarray, float]]:
    """Yield (example, image, predicted mask, IoU with the target) for each shipped scene."""
    for example in shipped_scenes():
        image = read_image(example.path)
        mask = predictor(image, example.sentence)
        union = (mask | example.target).sum()
        yield example, image, mask, float((mask & example.target).sum() / union) if union else 0.0


def val_evaluator(predictor: Predictor, folder: Path) -> Evaluator:
    """Draw the val split of the built-in set in `folder`, and return an evaluator of it on the CPU."""
    settings = predictor.settings
    write_scenes(
        folder, {"train": 0, "val": settings.data.scenes.val, "testA": 0, "testB": 0}, settings.data.image_size
    )
    drawn = scenes_source(folder)
    index = write_index(read_refer(drawn), drawn.images, folder / "index")
    return Evaluator(settings, index, drawn.images, predictor.tokenizer, torch.device("cpu"))


def score_val(predictor: Predictor, evaluator: Evaluator, advance: Callable[[], None]) -> pd.DataFrame:
    """Return the records of the val split, one row per sentence."""
    torch.set_num_threads(predictor.settings.train.threads)
    records = evaluator.records(predictor.segmenter, "val", "sentence", advance)
    settings = predictor.settings
    return records.assign(
        run=predictor.facts.get("run", settings.variant),
        variant=settings.variant,
        seed=predictor.facts.get("seed", 0),
        scale=settings.scale,
        protocol=settings.evaluate.protocol,
    )
