"""Evaluation: every sentence of every object is one case, judged as the protocol has it; one record each."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from wimfris.data.dataset import Case, ReferDataset, empty_sentences, every_sentence, shuffled_sentences, to_device
from wimfris.data.index import decode_mask
from wimfris.data.mixed import dataset_label
from wimfris.data.protocol import PROTOCOLS
from wimfris.data.tokens import Tokenizer
from wimfris.metrics import summarise
from wimfris.model.segmenter import Segmenter
from wimfris.settings.schema import Settings
from wimfris.training.distributed import Processes

CONDITIONS: dict[str, Callable[[pd.DataFrame], list[Case]]] = {  # what the model is told: the sentence, or a control
    "sentence": every_sentence,
    "shuffled": shuffled_sentences,
    "empty": empty_sentences,
}


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _passes(rows: pd.DataFrame, cases: list[Case]) -> list[list[int]]:
    """The numbers of the cases by what the model is shown: those of the same image and text (all of an image's, when it
    is told nothing) share one pass.
    """
    same: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(cases):
        same.setdefault((rows["file_name"].iloc[case.row], case.text), []).append(number)
    return list(same.values())


class Evaluator:
    """Predicts the cases of an index and compares them with its masks. Of several processes each takes every so many
    batches, made up as one process makes them, and all have the whole result.
    """

    def __init__(
        self,
        settings: Settings,
        index: pd.DataFrame,
        images: Path,
        tokenizer: Tokenizer,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.settings, self.index, self.images = settings, index, images
        self.tokenizer, self.device = tokenizer, device
        self.processes = processes or Processes()
        self.protocol = PROTOCOLS[settings.evaluate.protocol]

    def split(self, name: str) -> pd.DataFrame:
        """The rows of a split, numbered from 0."""
        return self.index[self.index["split"] == name].reset_index(drop=True)

    def _share(self, passes: list[list[int]]) -> list[list[int]]:
        """This process's passes: every so many batches of them, the last of all perhaps uneven."""
        each, processes = self.settings.evaluate.batch_size, self.processes
        batches = [passes[start : start + each] for start in range(0, len(passes), each)]
        return list(chain.from_iterable(batches[processes.rank :: processes.size]))

    @torch.no_grad()
    def predictions(
        self, segmenter: Segmenter, rows: pd.DataFrame, cases: list[Case]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(case number, predicted mask bool at the size where the protocol judges it), each case of this process
        once.
        """
        settings = self.settings
        shared = self._share(_passes(rows, cases))
        views = [cases[numbers[0]] for numbers in shared]
        size, protocol = settings.data.image_size, self.protocol
        dataset = ReferDataset(rows, views, self.images, self.tokenizer, size, with_mask=False, fit=protocol.image)
        # a generator of its own, so that evaluating leaves torch's global one as it is
        own, workers, pinned = torch.Generator(), settings.train.workers, self.device.type == "cuda"
        was_training = segmenter.training
        segmenter.eval()
        each = settings.evaluate.batch_size
        for batch in DataLoader(dataset, each, num_workers=workers, pin_memory=pinned, generator=own):
            batch = to_device(batch, self.device)
            with precision_context(settings.train.precision, self.device):
                logits = segmenter(batch["image"], batch["token_ids"]).logits
            found = protocol.scores(logits, size)
            for view, scores in zip(batch["number"].tolist(), found, strict=True):
                row = rows.iloc[views[view].row]
                mask = protocol.predicted(scores, int(row["height"]), int(row["width"]))
                for number in shared[view]:
                    yield number, mask
        segmenter.train(was_training)

    def records(
        self, segmenter: Segmenter, split: str, condition: str, advance: Callable[[], None] = lambda: None
    ) -> pd.DataFrame:
        """One row a sentence of the split, from all processes: intersection and union in pixels where the protocol
        judges, the target's area in pixels of the image, and what names the case.
        """
        rows = self.split(split)
        cases = CONDITIONS[condition](rows)
        found: dict[int, dict[str, Any]] = {}
        decoded, target = -1, np.empty(0, bool)
        for number, predicted in self.predictions(segmenter, rows, cases):
            case = cases[number]
            row = rows.iloc[case.row]
            if case.row != decoded:  # the sentences of one object follow each other
                decoded, target = case.row, self.protocol.target(decode_mask(row))
            found[number] = {
                "dataset": dataset_label(self.settings.data, row["dataset"]),
                "split": split,
                "condition": condition,
                "ref_id": row["ref_id"],
                "sent_id": row["sent_ids"][case.sentence],
                "image_id": row["image_id"],
                "sentence": case.text,
                "kind": row["kinds"][case.sentence],
                "target_area": int(row["area"]),
                "intersection": int((predicted & target).sum()),
                "union": int((predicted | target).sum()),
            }
            advance()
        for others in self.processes.gather(found):
            found |= others
        return pd.DataFrame([found[number] for number in chain.from_iterable(_passes(rows, cases))])

    def score(self, segmenter: Segmenter, split: str, advance: Callable[[], None] = lambda: None) -> dict[str, float]:
        """mIoU, oIoU and precisions of the split, by the same records that are reported."""
        records = self.records(segmenter, split, "sentence", advance)
        return summarise(records["intersection"].to_numpy(), records["union"].to_numpy())

    def report(
        self, segmenter: Segmenter, run: str, seed: int, advance: Callable[[], None] = lambda: None
    ) -> pd.DataFrame:
        """The records of a run: every evaluation split, with its sentences and under both controls."""
        parts = [
            self.records(segmenter, split, condition, advance)
            for split in self.settings.data.splits
            for condition in CONDITIONS
        ]
        settings = self.settings
        return pd.concat(parts, ignore_index=True).assign(
            run=run,
            variant=settings.variant,
            seed=seed,
            scale=settings.scale,
            protocol=settings.evaluate.protocol,
        )

    def cases(self, splits: Iterable[str] | None = None, conditions: Iterable[str] | None = None) -> int:
        """Sentences that this process evaluates; by default those of `report`."""
        rows = [self.split(split) for split in splits or self.settings.data.splits]
        found = ((part, CONDITIONS[condition](part)) for part in rows for condition in conditions or CONDITIONS)
        return sum(len(numbers) for part, cases in found for numbers in self._share(_passes(part, cases)))
