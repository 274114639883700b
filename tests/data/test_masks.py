"""Masks of any system: every format gives the same mask, and every fault is counted, listed and has a fix."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wimfris.data.masks import Asked, read_masks, write_masks
from wimfris.data.rle import decode_rle, encode_mask
from wimfris.errors import UserError

ASKED = [Asked(ref_id, 10 * ref_id + k, 4, 6) for ref_id in (1, 2, 3) for k in (0, 1)]
PIXELS = np.random.default_rng(0).random((len(ASKED), 4, 6)) > 0.5


def entry(number: int) -> dict[str, Any]:
    counts = encode_mask(PIXELS[number])
    return {"sent_id": ASKED[number].sent_id, "segmentation": {"size": [4, 6], "counts": counts}}


def plain_runs(pixels: np.ndarray) -> list[int]:
    """Return COCO's run lengths, column by column, zeros first."""
    flat = np.concatenate([[0], pixels.T.ravel(), [2]])
    edges = np.flatnonzero(np.diff(flat[1:-1], prepend=0) != 0)
    return np.diff([0, *edges, pixels.size]).tolist()


def write(path: Path, entries: list[Any], *, lines: bool = True) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    return path


def test_every_format_gives_the_same_masks(tmp_path: Path) -> None:
    entries = [entry(number) for number in range(len(ASKED))]
    plain = [one | {"segmentation": {"size": [4, 6], "counts": plain_runs(PIXELS[k])}} for k, one in enumerate(entries)]
    folder = tmp_path / "png"
    folder.mkdir()
    for number, one in enumerate(ASKED):
        name = f"{one.ref_id}_{one.sent_id}" if number % 2 else f"{one.sent_id}"
        Image.fromarray(PIXELS[number].astype(np.uint8) * 255).save(folder / f"{name}.png")
    columns = {"split": "val", "ref_id": [one.ref_id for one in ASKED], "sent_id": [one.sent_id for one in ASKED]}
    records = pd.DataFrame(columns).assign(mask=[one["segmentation"] for one in entries])
    write_masks(records, tmp_path / "own.jsonl")
    paths = [tmp_path / "own.jsonl", folder, write(tmp_path / "list.json", entries, lines=False)]
    paths += [write(tmp_path / "lines.jsonl", entries[::-1]), write(tmp_path / "plain.jsonl", plain)]
    for path in paths:
        masks = read_masks(path, ASKED)
        for one, pixels in zip(ASKED, PIXELS, strict=True):
            mask = masks[one.ref_id, one.sent_id]
            assert (decode_rle(mask.counts, mask.height, mask.width) == pixels).all(), path


def test_every_fault_is_listed_by_sentence_and_nothing_is_taken_in(tmp_path: Path) -> None:
    entries = [entry(number) for number in range(len(ASKED))]
    entries[1]["segmentation"]["size"] = [6, 4]
    entries[2]["segmentation"]["counts"] = "?"
    entries[3]["sent_id"] = 99
    path = write(tmp_path / "masks.jsonl", [*entries, entries[0]])
    with pytest.raises(UserError) as error:
        read_masks(path, ASKED)
    message = str(error.value)
    assert message.startswith(f"{path}: nothing was taken in; ") and "\n" not in message
    for part in ("1 double (sent_id 10)", "1 of the wrong size (sent_id 11)", "1 unreadable (sent_id 20)"):
        assert part in message
    assert "1 unknown (sent_id 99)" in message and "1 missing (sent_id 21)" in message
    many = [Asked(1, number, 4, 6) for number in range(50)]
    with pytest.raises(UserError, match=r"50 missing \(sent_id 0, 1, 2, 3, 4, \.\.\.\): write a mask for every"):
        read_masks(write(path, []), many)


def test_ids_of_sentences_that_repeat_need_the_reference(tmp_path: Path) -> None:
    asked = [Asked(1, 0, 4, 6), Asked(2, 0, 4, 6)]
    entries = [entry(number) | {"sent_id": 0} for number in (0, 1)]
    with pytest.raises(UserError, match=r"2 without ref_id .*: add ref_id"):
        read_masks(write(tmp_path / "a.jsonl", entries), asked)
    named = [one | {"ref_id": ref_id} for one, ref_id in zip(entries, (1, 2), strict=True)]
    assert set(read_masks(write(tmp_path / "b.jsonl", named), asked)) == {(1, 0), (2, 0)}


def test_a_file_that_is_no_json_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "masks.jsonl"
    path.write_text('{"sent_id": 1\n')
    with pytest.raises(UserError, match="neither a JSON list nor JSON Lines"):
        read_masks(path, ASKED)
