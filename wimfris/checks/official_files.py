"""Check the official files of a data set: which are missing, which counts are wrong, and how to fix it.

The REFER archives have no home any more, so a download's address proves nothing: the right annotation file is the one
with the published counts. Its hash is recorded beside the data when it is first seen, and later files are compared with
it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wimfris.data.counts import PUBLISHED, Counts, count, differences
from wimfris.data.refer import annotation_files, images_folder, layout, read_refer
from wimfris.errors import UserError
from wimfris.files import file_hash, write_text

SEEN = "seen.json"  # under the root: annotation file -> SHA-256 when first seen
COCO = "http://images.cocodataset.org/zips/train2014.zip"  # 13 GB, 82,783 images


@dataclass
class Report:
    """Counts of every data set that could be read, problems, and remarks on files that are right."""

    counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(root: Path, names: Sequence[str], published: Mapping[str, Mapping[str, Counts]] = PUBLISHED) -> Report:
    """Check these data sets under `root`: read and count the annotations, look for every image, compare hashes.

    Hashes of new files are recorded in `root`/seen.json. Images are not decoded: `wimfris data prepare` does that.
    Raises UserError for a data set without published counts.
    """
    root, report = Path(root), Report()
    seen = _read_seen(root / SEEN)
    recorded, image_names = dict(seen), set[str]()
    for name in names:
        if name not in published:
            raise UserError(f"data set must be one with published counts ({', '.join(published)}), got {name}")
        try:
            files = annotation_files(root, name)
            objects = read_refer(root, name)
        except UserError as error:
            report.problems.append(f"{error}. {_describe_right_file(name, published[name])}")
            continue
        image_names |= {referred.file_name for referred in objects}
        report.counts[name] = count(objects)
        wrong = differences(report.counts[name], published[name])
        if wrong:
            report.problems.append(
                f"{files['refs']}: {'; '.join(wrong)}; the REFER archives are offline, get another copy with the "
                "expected counts"
            )
            continue
        for path in files.values():
            key, sha256 = f"{path.parent.name}/{path.name}", file_hash(path)
            if recorded.setdefault(key, sha256) != sha256:
                report.problems.append(
                    f"{path}: its counts are right, but it is not the file that was seen first (SHA-256 "
                    f"{recorded[key][:12]}..., now {sha256[:12]}...); restore it, or remove its line from {root / SEEN}"
                )
            else:
                report.notes.append(f"{path}: {'as first seen' if key in seen else 'seen for the first time'}")
    report.problems += _missing_images(images_folder(root), image_names)
    if recorded != seen:
        try:
            write_text(root / SEEN, json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        except OSError as error:
            report.notes.append(f"{root / SEEN}: hashes are not recorded ({error.strerror})")
    return report


def _describe_right_file(name: str, published: Mapping[str, Counts]) -> str:
    """Return one sentence with the counts that identify the right annotation file of a data set."""
    place = layout(name)
    counts = ", ".join(f"{split} {c.objects}/{c.sentences}/{c.images}" for split, c in published.items())
    return (
        f"The REFER archives are offline; the right {place.folder}/refs({place.split_by}).p has these "
        f"objects/sentences/images: {counts}"
    )


def _missing_images(folder: Path, names: set[str]) -> list[str]:
    if not names:
        return []
    if not folder.is_dir():
        return [f"{folder}: missing; unpack {COCO} (13 GB, 82,783 images) so that this folder exists"]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name in names}
    absent = sorted(names - sizes.keys())
    empty = sorted(name for name, size in sizes.items() if not size)
    return [
        f"{folder}: {len(wrong)} of the {len(names)} annotated images are {fault}, for example {wrong[0]}; "
        f"unpack {COCO} again"
        for fault, wrong in (("missing", absent), ("empty", empty))
        if wrong
    ]


def _read_seen(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        seen: dict[str, str] = json.loads(path.read_text())
        return dict(seen)
    except ValueError:
        raise UserError(f"{path}: not readable as JSON; delete it, and the hashes are recorded again") from None
