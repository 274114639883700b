"""Evaluation: every sentence of every object is one case, and gives one record."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from wimfris.data.dataset import Case, ReferDataset, empty_sentences, every_sentence, shuffled_sentences, to_device
from wimfris.data.index import decode_mask
from wimfris.data.mixed import dataset_label
from wimfris.data.objects import Candidates, ImageObjects
from wimfris.data.protocol import PROTOCOLS
from wimfris.data.rle import encode_mask
from wimfris.data.tokens import Tokenizer
from wimfris.metrics import summarise
from wimfris.model.segmenter import Segmenter
from wimfris.runs.records import first_images
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Data
from wimfris.training.batches import start_worker
from wimfris.training.distributed import Processes
from wimfris.training.memory import fitting

T = TypeVar("T")
TARGETS = 32  # decoded masks that are kept: each belongs to a few sentences, and threads work on several objects
CONDITIONS: dict[str, Callable[[pd.DataFrame], list[Case]]] = {  # what the model reads: the sentence, or a control
    "sentence": every_sentence,
    "shuffled": shuffled_sentences,
    "empty": empty_sentences,
}


def precision_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return autocast to bf16 or fp16; for fp32 a context that does nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _passes(rows: pd.DataFrame, cases: list[Case]) -> list[list[int]]:
    """Group the numbers of the cases by the model's input: cases of the same image and text share one pass."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault((rows["file_name"].iloc[case.row], case.text), []).append(number)
    return list(groups.values())


def judge(
    predicted: np.ndarray, target: np.ndarray, candidates: Candidates | None = None, *, keep_mask: bool = False
) -> dict[str, Any]:
    """Return the pixels in both of two bool masks (H, W), and those in either.

    With `candidates`, also which object of the image the prediction overlaps most, see `Candidates.best`. With
    `keep_mask`, also the prediction as COCO's run lengths, `mask`.
    """
    judgement: dict[str, Any] = {
        "intersection": int(np.count_nonzero(predicted & target)),
        "union": int(np.count_nonzero(predicted | target)),
    }
    if candidates or keep_mask:
        counts = encode_mask(predicted)
        judgement |= candidates.best(counts, *predicted.shape) if candidates else {}
        judgement |= {"mask": {"size": list(predicted.shape), "counts": counts}} if keep_mask else {}
    return judgement


def describe_case(data: Data, row: Mapping[Any, Any], case: Case, condition: str) -> dict[str, Any]:
    """Return the columns of a record that do not depend on the prediction; `row` is the case's row of the index."""
    return {
        "dataset": dataset_label(data, row["dataset"]),
        "split": row["split"],
        "condition": condition,
        "ref_id": row["ref_id"],
        "sent_id": row["sent_ids"][case.sentence],
        "image_id": row["image_id"],
        "sentence": case.text,
        "kind": row["kinds"][case.sentence],
        "target_area": int(row["area"]),
    }


