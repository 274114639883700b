"""Check the files of declared data sets: which are missing, which counts are wrong, and how to fix it.

The REFER archives have no home any more, so a download's address proves nothing: the right annotation file is the one
with the published counts. Its hash is recorded beside the data when it is first seen, and later files are compared with
it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wimfris.data.counts import Counts, count, differences
from wimfris.data.refer import declared_source, missing_annotations, read_refer
from wimfris.errors import UserError
from wimfris.files import file_hash, read_bytes, write_text
from wimfris.settings.sections import Files

SEEN = "seen.json"  # under the root: annotation file -> SHA-256 when first seen
COCO = "http://images.cocodataset.org/zips/train2014.zip"  # 13 GB, 82,783 images


@dataclass
class Report:
    """Counts of every data set that could be read, problems, and remarks on files that are right."""

    counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(root: Path, declared: Mapping[str, Files]) -> Report:
    """Check data sets under `root`: read and count the annotations, look for every image, compare hashes.

    Hashes of new files are recorded in `root`/seen.json. Images are not decoded: `wimfris data prepare` does that.
    """
    root, report = Path(root), Report()
    seen = _read_seen(root / SEEN)
    recorded = dict(seen)
    image_names: dict[Path, set[str]] = {}
    for name, files in declared.items():
        source = declared_source(name, files, root)
        try:
            objects = read_refer(source, report.notes)
        except UserError as error:
            report.problems.append(f"{error}{_describe_right_file(files) if missing_annotations(source) else ''}")
            continue
        image_names.setdefault(source.images, set()).update(referred.file_name for referred in objects)
        report.counts[name] = count(objects)
        wrong = differences(report.counts[name], files.counts)
        wrong += [f"no reference has the split {s}" for s in ("train", *files.splits) if s not in report.counts[name]]
        if wrong:
            report.problems.append(
                f"{source.refs}: {'; '.join(wrong)}; get the right file, or correct datasets.{name} in params.yaml"
            )
            continue
        if not files.counts:
            report.notes.append(f"{source.refs}: not compared, params.yaml declares no datasets.{name}.counts")
        for path in source.annotations:
            key, sha256 = str(path.relative_to(root)), file_hash(path)
            if recorded.setdefault(key, sha256) != sha256:
                report.problems.append(
                    f"{path}: its counts are right, but it is not the file that was seen first (SHA-256 "
                    f"{recorded[key][:12]}..., now {sha256[:12]}...); restore it, or remove its line from {root / SEEN}"
                )
            else:
                report.notes.append(f"{path}: {'as first seen' if key in seen else 'seen for the first time'}")
    for folder, names in image_names.items():
        report.problems += _missing_images(folder, names)
    if recorded != seen:
        try:
            write_text(root / SEEN, json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        except (OSError, UserError) as error:
            report.notes.append(f"{root / SEEN}: hashes are not recorded ({error})")
    return report


def _describe_right_file(files: Files) -> str:
    """Return one sentence with the counts that identify the right references, or "" if none are declared."""
    if not files.counts:
        return ""
    counts = ", ".join(f"{split} {'/'.join(map(str, numbers))}" for split, numbers in files.counts.items())
    return f". The right {files.refs} has these objects/sentences/images: {counts}"


def _missing_images(folder: Path, names: set[str]) -> list[str]:
    advice = f"for COCO's train2014 unpack {COCO} (13 GB, 82,783 images)"
    if not folder.is_dir():
        return [f"{folder}: no such folder of images; {advice} so that it exists"]
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    absent = sorted(names - sizes.keys())
    empty = sorted(name for name, size in sizes.items() if not size)
    return [
        f"{folder}: {len(wrong)} of the {len(names)} annotated images are {fault}, for example {wrong[0]}; {advice}"
        for fault, wrong in (("missing", absent), ("empty", empty))
        if wrong
    ]


def _read_seen(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        seen = json.loads(read_bytes(path))
        return {str(key): str(value) for key, value in seen.items()}
    except (ValueError, AttributeError):
        raise UserError(f"{path}: not readable as JSON; delete it, and the hashes are recorded again") from None
