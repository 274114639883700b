"""Examples of a run's predictions for the gallery of the report."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from wimfris.data.dataset import Case
from wimfris.data.images import read_image
from wimfris.data.index import decode_mask
from wimfris.inference.predict import Predictor
from wimfris.metrics import ious
from wimfris.results.figures import LABELS, Example
from wimfris.settings.schema import Settings
from wimfris.training.evaluate import Evaluator


def gallery_examples(
    settings: Settings, run: str, records: pd.DataFrame, index: pd.DataFrame, images: Path, split: str, count: int
) -> list[Example]:
    """Return `count` good, median and worst examples of a run on a split, each of another image, by its records.

    The good ones lie around the ninth decile, so they are typical and not the luckiest. The worst are the last.
    """
    predictor = Predictor.load(settings, run)
    own = records[(records["run"] == run) & (records["split"] == split) & (records["condition"] == "sentence")]
    own = own.assign(iou=ious(own["intersection"].to_numpy(), own["union"].to_numpy()))
    ranked = own.sort_values(["iou", "sent_id"], ascending=False).drop_duplicates("image_id")
    evaluator = Evaluator(settings, index, images, predictor.tokenizer, torch.device("cpu"))
    rows = evaluator.split(split)
    by_sentence = {sent: (row, k) for row, sents in enumerate(rows["sent_ids"]) for k, sent in enumerate(sents)}
    last = len(ranked) - count
    starts = {"good": round(0.1 * last), "median": last // 2, "worst": last}
    examples = []
    for label in LABELS:
        shown = ranked.iloc[max(starts[label], 0) :].head(count)
        for sent, iou in zip(shown["sent_id"].tolist(), shown["iou"].tolist(), strict=True):
            row, k = by_sentence[sent]
            case = Case(row, k, rows["sentences"].iloc[row][k])
            (_, prediction), *_ = evaluator.predictions(predictor.segmenter, rows, [case])
            target = decode_mask(rows.iloc[row]).astype(bool)
            if prediction.shape != target.shape:  # the protocol scores at another size than the image's
                prediction = cv2.resize(
                    prediction.astype(np.uint8), target.shape[::-1], interpolation=cv2.INTER_NEAREST
                ).astype(bool)
            image = read_image(images / rows["file_name"].iloc[row])
            examples.append(Example(image, target, prediction, case.text, iou, label))
    return examples
