"""Cases for training and evaluation: letterboxed image, mask and token ids of one sentence that names one object."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wimfris.data.index import decode_mask, read_checked
from wimfris.data.letterbox import fraction, letterbox_image, letterbox_mask_uint8, normalise
from wimfris.data.tokens import Tokenizer
from wimfris.errors import UserError

CONTROL_SEED = 0  # of the image order in `shuffled_sentences`


@dataclass(frozen=True)
class Case:
    """One sentence of one object: its row of the index, its position there, and the text that the model sees."""

    row: int
    sentence: int
    text: str


def every_sentence(index: pd.DataFrame) -> list[Case]:
    """Return one case per sentence of the index, in its order."""
    return [Case(row, k, text) for row, texts in enumerate(index["sentences"]) for k, text in enumerate(texts)]


def shuffled_sentences(index: pd.DataFrame) -> list[Case]:
    """Return every case with a sentence of another image: the shuffled control.

    Cases are sorted by image, with the images in random order. Each case takes the text of the case that lies n places
    on, where n is the largest number of cases in one image. Raises UserError if one image holds more than half of them.
    """
    cases = every_sentence(index)
    images = index["image_id"].to_numpy()
    rank = {image: k for k, image in enumerate(np.random.default_rng(CONTROL_SEED).permutation(np.unique(images)))}
    order = sorted(range(len(cases)), key=lambda i: (rank[images[cases[i].row]], i))
    shift = max(np.bincount([rank[images[case.row]] for case in cases]))
    if 2 * shift > len(cases):
        raise UserError(
            "sentences cannot be shuffled between images: one image holds more than half of the split's sentences; "
            "add images to the split"
        )
    texts = {order[k]: cases[order[(k + shift) % len(order)]].text for k in range(len(order))}
    return [Case(case.row, case.sentence, texts[i]) for i, case in enumerate(cases)]


def empty_sentences(index: pd.DataFrame) -> list[Case]:
    """Return every case with the empty sentence: the empty control."""
    return [Case(case.row, case.sentence, "") for case in every_sentence(index)]


def epoch_cases(index: pd.DataFrame, seed: int, epoch: int) -> list[Case]:
    """Return the cases of one training epoch: every object once, in random order, with one of its sentences at random.

    Seed and epoch alone decide the result.
    """
    rng = np.random.default_rng([seed, epoch])
    picks = [int(rng.integers(len(texts))) for texts in index["sentences"]]
    return [Case(int(row), picks[row], index["sentences"].iloc[row][picks[row]]) for row in rng.permutation(len(index))]


class ReferDataset(Dataset[dict[str, Any]]):
    """Items with image (3, S, S) uint8, token_ids (L,) int64, the case's number, and in training also mask (1, S, S)
    uint8, 255 inside. `to_device` makes the model's inputs of them: bytes are a quarter of what floats take.
    """

    def __init__(
        self,
        index: pd.DataFrame,
        cases: list[Case],
        images: Path,
        tokenizer: Tokenizer,
        size: int,
        *,
        with_mask: bool,
        fit: Callable[[np.ndarray, int], np.ndarray] = letterbox_image,
    ) -> None:
        """`fit` brings an RGB image to input size. Masks are always letterboxed, so training must use the default."""
        self.cases, self.images, self.tokenizer = cases, images, tokenizer
        self.size, self.with_mask, self.fit = size, with_mask, fit
        self._rows = index[["file_name", "height", "width", "rle_counts", "bytes", "sha256"]].to_dict("records")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one item. Raises UserError if its image is missing or changed since `prepare`."""
        case = self.cases[number]
        row = self._rows[case.row]
        image = read_checked(self.images / row["file_name"], row)
        item: dict[str, Any] = {
            "image": torch.from_numpy(self.fit(image, self.size)),
            "token_ids": torch.from_numpy(self.tokenizer.encode(case.text)),
            "number": number,
        }
        if self.with_mask:
            item["mask"] = torch.from_numpy(letterbox_mask_uint8(decode_mask(row), self.size))[None]
        return item


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Return the batch's tensors on the device, images normalised and masks in [0, 1], both float32."""
    moved: dict[str, Tensor] = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    moved["image"] = normalise(moved["image"])
    if "mask" in moved:
        moved["mask"] = fraction(moved["mask"])
    return moved