class Evaluator:
    """Predict the masks of an index's cases and compare them with the true masks.

    Several processes share the batches, which are the same as in one process. Each of them gets the whole result.
    """

    def __init__(
        self,
        settings: Settings,
        index: pd.DataFrame,
        images: Path,
        tokenizer: Tokenizer,
        device: torch.device,
        group: Processes | None = None,
        objects: pd.DataFrame | None = None,
        *,
        keep_masks: bool = False,
    ) -> None:
        """`objects`, from `read_objects`, give the records their columns of objects. With `keep_masks` those of the
        sentences, not of the controls, have the column `mask`: the predicted mask as COCO's run lengths, at the size at
        which the protocol judges.
        """
        self.settings, self.index, self.images = settings, index, images
        self.tokenizer, self.device = tokenizer, device
        self.group = group or Processes()
        self.protocol = PROTOCOLS[settings.evaluate.protocol]
        self.objects = None if objects is None else ImageObjects(objects, self.protocol)
        self.keep_masks = keep_masks

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of a split, numbered from 0."""
        return self.index[self.index["split"] == name].reset_index(drop=True)

    def _rows(self, split: str, images: int | None) -> pd.DataFrame:
        """Return the rows of a split, or those of its first `images` images, numbered from 0."""
        return first_images(self.split(split), images).reset_index(drop=True)

    def _share(self, passes: list[list[int]]) -> list[list[int]]:
        """Return this process's passes: those of every `group.size`-th batch."""
        size = self.settings.evaluate.batch_size
        batches = [passes[start : start + size] for start in range(0, len(passes), size)]
        return list(chain.from_iterable(batches[self.group.rank :: self.group.size]))

    def predictions(
        self, segmenter: Segmenter, rows: pd.DataFrame, cases: list[Case]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (case number, predicted mask) for each case of this process. The mask is a bool array of the size at
        which the protocol judges it.
        """
        return self.finished(segmenter, rows, cases, lambda number, predicted: (number, predicted))

    @torch.no_grad()
    def finished(
        self, segmenter: Segmenter, rows: pd.DataFrame, cases: list[Case], finish: Callable[[int, np.ndarray], T]
    ) -> Iterator[T]:
        """Yield finish(case number, predicted mask) for each case of this process, in a fixed order.

        Masks are made and `finish` runs in `train.threads` threads, while the device computes the next batches. At most
        that many batches and two more wait in memory. What a thread raises is raised here.
        """
        settings = self.settings
        objects, shared = rows.to_dict("records"), self._share(_passes(rows, cases))
        views = [cases[numbers[0]] for numbers in shared]
        size, protocol, threads = settings.data.image_size, self.protocol, settings.train.threads
        dataset = ReferDataset(rows, views, self.images, self.tokenizer, size, with_mask=False, fit=protocol.image)
        # The loader draws from its own generator: evaluation must not change torch's global random state.
        own, workers, pinned = torch.Generator(), settings.train.workers, self.device.type == "cuda"
        loader = DataLoader(
            dataset,
            settings.evaluate.batch_size,
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=pinned,
            generator=own,
        )

        def work(numbers: list[int], maps: np.ndarray) -> list[T]:
            results = []
            for view, scores in zip(numbers, maps, strict=True):
                row = objects[views[view].row]
                mask = protocol.predicted(scores, int(row["height"]), int(row["width"]))
                results += [finish(number, mask) for number in shared[view]]
            return results

        was_training = segmenter.training
        segmenter.eval()
        waiting: deque[Future[list[T]]] = deque()
        pool = ThreadPoolExecutor(threads)
        try:
            for batch in loader:
                numbers = batch.pop("number").tolist()
                batch = to_device(batch, self.device)
                with fitting(settings, training=False), precision_context(settings.train.precision, self.device):
                    logits = segmenter(batch["image"], batch["token_ids"]).logits
                waiting.append(pool.submit(work, numbers, protocol.scores(logits, size)))
                if len(waiting) > threads + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            segmenter.train(was_training)

    def records(
        self,
        segmenter: Segmenter,
        split: str,
        condition: str,
        advance: Callable[[], None] = lambda: None,
        images: int | None = None,
    ) -> pd.DataFrame:
        """Return one row per sentence of the split's first `images` images, or of all, gathered from all processes.

        Intersection and union count pixels at the size at which the protocol judges; the target's area counts pixels of
        the original image.
        """
        rows, keep_mask = self._rows(split, images), self.keep_masks and condition == "sentence"
        cases, objects = CONDITIONS[condition](rows), rows.to_dict("records")

        @lru_cache(maxsize=TARGETS)  # the sentences of one object follow each other
        def truth(row: int) -> tuple[np.ndarray, Candidates | None]:
            candidates = self.objects.candidates(objects[row]) if self.objects else None
            return self.protocol.target(decode_mask(objects[row])), candidates

        def record(number: int, predicted: np.ndarray) -> tuple[int, dict[str, Any]]:
            case = cases[number]
            described = describe_case(self.settings.data, objects[case.row], case, condition)
            return number, described | judge(predicted, *truth(case.row), keep_mask=keep_mask)

        records: dict[int, dict[str, Any]] = {}
        for number, entry in self.finished(segmenter, rows, cases, record):
            records[number] = entry
            advance()
        for part in self.group.gather(records):
            records |= part
        return pd.DataFrame([records[number] for number in chain.from_iterable(_passes(rows, cases))])

    def score(self, segmenter: Segmenter, split: str, advance: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return mIoU, oIoU and precisions of the split after an epoch, over `train.validation_images`."""
        records = self.records(segmenter, split, "sentence", advance, self.settings.train.validation_images)
        return summarise(records["intersection"].to_numpy(), records["union"].to_numpy())

    def report(
        self, segmenter: Segmenter, run: str, seed: int, advance: Callable[[], None] = lambda: None
    ) -> pd.DataFrame:
        """Return the records of a run: every evaluation split under every condition. The controls read
        `evaluate.control_images` of a split.
        """
        parts = [
            self.records(segmenter, split, condition, advance, self._images(condition))
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

    def _images(self, condition: str) -> int | None:
        """Return on how many images of a split `report` evaluates a condition; None for all."""
        return None if condition == "sentence" else self.settings.evaluate.control_images

    def cases(self, split: str, condition: str = "sentence", images: int | None = None) -> int:
        """Return how many sentences of a split's first `images` images, or of all, this process evaluates."""
        rows = self._rows(split, images)
        return sum(map(len, self._share(_passes(rows, CONDITIONS[condition](rows)))))

    def report_cases(self) -> int:
        """Return how many sentences this process evaluates for `report`."""
        splits = self.settings.data.splits
        return sum(self.cases(split, name, self._images(name)) for split in splits for name in CONDITIONS)
