"""Whether the official files of a data set are there and right: what is missing, which count is wrong, what to do.

The home of the REFER annotation archives is gone, so that no download can be trusted by its address: a correct file is
known by its counts. The hash of a file whose counts are right is recorded beside the data when it is first seen, and
compared from then on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wimfris.data import refer
from wimfris.errors import UserError
from wimfris.files import file_hash, write_text

SEEN = "seen.json"  # under the root: annotation file -> its SHA-256
COCO = "http://images.cocodataset.org/zips/train2014.zip"  # 13 GB, 82,783 images


class Counts(NamedTuple):
    """Of one split."""

    objects: int
    sentences: int
    images: int


# As the REFER API counts them (github.com/lichengunc/refer); the objects are those published with the data sets.
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


@dataclass
class Report:
    """What was found: `counts` of every set that could be read, and lines of what is wrong and of what was seen."""

    counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(root: Path, names: Sequence[str], published: Mapping[str, Mapping[str, Counts]] = PUBLISHED) -> Report:
    """Read the annotations of these sets under `root` to their end, count them, look for every image they name, and
    compare the files with the hashes recorded when they were first seen (`root`/seen.json, which this writes).

    Images are looked for, not decoded: `wimfris data prepare` decodes them all. Raises UserError for an unknown set.
    """
    root, report = Path(root), Report()
    seen = _read_seen(root / SEEN)
    found_seen, wanted = dict(seen), set[str]()
    for name in names:
        if name not in published:
            raise UserError(f"data set {name}: nothing is published to check it by; choose of {', '.join(published)}")
        try:
            files = refer.annotation_files(root, name)
            objects = refer.read_refer(root, name)
        except UserError as error:
            report.problems.append(f"{error}. {correct_files(name, published[name])}")
            continue
        wanted |= {found.file_name for found in objects}
        report.counts[name] = count(objects)
        wrong = _wrong(report.counts[name], published[name])
        if wrong:
            told = f"{files['refs']}: {'; '.join(wrong)}"
            report.problems.append(f"{told}; the archives' home is gone, get another copy whose counts are these")
            continue
        for path in files.values():
            key, told = f"{path.parent.name}/{path.name}", file_hash(path)
            if found_seen.setdefault(key, told) != told:
                report.problems.append(
                    f"{path}: its counts are right, but it is not the file that was seen first (SHA-256 "
                    f"{found_seen[key][:12]}..., now {told[:12]}...); restore it, or remove its line from {root / SEEN}"
                )
            else:
                report.notes.append(f"{path}: {'as first seen' if key in seen else 'seen now for the first time'}")
    report.problems += _missing_images(refer.images_folder(root), wanted)
    if found_seen != seen:
        try:
            write_text(root / SEEN, json.dumps(found_seen, indent=2, sort_keys=True) + "\n")
        except OSError as error:
            report.notes.append(f"{root / SEEN}: hashes are not recorded ({error.strerror})")
    return report


def count(objects: Iterable[refer.ReferredObject]) -> dict[str, Counts]:
    """Objects, sentences and images of each split, in the order of the file."""
    parts: dict[str, list[refer.ReferredObject]] = {}
    for found in objects:
        parts.setdefault(found.split, []).append(found)
    return {
        split: Counts(len(part), sum(len(o.sentences) for o in part), len({o.image_id for o in part}))
        for split, part in parts.items()
    }


def correct_files(name: str, published: Mapping[str, Counts]) -> str:
    """What the right annotation file of a set is known by, and where it belongs: one sentence."""
    place = refer.layout(name)
    told = ", ".join(f"{split} {c.objects}/{c.sentences}/{c.images}" for split, c in published.items())
    return (
        f"The archives' home is gone; the right {place.folder}/refs({place.split_by}).p is known by its "
        f"objects/sentences/images: {told}"
    )


def _wrong(found: Mapping[str, Counts], published: Mapping[str, Counts]) -> list[str]:
    """Every count that is not the published one."""
    none = Counts(0, 0, 0)
    return [
        f"{split} has {number} {what}, published are {right}"
        for split in [*published, *(split for split in found if split not in published)]
        for what, number, right in zip(Counts._fields, found.get(split, none), published.get(split, none), strict=True)
        if number != right
    ]


def _missing_images(folder: Path, wanted: set[str]) -> list[str]:
    if not wanted:
        return []
    if not folder.is_dir():
        return [f"{folder}: missing; unpack {COCO} (13 GB, 82,783 images) so that this folder is there"]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name in wanted}
    absent = sorted(wanted - sizes.keys())
    empty = sorted(name for name, size in sizes.items() if not size)
    return [
        f"{folder}: {len(names)} of {len(wanted)} images that the annotations name are {what}, {names[0]} for one; "
        f"unpack {COCO} again"
        for what, names in (("missing", absent), ("empty", empty))
        if names
    ]


def _read_seen(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        seen: dict[str, str] = json.loads(path.read_text())
        return dict(seen)
    except ValueError:
        raise UserError(f"{path}: not readable; delete it, and the files are recorded anew") from None
