"""Systems that were not trained here: their part of the added evidence, and their metrics beside ours.

`wimfris ingest` judges their masks. Such a system is one set of weights without a seed, so its metrics have the
interval for these weights alone, a bootstrap over images. What needs seeds is not estimated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.results.evidence import (
    EMPHASIS_COLUMNS,
    REPORTS,
    RUN_COLUMNS,
    Evidence,
    EvidenceFiles,
    read_part,
    records_hash,
    write_part,
)
from wimfris.results.formats import DASH, Section, interval, percent
from wimfris.results.masks import read_evidence_masks, write_evidence_masks
from wimfris.results.scores import read_scores
from wimfris.results.statistics import resample
from wimfris.runs.manifest import code_revision
from wimfris.runs.records import NO_SEED, SPLITS
from wimfris.settings.params import Params

NEEDS_SEEDS = "needs seeds"
"""What a table states of a system without seeds where an estimate needs them."""


def add_system(
    params: Params,
    name: str,
    records: pd.DataFrame,
    masks: pd.DataFrame,
    source: str,
    *,
    replace: bool = False,
    reports: Path = REPORTS,
) -> EvidenceFiles:
    """Add the records and masks of a system to the added evidence, and its row to runs.csv; `source` is the hash of the
    masks' file.

    Records of further splits join those that the evidence holds. Raises UserError as `check_name`.
    """
    splits, protocol = sorted(records["split"].unique()), str(records["protocol"].iloc[0])
    check_name(params, name, splits, source, replace=replace, reports=reports)
    files = EvidenceFiles(params.settings().folder.name, added=True, reports=reports)
    parts, sources = [], {}
    if files.records.is_file():
        before = read_part(files)
        parts.append(before.select([run for run in before.runs["run"] if run != name]))
        held = before.records[before.records["run"] == name]
        held = held[~held["split"].isin(splits) & (held["protocol"] == protocol)]
        records = pd.concat([held, records], ignore_index=True) if len(held) else records
        kept = read_evidence_masks(files.masks, before.runs)
        kept = kept[(kept["run"] == name) & kept["split"].isin(held["split"])]
        masks = pd.concat([kept, masks], ignore_index=True) if len(kept) else masks
        sources = {split: hash for split, hash in _sources(before, name).items() if split in set(held["split"])}
    sources |= dict.fromkeys(splits, source)
    row = _row(name, records, {"masks": sources, "protocol": protocol})
    parts.append(Evidence(records, row, pd.DataFrame(columns=list(EMPHASIS_COLUMNS))))
    frames = [[part.records for part in parts], [part.runs for part in parts], [part.emphasis for part in parts]]
    full = ([frame for frame in group if len(frame)] or group[:1] for group in frames)
    evidence = Evidence(*(pd.concat(group, ignore_index=True) for group in full))
    write_part(files, evidence)
    masks = masks.assign(records=row["records"].iloc[0])
    write_evidence_masks(params, files.masks, masks, evidence.runs, merge=True)
    return files


def check_name(
    params: Params, name: str, splits: Sequence[str], source: str, *, replace: bool, reports: Path = REPORTS
) -> None:
    """Raise UserError if a system of this name cannot be added: the name is no name or that of a variant, or the
    evidence holds records of the system on one of the splits, or under another protocol, and `replace` is false.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"the name must be of letters, digits and _, got {name}")
    if name in params.variants or name in params.beyond:
        raise UserError(f"{name} is a variant of params.yaml; give the system another name")
    files = EvidenceFiles(params.settings().folder.name, added=True, reports=reports)
    if replace or not files.records.is_file():
        return
    before = read_part(files)
    held, protocol = before.records[before.records["run"] == name], params.settings().evaluate.protocol
    advice = "give another name, or replace it with --replace"
    if len(held) and set(held["protocol"]) != {protocol}:
        raise UserError(
            f"{files.records}: holds {name} under protocol {held['protocol'].iloc[0]}, not {protocol}; {advice}"
        )
    sources = _sources(before, name)
    for split in [split for split in splits if split in sources]:
        origin = "the same masks" if sources[split] == source else "other masks"
        raise UserError(f"{files.records}: holds {name} on split {split} already, from {origin}; {advice}")


def _sources(evidence: Evidence, name: str) -> dict[str, str]:
    """Return the hash of a system's masks by split, {} for an unknown system."""
    rows = evidence.runs[evidence.runs["run"] == name]
    return dict(json.loads(rows["settings"].iloc[0])["masks"]) if len(rows) else {}


