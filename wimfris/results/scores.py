"""Records as scores: checks that runs are comparable, metrics by seed, and arrays over systems, seeds and sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wimfris.errors import UserError
from wimfris.metrics import ious, summarise, summarise_generalised
from wimfris.results.statistics import Floats
from wimfris.runs.records import CONDITIONS, holds_objects

METRICS = ("miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90")
"""The metrics of a table's row, named as in `wimfris.metrics.summarise`."""

COMPARED = ("miou", "oiou", "pr70")
"""The metrics in which systems are compared; the first is the primary one."""

GENERALISED = ("giou", "ciou", "n_acc", "t_acc")
"""The further metrics of data whose sentences may name nothing, as in `wimfris.metrics.summarise_generalised`."""

OF_OBJECTS = ("right", "iou_right")
"""Of records that say which object a prediction overlaps most: the share of right ones, and the mIoU where it is right.
Both leave sentences out that name nothing.
"""

LABELS = {
    "miou": "mIoU",
    "miou_sd": "SD",
    "oiou": "oIoU",
    "pr50": "Pr@0.5",
    "pr60": "Pr@0.6",
    "pr70": "Pr@0.7",
    "pr80": "Pr@0.8",
    "pr90": "Pr@0.9",
    "miou_shuffled": "shuffled",
    "miou_empty": "empty",
    "giou": "gIoU",
    "ciou": "cIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "right": "right object",
    "iou_right": "IoU if right",
}
"""Metric -> its name in tables."""

_HIT = 0.7  # the IoU threshold of pr70
_MIXABLE = {
    "dataset": ("data sets", "select the records of one data set"),
    "scale": ("scales", "select the records of one scale"),
    "protocol": ("protocols", "evaluate all runs under one protocol"),
}  # column of the records -> its name in a message, and what to do where it has several values


