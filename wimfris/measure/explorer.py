"""`wimfris explore`: one page that compares two systems sentence by sentence, with their masks.

The page holds its data: images, targets, IoUs and masks. It needs neither a server nor a network. Its words and style
are in explorer.html, its script in explorer.js. Every mask is judged again before it is shown.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from wimfris.data.images import read_image
from wimfris.data.index import decode_mask, read_index
from wimfris.data.letterbox import letterbox_mask
from wimfris.data.mixed import dataset_label
from wimfris.data.objects import ImageObjects, read_objects
from wimfris.data.protocol import PROTOCOLS, SQUASHED_SIDE
from wimfris.data.rle import encode_mask, mask_area, pairwise_iou
from wimfris.data.source import source_images
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.measure.strata_labels import strata_labels
from wimfris.metrics import ious
from wimfris.results.analyses.right_object import DISTRACTORS
from wimfris.results.analyses.strata import STRATA
from wimfris.results.comparisons import comparisons_path, read_comparisons
from wimfris.results.evidence import REPORTS, Evidence, EvidenceFiles, read_evidence, read_masks_of, read_part
from wimfris.results.ingested import read_ingested
from wimfris.results.plan import METRIC, SPLIT, Plan, read_plan
from wimfris.results.releases import release_of
from wimfris.results.scores import own_sentences
from wimfris.runs.records import CASE, holds_objects
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings
from wimfris.settings.sections import SCENES

PAGE, SCRIPT = (Path(__file__).with_name(f"explorer.{ending}") for ending in ("html", "js"))
FILE = "explorer.html"
LEVELS = {name: STRATA[name] for name in ("kind", "size", "windows")} | {"distractors": DISTRACTORS}
SIDE, QUALITY = 320, 80  # of a picture on the page: its longer side at most, in pixels, and WebP's quality
UNIT = 10_000  # IoUs are whole numbers of 1 / UNIT; -1 for a sentence that a system was not judged on
STUB = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Explorer</title>
<p>{}</p></html>
"""
ELSEWHERE = 'The explorer of {name} shows its images, so it is not part of the report: <a href="../{path}">{path}</a>.'
FEW = "The evidence holds fewer than two systems of `explorer` in params.yaml, so that there is nothing to compare."


def write_explorer(params: Params, *, report: bool = True) -> Path:
    """Write the explorer of the data set and scale of `params`, and return its path.

    With `report`, that of the built-in data set becomes a page of the report, reports/explorer.html. Any other page
    shows images that are not ours to ship: it stays under runs/, and the report's page points to it.

    Raises UserError where a mask does not give its record, or there is no evidence of two systems; the report's page
    says the latter.
    """
    if report and len(_evidence(params).runs) < 2:
        write_text(REPORTS / FILE, STUB.format(FEW))
        return REPORTS / FILE
    folder, own = params.settings().folder, params.settings().data.name == SCENES
    path = REPORTS / FILE if report and own else folder / FILE
    home = "index.html" if path.parent == REPORTS else "../../reports/index.html"
    write_text(path, explorer_page(explorer_data(params), home))
    if report and not own:
        write_text(REPORTS / FILE, STUB.format(ELSEWHERE.format(name=escape(folder.name), path=path)))
    return path