def _row(name: str, records: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the system's row of runs.csv. What only a training here has is 0 or empty."""
    code, text = code_revision(), json.dumps(settings, sort_keys=True)
    numbers = dict.fromkeys(("processes", "minutes", "memory_gib", "best_epoch", "trained_parameters"), 0)
    row = dict.fromkeys(RUN_COLUMNS, "") | numbers
    row |= {"run": name, "variant": name, "seed": NO_SEED, "settings": text}
    row |= {"commit": (code["commit"] or "none") + "+" * bool(code["dirty"]), "records": records_hash(records)}
    row |= {"settings_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return pd.DataFrame([row], columns=list(RUN_COLUMNS))


def read_ingested(params: Params, reports: Path = REPORTS) -> pd.DataFrame:
    """Return the records of the systems that were not trained here, judged under the protocol of `params`."""
    settings = params.settings()
    files = EvidenceFiles(settings.folder.name, added=True, reports=reports)
    records = read_part(files).records if files.records.is_file() else pd.DataFrame(columns=["seed", "protocol"])
    return records[(records["seed"] == NO_SEED) & (records["protocol"] == settings.evaluate.protocol)]


# --- beside our systems -----------------------------------------------------------------------------------------------


def beside_ours(records: pd.DataFrame, ours: str = "full", *, resamples: int = 10_000) -> pd.DataFrame:
    """Compare the systems without seeds with `ours`: one row per split and system, all values fractions.

    Columns: dataset, scale, protocol, split, system; sentences, images; miou with its interval miou_low, miou_high; and
    difference with difference_low, difference_high, to the mean of the seeds of `ours`, NaN without records of it. The
    intervals are percentiles of a bootstrap over images, the same images for all systems: they hold for these weights.
    """
    rows = []
    for split in [name for name in SPLITS if (records["split"] == name).any()]:
        part = records[records["split"] == split]
        systems = sorted(part[part["seed"] == NO_SEED]["variant"].unique())
        known = [ours] if (part["variant"] == ours).any() else []
        if not systems:
            continue
        scores = read_scores(part, [*known, *systems], split)
        ratio = scores.ratios()["miou"]
        draws = resample({"miou": ratio}, resamples)["miou"]
        means = ratio[0].sum(axis=-1) / ratio[1].sum()
        for place, system in enumerate(systems, start=len(known)):
            own, other = scores.present[place], scores.present[0]
            value, drawn = means[place, own].mean(), draws[place, own].mean(axis=0)
            row = {name: part[name].iloc[0] for name in ("dataset", "scale", "protocol")}
            row |= {"split": split, "system": system, "sentences": scores.iou.shape[-1], "images": scores.starts.size}
            row |= {"miou": value} | dict(
                zip(("miou_low", "miou_high"), np.percentile(drawn, [2.5, 97.5]), strict=True)
            )
            row |= dict.fromkeys(("difference", "difference_low", "difference_high"), np.nan)
            if known:
                low, high = np.percentile(drawn - draws[0, other].mean(axis=0), [2.5, 97.5])
                row |= {"difference": value - means[0, other].mean(), "difference_low": low, "difference_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def ingested_section(table: pd.DataFrame, ours: str = "full") -> Section:
    """Format `beside_ours`."""
    first = table.iloc[0]
    cells = table[["system", "split"]].copy()
    cells["mIoU"] = percent(table["miou"])
    cells["these weights"] = _intervals(table, "miou", ".1f")
    cells[f"minus {ours}"] = percent(table["difference"], "+")
    cells["difference, these weights"] = _intervals(table, "difference", "+.1f")
    cells["difference, any seed"] = [DASH if np.isnan(value) else NEEDS_SEEDS for value in table["difference"]]
    cells[["sentences", "images"]] = table[["sentences", "images"]].astype(str).to_numpy()
    title = f"Systems that were not trained here: {first['dataset']}, scale {first['scale']}, protocol "
    title += str(first["protocol"])
    note = f"Judged from their masks. Intervals are over images, for these weights; {ours} is the mean of its seeds."
    foot = "One set of weights has no seeds: whether the method would differ, trained again, cannot be estimated."
    return Section(title, note, cells, foot, guide=True)


def _intervals(table: pd.DataFrame, name: str, form: str) -> list[str]:
    ends = zip(100 * table[f"{name}_low"], 100 * table[f"{name}_high"], strict=True)
    return [interval(low, high, form) for low, high in ends]