def own_sentences(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of the model given its own sentence, without those of the two controls."""
    return records[records["condition"] == CONDITIONS[0]]


def run_scores(records: pd.DataFrame, split: str) -> pd.Series:
    """Return the mIoU of every run on a split, by variant and seed."""
    part = own_sentences(records[records["split"] == split])
    part = part.assign(iou=ious(part["intersection"], part["union"]))
    return part.groupby(["variant", "seed"], observed=True)["iou"].mean()


def check_comparable(part: pd.DataFrame, where: str) -> None:
    """Check that runs have one data set, scale and protocol, and the same sentences, each once.

    Raises `UserError`, prefixed with `where`, if they do not.
    """
    for column, (plural, advice) in _MIXABLE.items():
        runs = part.groupby(column, observed=True)["run"].min()
        if len(runs) > 1:
            values = " and ".join(f"'{value}' (run {run})" for value, run in runs.items())
            raise UserError(f"{where}: {plural} {values} cannot be compared; {advice}")
    case = ["ref_id", "sent_id"]
    expected: tuple[str, set[tuple[int, int]]] | None = None
    for _, rows in part.groupby(["variant", "seed"]):
        run = " and ".join(sorted(rows["run"].unique()))
        sentences = own_sentences(rows)
        cases = set(zip(sentences["ref_id"], sentences["sent_id"], strict=True))
        if not cases:
            raise UserError(f"{where}: run {run} has controls but no sentences; evaluate it again with `dvc repro`")
        if len(cases) < len(sentences):
            ref_id, sent_id = sentences.loc[sentences.duplicated(case), case].min()
            raise UserError(
                f"{where}: sentence {sent_id} of object {ref_id} occurs twice in run {run}; "
                "delete stale files under runs/ and run `dvc repro`"
            )
        expected = expected or (run, cases)
        if cases != expected[1]:
            raise UserError(
                f"{where}: run {run} ({len(cases)} sentences) was not evaluated on the sentences of "
                f"run {expected[0]} ({len(expected[1])}); evaluate both on one index with `dvc repro`"
            )


def by_seed(part: pd.DataFrame) -> pd.DataFrame:
    """Return one row a seed: seed, n, `METRICS`, the mIoU of each control (NaN if the run has no records of it),
    `GENERALISED` if a sentence names nothing, and `OF_OBJECTS` if a run has them (NaN where a run lacks them).
    """
    rows = []
    for seed, run in part.groupby("seed"):
        summaries = {
            str(condition): summarise(cases["intersection"].to_numpy(), cases["union"].to_numpy())
            for condition, cases in run.groupby("condition")
        }
        row = {"seed": seed} | {name: summaries[CONDITIONS[0]][name] for name in ("n", *METRICS)} | generalised(run)
        row |= of_objects(run)
        rows.append(
            row | {f"miou_{name}": summaries[name]["miou"] if name in summaries else np.nan for name in CONDITIONS[1:]}
        )
    return pd.DataFrame(rows)


def generalised(records: pd.DataFrame) -> dict[str, float]:
    """Return `GENERALISED` of one run, {} if each of its sentences names something.

    It is also {} under protocol lavt, whose scored size is not that of `target_area`.
    """
    own = own_sentences(records)
    if (own["target_area"] > 0).all() or "lavt" in set(own["protocol"]):
        return {}
    return summarise_generalised(*(own[name].to_numpy() for name in ("intersection", "union", "target_area")))


def of_objects(records: pd.DataFrame) -> dict[str, float]:
    """Return `OF_OBJECTS` of one run, {} if its records do not say which object a prediction overlaps most.

    The second one is NaN if no object is right.
    """
    own = own_sentences(records)
    own = own[own["target_area"] > 0]
    if own.empty or not holds_objects(own):
        return {}
    right = own["right_object"].to_numpy(dtype=bool)
    iou = ious(own["intersection"].to_numpy(), own["union"].to_numpy())
    return {"right": float(right.mean()), "iou_right": float(iou[right].mean()) if right.any() else np.nan}


@dataclass(frozen=True)
class Scores:
    """Scores of systems, (systems, seeds, sentences), with the sentences ordered by image; 0 for runs not `present`.

    `right` and `named` are of 0 and 1: the prediction overlaps the right object most; the sentence names something.
    `right` is NaN for runs whose records do not say it.
    """

    present: NDArray[np.bool_]  # (systems, seeds)
    seeds: NDArray[np.int_]  # (seeds,)
    iou: Floats
    intersection: Floats
    union: Floats
    starts: NDArray[np.intp]  # (images,): the index of each image's first sentence
    right: Floats | None = None  # None if no run's records say it
    named: Floats | None = None  # (sentences,)

    def ratios(self, weights: Floats | None = None) -> dict[str, tuple[Floats, Floats]]:
        """Return numerators and denominators per image for each of `COMPARED`, and of `OF_OBJECTS` where a run has
        them (NaN for the others), (systems, seeds, images) or (images,).

        A metric is the sum of its numerators over the sum of its denominators. `weights` (sentences,) multiply both: 1
        includes a sentence, 0 leaves it out.
        """
        weights = np.ones(self.iou.shape[-1]) if weights is None else weights
        sentences = self._by_image(weights)
        ratios = {
            "miou": (self._by_image(self.iou * weights), sentences),
            "oiou": (self._by_image(self.intersection * weights), self._by_image(self.union * weights)),
            "pr70": (self._by_image((self.iou > _HIT) * weights), sentences),
        }
        if self.right is not None and self.named is not None:
            right = self._by_image(self.right * weights)
            ratios["right"] = (right, self._by_image(self.named * weights))
            ratios["iou_right"] = (self._by_image(self.iou * self.right * weights), right)
        return ratios

    def _by_image(self, scores: Floats) -> Floats:
        return np.add.reduceat(scores, self.starts, axis=-1)


def read_scores(records: pd.DataFrame, systems: Sequence[str], split: str) -> Scores:
    """Arrange the records of these systems on one split as arrays.

    Raises `UserError` if a system has no records, or as `check_comparable`, or if runs disagree on the image or the
    target of a sentence.
    """
    part = records[(records["split"] == split) & records["variant"].isin(systems)]
    for system in systems:
        if not (part["variant"] == system).any():
            raise UserError(f"{split}: no records of {system}; train and evaluate it with `dvc repro`")
    first = part.iloc[0]
    where = f"{first['dataset']}, scale {first['scale']}, split {split}"
    check_comparable(part, where)
    sentences = own_sentences(part).sort_values(["image_id", "ref_id", "sent_id"])
    seeds = sorted(sentences["seed"].unique())
    runs = dict(list(sentences.groupby(["variant", "seed"], observed=True)))
    reference = runs[min(key for key in runs if key[0] == systems[0])]
    shape = (len(systems), len(seeds), len(reference))
    present = np.zeros(shape[:2], dtype=bool)
    iou, intersection, union, right = (np.zeros(shape) for _ in range(4))
    named = reference["target_area"].to_numpy() > 0
    for (variant, seed), rows in runs.items():
        for column in ("ref_id", "sent_id", "image_id", "target_area"):
            if (rows[column].to_numpy() != reference[column].to_numpy()).any():
                raise UserError(
                    f"{where}: run {rows['run'].iloc[0]} has other images or targets for its sentences than "
                    f"run {reference['run'].iloc[0]}; evaluate both on one index with `dvc repro`"
                )
        place = systems.index(variant), seeds.index(seed)
        present[place] = True
        intersection[place], union[place] = rows["intersection"], rows["union"]
        iou[place] = ious(rows["intersection"], rows["union"])
        right[place] = rows["right_object"].to_numpy(dtype=bool) & named if holds_objects(rows) else np.nan
    starts = np.unique(reference["image_id"].to_numpy(), return_index=True)[1]
    known = right if np.isfinite(right[present]).any() else None
    return Scores(present, np.array(seeds), iou, intersection, union, starts, known, named.astype(np.float64))
