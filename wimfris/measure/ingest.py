"""`wimfris ingest`: the records of any system, from its predicted masks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from wimfris.data.dataset import every_sentence
from wimfris.data.index import decode_mask, read_index
from wimfris.data.masks import Asked, Mask, read_masks
from wimfris.data.objects import ImageObjects, read_objects
from wimfris.data.protocol import PROTOCOLS, SQUASHED_SIDE, Protocol
from wimfris.data.rle import decode_rle
from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.results.evidence import EvidenceFiles
from wimfris.results.ingested import add_system, check_name
from wimfris.runs.masks import masks_of
from wimfris.runs.records import NO_SEED
from wimfris.settings.params import Params
from wimfris.training.evaluate import describe_case, judge


def ingest(
    params: Params, name: str, masks: Path, splits: Sequence[str] = (), *, replace: bool = False
) -> tuple[EvidenceFiles, pd.DataFrame]:
    """Judge a system's masks of these splits (by default all of evaluation) under the protocol of params.yaml, and add
    its records to the evidence. Return the evidence's files and the records.

    Raises UserError if a mask is at fault, see `read_masks`; if a split is unknown; or if the evidence holds the
    system's records of a split already and `replace` is false.
    """
    settings = params.settings()
    splits = splits or settings.data.splits
    source = _hash(masks)
    check_name(params, name, splits, source, replace=replace)
    folder = settings.folder / "index"
    index, protocol = read_index(folder / "index.parquet"), PROTOCOLS[settings.evaluate.protocol]
    for split in splits:
        if split not in set(index["split"]):
            raise UserError(f"--split must be one of {', '.join(settings.data.splits)}, got {split}")
    index = index[index["split"].isin(splits)].reset_index(drop=True)
    asked = [
        Asked(row["ref_id"], sent_id, row["height"], row["width"])
        for row in index.to_dict("records")
        for sent_id in row["sent_ids"]
    ]
    if len({(one.ref_id, one.sent_id) for one in asked}) < len(asked):
        raise UserError(
            f"{settings.data.name}: ids repeat between the mixed data sets; take one of them in with --data"
        )
    given = read_masks(masks, asked, None if protocol.at_original else SQUASHED_SIDE)
    objects, cases, rows = ImageObjects(read_objects(folder), protocol), every_sentence(index), index.to_dict("records")
    judged = []
    for case in cases:
        row = rows[case.row]
        predicted = judged_mask(given[row["ref_id"], row["sent_ids"][case.sentence]], protocol)
        target = protocol.target(decode_mask(row))
        described = describe_case(settings.data, row, case, "sentence")
        judged.append(described | judge(predicted, target, objects.candidates(row), keep_mask=True))
    frame = pd.DataFrame(judged).assign(
        run=name, variant=name, seed=NO_SEED, scale=settings.scale, protocol=settings.evaluate.protocol
    )
    kept = masks_of(frame, settings.data.splits[0], settings.evaluate.control_images)
    records = frame.drop(columns="mask")
    return add_system(params, name, records, kept, source, replace=replace), records


def judged_mask(mask: Mask, protocol: Protocol) -> np.ndarray:
    """Return a mask as bool at the size at which the protocol judges; resized there with nearest, as the target is."""
    pixels = decode_rle(mask.counts, mask.height, mask.width)
    if protocol.at_original or (mask.height, mask.width) == (SQUASHED_SIDE, SQUASHED_SIDE):
        return pixels.astype(bool)
    return protocol.target(pixels)


def _hash(masks: Path) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of a folder's PNGs. Raises UserError without either."""
    if masks.is_file():
        return file_hash(masks)
    if not masks.is_dir():
        raise UserError(f"{masks}: no such file or folder; give the masks as JSON, JSON Lines or a folder of PNGs")
    lines = [f"{path.name} {file_hash(path)}" for path in sorted(masks.glob("*.png"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