def explorer_page(data: Mapping[str, Any], home: str) -> str:
    """Return the page with its data; home: the address of the report."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    parts = {"TITLE": escape(data["title"]), "HOME": escape(home), "DATA": text, "SCRIPT": SCRIPT.read_text("utf-8")}
    head, *rest = PAGE.read_text(encoding="utf-8").split("{{")  # once, because the data may hold any text
    return head + "".join(parts[name] + tail for name, tail in (piece.split("}}", 1) for piece in rest))


def explorer_data(params: Params) -> dict[str, Any]:
    """Return what the page shows, as JSON can hold it; explorer.js says what each part is."""
    settings = params.settings()
    evidence = _evidence(params)
    names = [str(name) for name in evidence.runs["run"]]
    if len(names) < 2:
        raise UserError(
            f"{EvidenceFiles(settings.folder.name, False).records}: holds {len(names)} of the systems of `explorer` in "
            "params.yaml, two are needed; train them with `wimfris matrix`, or take a system in with `wimfris ingest`"
        )
    index = _index(settings)
    first = index[index["split"] == settings.data.splits[0]]
    targets = _targets(settings, first)
    sentences = _sentences(settings, index)
    masks = read_masks_of(params, evidence).merge(sentences[[*CASE, "target"]], on=CASE)
    _check_masks(masks, targets, evidence.records)
    plan, own = read_plan(), own_sentences(evidence.records)
    systems = [
        _system(name, _label(plan, settings, name), own, masks[masks["run"] == name], sentences) for name in names
    ]
    pictured = first[: masks["target"].max() + 1 if len(masks) else None]  # objects up to the last one with a mask
    images = source_images(settings)
    columns = ("image", "target", "text", *LEVELS)
    side = settings.scan_window or settings.grid
    titles = {"windows": f"windows of {side}x{side} that the target touches"}  # of the full model
    return {
        "title": f"{settings.data.name}, scale {settings.scale}, protocol {settings.evaluate.protocol}",
        "release": release_of(settings.folder.name),
        "unit": UNIT,
        "splits": settings.data.splits,
        "strata": [
            {"name": name, "title": titles.get(name, one.title), "levels": one.levels} for name, one in LEVELS.items()
        ],
        "pictures": [_picture(images / name) for name in pictured["file_name"].unique()],
        "targets": targets[: len(pictured)],
        "sentences": {"split": list(sentences["split"])} | {name: sentences[name].tolist() for name in columns},
        "systems": systems,
        "comparisons": _comparisons(settings.folder.name, [system["name"] for system in systems]),
    }


def _evidence(params: Params) -> Evidence:
    """Return the evidence of the runs that the explorer shows, in its order, and of the systems taken in."""
    order = [str(run) for run in params.explorer_runs()]
    ours = read_evidence(params).select(order)
    runs = ours.runs.sort_values("run", key=lambda names: names.map(order.index), ignore_index=True)
    ingested = read_ingested(params)
    if ingested.empty:
        return Evidence(ours.records, runs, ours.emphasis)
    theirs = read_part(EvidenceFiles(params.settings().folder.name, added=True)).select(list(ingested["run"].unique()))
    records = pd.concat([ours.records, theirs.records], ignore_index=True)
    return Evidence(records, pd.concat([runs, theirs.runs], ignore_index=True), ours.emphasis)


def _index(settings: Settings) -> pd.DataFrame:
    """Return the evaluated rows of the index, those of the first split first, with their image's number, `image`."""
    index = read_index(settings.folder / "index" / "index.parquet")
    parts = [index[index["split"] == split].sort_values("ref_id") for split in settings.data.splits]
    index = pd.concat(parts, ignore_index=True)
    return index.assign(image=pd.factorize(index["file_name"])[0])


def _targets(settings: Settings, index: pd.DataFrame) -> list[list[Any]]:
    """Return image, height, width and run lengths of each row's target, at the size at which the protocol judges."""
    protocol = PROTOCOLS[settings.evaluate.protocol]
    if protocol.at_original:
        return index[["image", "height", "width", "rle_counts"]].to_numpy().tolist()
    judged = [encode_mask(protocol.target(decode_mask(row))) for row in index.to_dict("records")]
    return [[int(image), SQUASHED_SIDE, SQUASHED_SIDE, rle] for image, rle in zip(index["image"], judged, strict=True)]


def _sentences(settings: Settings, index: pd.DataFrame) -> pd.DataFrame:
    """Return one row per sentence: `CASE`, text, image, target (numbers), and the level of each of `LEVELS`, -1 without
    one.
    """
    objects = ImageObjects(read_objects(settings.folder / "index"), PROTOCOLS[settings.evaluate.protocol])
    distractors = [objects.candidates(row).distractors for row in index.to_dict("records")]
    window = (settings.scan_window or settings.grid) * settings.encoders.vision.patch
    labels = strata_labels(index, partial(letterbox_mask, size=settings.data.image_size), window, {})
    rows = index.assign(target=range(len(index)), distractors=distractors)
    rows = rows.explode(["sentences", "sent_ids", "kinds"], ignore_index=True)
    rows = rows.assign(share=labels["share"], windows=labels["windows"])  # a row per sentence in the same order
    rows = rows.rename(columns={"sentences": "text", "sent_ids": "sent_id", "kinds": "kind"})
    rows["dataset"] = [dataset_label(settings.data, name) for name in rows["dataset"]]
    levels = {name: stratum(rows).cat.codes for name, stratum in LEVELS.items()}
    return rows.assign(**levels).astype({"sent_id": "int64"})[[*CASE, "text", "image", "target", *LEVELS]]


