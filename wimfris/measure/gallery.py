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
from wimfris.results.figures import QUANTILES, Example
from wimfris.settings.schema import Settings
from wimfris.training.evaluate import Evaluator

_TIES = 0  # the seed that orders sentences of equal IoU


def gallery_examples(
    settings: Settings, run: str, records: pd.DataFrame, index: pd.DataFrame, images: Path, split: str, count: int
) -> list[Example]:
    """Return `count` sentences of a run at each of `QUANTILES` of IoU on a split, by its records, best first.

    They are the neighbours in rank around the quantile, whatever their images are, so a row is neither better nor worse
    than it says. Sentences of equal IoU are in random order: many have an IoU of 0.
    """
    predictor = Predictor.load(settings, run)
    own = records[(records["run"] == run) & (records["split"] == split) & (records["condition"] == "sentence")]
    own = own.assign(iou=ious(own["intersection"].to_numpy(), own["union"].to_numpy()))
    ranked = own.sort_values(["dataset", "ref_id", "sent_id"]).sample(frac=1, random_state=_TIES)
    ranked = ranked.sort_values("iou", kind="stable")
    evaluator = Evaluator(settings, index, images, predictor.tokenizer, torch.device("cpu"))
    rows = evaluator.split(split)
    cases = {
        (dataset, ref, sentence): (row, k)
        for row, (dataset, ref, sentences) in enumerate(
            zip(rows["dataset"], rows["ref_id"], rows["sent_ids"], strict=True)
        )
        for k, sentence in enumerate(sentences)
    }
    examples = []
    for label, quantile in QUANTILES.items():
        start = round(quantile * (len(ranked) - 1)) - count // 2
        start = min(max(start, 0), max(len(ranked) - count, 0))
        for shown in ranked.iloc[start : start + count][::-1].to_dict("records"):
            row, k = cases[shown["dataset"], shown["ref_id"], shown["sent_id"]]
            case = Case(row, k, rows["sentences"].iloc[row][k])
            (_, prediction), *_ = evaluator.predictions(predictor.segmenter, rows, [case])
            target = decode_mask(rows.iloc[row]).astype(bool)
            if prediction.shape != target.shape:  # the protocol scores at another size than the image's
                prediction = cv2.resize(
                    prediction.astype(np.uint8), target.shape[::-1], interpolation=cv2.INTER_NEAREST
                ).astype(bool)
            image = read_image(images / rows["file_name"].iloc[row])
            examples.append(Example(image, target, prediction, case.text, float(shown["iou"]), label))
    return examples
