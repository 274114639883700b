"""Prediction: a trained run on one image and sentence, and the examples of the report's gallery."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from wimfris.data.dataset import Case, read_image
from wimfris.data.index import decode_mask
from wimfris.data.letterbox import letterbox_image, predicted_mask
from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.metrics import ious
from wimfris.model.segmenter import Segmenter
from wimfris.results.figures import LABELS, Example
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter
from wimfris.training.checkpoint import load_weights
from wimfris.training.evaluate import Evaluator

OVERLAY = np.array([204, 0, 140])  # the colour of a prediction, RGB


@dataclass
class Predictor:
    """A trained run, ready: model in eval mode and its tokenizer."""

    settings: Settings
    segmenter: Segmenter
    tokenizer: Tokenizer

    @classmethod
    def load(cls, settings: Settings, run: str) -> "Predictor":
        """The run's weights on its frozen encoders, on the CPU. Raises UserError where they do not belong together."""
        path = settings.outs / "weights" / f"{run}.safetensors"
        state, metadata = load_weights(path)
        tokenizer = load_tokenizer(settings)
        segmenter = build_segmenter(settings, tokenizer)
        for name, loaded in segmenter.encoders.items():
            if metadata.get(f"{name}_encoder") != loaded:
                raise UserError(f"{path}: was trained on another {name} encoder; train the run again with `dvc repro`")
        try:
            segmenter.load_trained(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path}: does not fit the settings ({str(error).splitlines()[0]}); train the run again: `dvc repro`"
            ) from None
        return cls(settings, segmenter.eval(), tokenizer)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """RGB image (H, W, 3) uint8 and a sentence -> mask (H, W) bool, letterboxed as in training. Raises UserError
        for a word the tokenizer does not know.
        """
        size = self.settings.data.image_size
        token_ids = torch.from_numpy(self.tokenizer.encode(sentence))[None]
        logits = self.segmenter(torch.from_numpy(letterbox_image(image, size))[None], token_ids).logits
        height, width = image.shape[:2]
        return predicted_mask(logits[0, 0], height, width, size)


def write_prediction(image: np.ndarray, mask: np.ndarray, mask_path: Path, overlay_path: Path) -> None:
    """Write the mask as a black and white PNG, and the image with the mask tinted and outlined."""
    tinted = np.where(mask[..., None], 0.5 * image + 0.5 * OVERLAY, image).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tinted, outline, -1, OVERLAY.tolist(), max(1, round(min(image.shape[:2]) / 300)))
    for path, picture in ((mask_path, mask.astype(np.uint8) * 255), (overlay_path, tinted[..., ::-1])):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), np.ascontiguousarray(picture)):
            raise UserError(f"{path}: cannot be written; name a PNG file in a folder that can be")


def gallery_examples(
    settings: Settings, run: str, records: pd.DataFrame, index: pd.DataFrame, images: Path, split: str, count: int
) -> list[Example]:
    """`count` good, median and worst examples of the run on the split: each from another image, taken from its records.

    Good are drawn around the ninth decile, so that they are typical and not the luckiest; worst are the last.
    """
    predictor = Predictor.load(settings, run)
    told = records[(records["run"] == run) & (records["split"] == split) & (records["condition"] == "sentence")]
    told = told.assign(iou=ious(told["intersection"].to_numpy(), told["union"].to_numpy())).sort_values(
        ["iou", "sent_id"], ascending=False
    )
    told = told.drop_duplicates("image_id")
    evaluator = Evaluator(settings, index, images, predictor.tokenizer, torch.device("cpu"))
    rows = evaluator.split(split)
    by_sentence = {sent: (row, k) for row, sents in enumerate(rows["sent_ids"]) for k, sent in enumerate(sents)}
    starts = {"good": round(0.1 * (len(told) - count)), "median": (len(told) - count) // 2, "worst": len(told) - count}
    examples = []
    for label in LABELS:
        shown = told.iloc[max(starts[label], 0) :].head(count)
        for sent, iou in zip(shown["sent_id"].tolist(), shown["iou"].tolist(), strict=True):
            row, k = by_sentence[sent]
            case = Case(row, k, rows["sentences"].iloc[row][k])
            (_, prediction), *_ = evaluator.predictions(predictor.segmenter, rows, [case])
            target = decode_mask(rows.iloc[row]).astype(bool)
            if prediction.shape != target.shape:  # judged at another size than the image's
                prediction = cv2.resize(
                    prediction.astype(np.uint8), target.shape[::-1], interpolation=cv2.INTER_NEAREST
                )
                prediction = prediction.astype(bool)
            image = read_image(images / rows["file_name"].iloc[row])
            examples.append(Example(image, target, prediction, case.text, iou, label))
    return examples