def _check_masks(masks: pd.DataFrame, targets: Sequence[Sequence[Any]], records: pd.DataFrame) -> None:
    """Judge every mask again. Raises UserError if one does not give its record: its size, area and IoU."""
    joined = masks.merge(own_sentences(records), on=["run", *CASE])
    for target, rows in joined.groupby("target"):
        _, height, width, rle = targets[int(str(target))]
        shape, counts = (int(height), int(width)), list(rows["rle"])
        predicted = rows["intersection"] + rows["union"] - mask_area(rle, *shape)
        same = (rows["height"] == height) & (rows["width"] == width)
        same &= predicted == [mask_area(one, *shape) for one in counts]
        judged, recorded = pairwise_iou(counts, [rle], *shape).ravel(), ious(rows["intersection"], rows["union"])
        wrong = rows[~(same & (np.abs(judged - recorded) < 1 / UNIT))]
        if len(wrong):
            row = wrong.iloc[0]
            raise UserError(
                f"reports/masks: the mask of {row['run']} for sentence {row['sent_id']} does not give its record; "
                "restore reports with `git checkout`, or prepare the data again with `dvc repro prepare`"
            )


def _label(plan: Plan, settings: Settings, run: str) -> str:
    """Return the name of a run's system in sentences, that of the full model with its window."""
    variant = run.rpartition("-")[0] or run
    side = settings.scan_window
    return plan.label(variant) + (f", windows of {side}x{side}" if variant == "full" and side else "")


def _system(
    run: str, label: str, records: pd.DataFrame, masks: pd.DataFrame, sentences: pd.DataFrame
) -> dict[str, Any]:
    """Return a system's IoUs, right objects and masks in the order of the sentences; None for what it lacks."""
    own = records[records["run"] == run]
    rows = sentences[CASE].merge(own, on=CASE, how="left", validate="1:1")
    known = rows["union"].notna().to_numpy()
    iou = np.rint(UNIT * ious(rows["intersection"].fillna(0), rows["union"].fillna(0))).astype(int)
    joined = sentences[CASE].merge(masks[[*CASE, "rle"]], on=CASE, how="left", validate="1:1")
    kept = [None if pd.isna(rle) else str(rle) for rle in joined["rle"]]
    while kept and kept[-1] is None:  # those of the further splits
        kept.pop()
    return {
        "name": str(own["variant"].iloc[0]),
        "label": label,
        "run": run,
        "iou": np.where(known, iou, -1).tolist(),
        "right": [int(value) if value in (True, False) else -1 for value in rows["right_object"]]
        if holds_objects(own)
        else None,
        "masks": kept or None,
    }


def _picture(path: Path) -> list[Any]:
    """Return width, height and data address of an image, at most `SIDE` pixels long."""
    image = read_image(path)
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        size = tuple(max(round(scale * side), 1) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()
    return [image.shape[1], image.shape[0], f"data:image/webp;base64,{base64.b64encode(content).decode()}"]


def _comparisons(name: str, systems: Sequence[str]) -> list[list[Any]]:
    """Return the report's comparisons of these systems: system, rival, difference, low, high, level, verdict, tier,
    seeds.
    """
    if not comparisons_path(name).is_file():
        return []
    rows = read_comparisons(name).frame
    rows = rows[(rows["split"] == SPLIT) & (rows["metric"] == METRIC) & (rows["verdict"] != "")]
    rows = rows[rows["system"].isin(systems) & rows["rival"].isin(systems)].assign(level=1 - rows["error"])
    columns = ["system", "rival", "difference", "low", "high", "level", "verdict", "tier", "seeds"]
    return rows[columns].round({"difference": 5, "low": 5, "high": 5, "level": 5}).to_numpy().tolist()
