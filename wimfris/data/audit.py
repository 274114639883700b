"""The audit of data sets, in Markdown: counts, sentences, mask areas, chance level, and images that splits share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

AREA_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LENGTH_QUANTILES = (0.05, 0.5, 0.95)


def by_dataset(index: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each data set of an index, by its name."""
    return {str(name): part for name, part in index.groupby("dataset", sort=False)}


def shared_images_note(index: pd.DataFrame) -> str:
    """Return one sentence if training images are also in val or test, as in RefCOCOg's google split; else ""."""
    train = index["split"] == "train"
    shared = index[train & index["image_id"].isin(index.loc[~train, "image_id"])]
    if shared.empty:
        return ""
    return (
        f"{shared['image_id'].nunique()} of {index.loc[train, 'image_id'].nunique()} training images "
        f"({len(shared)} of {train.sum()} objects) are also in the val or test split, by design of the data set: "
        "**results on val and test are leaking**."
    )


def audit(frames: Mapping[str, pd.DataFrame], note: str = "") -> str:
    """Return the audit of data sets, given as index rows by name, as one Markdown text that starts with `note`."""
    splits = [(f"{name} {split}", part) for name, part in frames.items() for split, part in _splits(part)]
    parts = ["# Data audit", *([note] if note else [])]
    parts += [
        "## Counts",
        _table(["split", "objects", "sentences", "images", "objects an image"], map(_counts, splits)),
    ]
    parts += [
        "## Guessing",
        "Expected mIoU of picking one of the image's annotated objects uniformly at random, with a perfect mask.",
        _table(["split", "random-object mIoU"], ([n, f"{random_object_miou(p):.3f}"] for n, p in splits)),
    ]
    length_columns = [f"{100 * q:.0f}%" for q in LENGTH_QUANTILES]
    parts += [
        "## Sentence lengths (words)",
        _table(["split", "mean", *length_columns, "longest", "empty"], map(_lengths, splits)),
    ]
    area_columns = [f"{100 * q:.0f}%" for q in AREA_QUANTILES]
    parts += [
        "## Mask areas (percent of the image)",
        _table(["split", "smallest", *area_columns, "largest", "empty"], map(_areas, splits)),
    ]
    kinds = sorted({kind for _, part in splits for kind in part["kinds"].explode().dropna() if kind})
    if kinds:
        rows = ([name, *(int((part["kinds"].explode() == kind).sum()) for kind in kinds)] for name, part in splits)
        parts += ["## Sentence kinds", _table(["split", *kinds], rows)]
    parts += [
        "## Repeated sentences",
        "Compared without regard to case and spacing. An ambiguous sentence names two objects of one image.",
        _table(["split", "distinct", "repeated for one object", "ambiguous"], map(_repeats, splits)),
    ]
    parts += ["## Images in two splits", _shared(splits)]
    if len(frames) > 1:
        parts += ["## Images in two data sets", _shared(list(frames.items()))]
    return "\n\n".join(parts) + "\n"


def random_object_miou(index: pd.DataFrame) -> float:
    """Return the expected mIoU over sentences of guessing one of the image's annotated objects, with a perfect mask."""
    sentences = index["sentences"].map(len).to_numpy()
    return float(np.average(index["chance_iou"].to_numpy(), weights=sentences))


def _splits(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield name and rows of each split: train and val first, then in the order of the index."""
    first = [split for split in ("train", "val") if (frame["split"] == split).any()]
    for split in [*first, *(s for s in frame["split"].unique() if s not in first)]:
        yield split, frame[frame["split"] == split]


def _counts(named: tuple[str, pd.DataFrame]) -> list[object]:
    name, part = named
    per_image = part.drop_duplicates("image_id")["n_objects"].mean()
    return [name, len(part), int(part["sentences"].map(len).sum()), part["image_id"].nunique(), f"{per_image:.1f}"]


def _lengths(named: tuple[str, pd.DataFrame]) -> list[object]:
    name, part = named
    words = np.array([len(sentence.split()) for sentences in part["sentences"] for sentence in sentences])
    quantiles = [f"{q:.0f}" for q in np.quantile(words, LENGTH_QUANTILES)]
    return [name, f"{words.mean():.1f}", *quantiles, int(words.max()), int((words == 0).sum())]


def _areas(named: tuple[str, pd.DataFrame]) -> list[object]:
    name, part = named
    percent = (100 * part["area"] / (part["width"] * part["height"])).to_numpy(dtype=np.float64)
    quantiles = np.quantile(percent, (0.0, *AREA_QUANTILES, 1.0))
    return [name, *(f"{q:.2f}" for q in quantiles), int((percent == 0).sum())]


def _repeats(named: tuple[str, pd.DataFrame]) -> list[object]:
    name, part = named
    cases = part[["image_id", "ref_id", "sentences"]].explode("sentences")
    cases["sentences"] = cases["sentences"].map(lambda text: " ".join(text.lower().split()))
    within_object = int(cases.duplicated(["ref_id", "sentences"]).sum())
    objects = cases.drop_duplicates(["image_id", "ref_id", "sentences"])
    ambiguous = int((objects.groupby(["image_id", "sentences"]).size() > 1).sum())
    return [name, cases["sentences"].nunique(), within_object, ambiguous]


def _shared(named: Sequence[tuple[str, pd.DataFrame]]) -> str:
    images = [(name, _images(part)) for name, part in named]
    pairs = [(left, right, len(a & b)) for (left, a), (right, b) in combinations(images, 2)]
    shared = [pair for pair in pairs if pair[2]]
    return _table(["one", "other", "images"], shared) if shared else "None."


def _images(part: pd.DataFrame) -> set[str]:
    """Return the images by their content: ids and file names of two data sets may name different images."""
    return set(part["sha256"])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
