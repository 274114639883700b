"""Objects, sentences and images of each split: counted, and as published with the official data sets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wimfris.data.refer import ReferredObject, layout
from wimfris.errors import UserError


class Counts(NamedTuple):
    """Counts of one split."""

    objects: int
    sentences: int
    images: int


# Counts by the REFER API (github.com/lichengunc/refer). The objects are those published with the data sets
# (Kazemzadeh 2014, Yu 2016, Mao 2016, Nagaraja 2016).
PUBLISHED: Mapping[str, Mapping[str, Counts]] = {
    "refcoco": {
        "train": Counts(42404, 120624, 16994),
        "val": Counts(3811, 10834, 1500),
        "testA": Counts(1975, 5657, 750),
        "testB": Counts(1810, 5095, 750),
    },
    "refcoco+": {
        "train": Counts(42278, 120191, 16992),
        "val": Counts(3805, 10758, 1500),
        "testA": Counts(1975, 5726, 750),
        "testB": Counts(1798, 4889, 750),
    },
    "refcocog-umd": {
        "train": Counts(42226, 80512, 21899),
        "val": Counts(2573, 4896, 1300),
        "test": Counts(5023, 9602, 2600),
    },
    "refcocog-google": {
        "train": Counts(44822, 85474, 24698),
        "val": Counts(5000, 9536, 4650),
    },
}


def count(objects: Iterable[ReferredObject]) -> dict[str, Counts]:
    """Return the counts of each split, in the order of the objects."""
    parts: dict[str, list[ReferredObject]] = {}
    for referred in objects:
        parts.setdefault(referred.split, []).append(referred)
    return {
        split: Counts(len(part), sum(len(o.sentences) for o in part), len({o.image_id for o in part}))
        for split, part in parts.items()
    }


def differences(
    counts: Mapping[str, Counts], published: Mapping[str, Counts], fields: Sequence[str] = Counts._fields
) -> list[str]:
    """Return one phrase for every field of every split whose count is not the published one."""
    none = Counts(0, 0, 0)
    return [
        f"{split} has {number} {field}, expected {expected}"
        for split in dict.fromkeys((*published, *counts))
        for field in fields
        if (number := getattr(counts.get(split, none), field))
        != (expected := getattr(published.get(split, none), field))
    ]


def check_object_counts(objects: Iterable[ReferredObject], name: str) -> None:
    """Raise UserError if the objects per split differ from the published ones. "scenes" has none and passes."""
    published = PUBLISHED.get(name)
    if published is None:
        return
    wrong = differences(count(objects), published, ("objects",))
    if wrong:
        split_by = layout(name).split_by
        raise UserError(f"{name}: refs({split_by}).p is not the published split: {'; '.join(wrong)}; download it again")
