"""Objects, sentences and images of each split: counted, and compared with those that a data set declares."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wimfris.data.refer import ReferredObject, Source
from wimfris.errors import UserError


class Counts(NamedTuple):
    """Counts of one split."""

    objects: int
    sentences: int
    images: int


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
    counts: Mapping[str, Counts], declared: Mapping[str, Sequence[int]], fields: Sequence[str] = Counts._fields
) -> list[str]:
    """Return one phrase for every field of every split whose count is not the declared one.

    Without declared counts there are none to differ from.
    """
    none = Counts(0, 0, 0)
    expected = {split: Counts(*numbers) for split, numbers in declared.items()}
    return [
        f"{split} has {number} {field}, expected {right}"
        for split in dict.fromkeys((*expected, *counts) if expected else ())
        for field in fields
        if (number := getattr(counts.get(split, none), field)) != (right := getattr(expected.get(split, none), field))
    ]


def check_object_counts(
    objects: Iterable[ReferredObject], source: Source, declared: Mapping[str, Sequence[int]]
) -> None:
    """Raise UserError if the objects per split differ from the declared ones."""
    wrong = differences(count(objects), declared, ("objects",))
    if wrong:
        raise UserError(
            f"{source.refs}: not the split that datasets.{source.name}.counts declares: {'; '.join(wrong)}; get the "
            "right file, or correct the counts"
        )
