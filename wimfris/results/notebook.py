"""What `reports/results.ipynb` shows its results with: the studies, the committed evidence, and HTML tables."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from wimfris.errors import UserError
from wimfris.results.comparison import Study
from wimfris.results.evidence import FOLDER, PARTS, current, read_evidence
from wimfris.results.formats import GUIDE, Section
from wimfris.settings.params import Params

_LONG = 32  # characters of a row's header beyond which it is wrapped
_OWN_REPORT = "write_report"  # of wimfris.cli.study: called by studies whose numbers need more than records


@dataclass(frozen=True)
class StudyFile:
    """A file of studies/, with its study, or None if its numbers need more than records."""

    name: str
    title: str
    study: Study | None


def load_studies(folder: Path = Path("studies")) -> list[StudyFile]:
    """Load the studies of the folder, ordered by file name.

    Files whose numbers need more than records (images, weights, a clock) are not imported, because they need torch.
    Raises `UserError` if another file has no constant `STUDY`.
    """
    files = []
    for path in sorted(folder.glob("*.py")):
        if _OWN_REPORT in path.read_text(encoding="utf-8"):
            files.append(StudyFile(path.stem, path.stem.replace("_", " ").capitalize(), None))
            continue
        spec = importlib.util.spec_from_file_location(f"studies_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        study = getattr(module, "STUDY", None)
        if not isinstance(study, Study):
            raise UserError(f"{path}: has no constant STUDY; declare one, or move the file out of {folder}/")
        files.append(StudyFile(path.stem, study.title, study))
    return files


def evidence_of(params: Params, reports: Path = Path("reports")) -> dict[str, tuple[Params, pd.DataFrame]]:
    """Return the committed evidence, that of params.yaml first: name of set and scale -> params there, and records.

    Raises `UserError` if the evidence for the set and scale of params.yaml is missing.
    """
    own = params.settings().folder.name
    names = sorted({path.stem.removesuffix(PARTS[1]) for path in (reports / FOLDER).glob("*.parquet")} - {own})
    evidence = {}
    for name in (own, *names):
        records = read_evidence(name, reports)
        update = {"scale": records["scale"].iloc[0], "data": params.data | {"name": records["dataset"].iloc[0]}}
        scaled = params.model_copy(update=update)
        evidence[name] = (scaled, current(scaled, records))
    return evidence


def missing_runs(records: pd.DataFrame, params: Params, variants: Iterable[str]) -> list[str]:
    """Return the declared runs of these variants that have no records."""
    existing = set(records["run"].unique())
    return [run for variant in variants for run in params.runs_of(variant) if run not in existing]


def missing_html(runs: Sequence[str]) -> str:
    """Return a notice that the evidence lacks these runs; empty if there are none."""
    seeds: dict[str, list[str]] = {}
    for variant, _, seed in (run.rpartition("-") for run in runs):
        seeds.setdefault(variant, []).append(seed)
    missing = ", ".join(f"{variant} (seeds {' '.join(numbers)})" for variant, numbers in seeds.items())
    return notice(f"Not in the evidence: {missing}. Rows that need these runs are empty below.") if runs else ""


def notice(text: str) -> str:
    """Return a highlighted note."""
    return f'<p class="notice" role="note"><strong>Note.</strong> {escape(text)}</p>'


def section_html(section: Section) -> str:
    """Return a table as HTML, with its title and the notes before and after it; links start at the folder reports."""
    guide = f'How to read this table: <a href="../{GUIDE}">{GUIDE}</a>' if section.guide else ""
    parts = [
        f'<p class="title">{escape(section.title)}</p>',
        f'<p class="small">{guide}</p>' if guide else "",
        f'<p class="small">{escape(section.note.strip())}</p>' if section.note else "",
        table_html(section.cells, section.title, section.left),
        f'<p class="small">{escape(section.foot)}</p>' if section.foot else "",
    ]
    return "\n".join(filter(None, parts))


def table_html(cells: pd.DataFrame, label: str, left: Collection[str] = (), raw: Collection[str] = ()) -> str:
    """Return cells of text as a table in a scrolling box; the columns `raw` hold HTML, `left` words.

    A row's header is its cell in the column `row`, or in the first column.
    """
    names = list(cells.columns)
    header = "row" if "row" in names else names[0]

    def cell(name: str, value: object) -> str:
        shown = str(value) if name in raw else escape(str(value)).replace("_", "_<wbr>")
        if name == header:
            kind = "long" if len(str(value)) > _LONG and name not in raw else "words"
            return f'<th scope="row" class="{kind}">{shown}</th>'
        return f'<td class="words">{shown}</td>' if name in left else f"<td>{shown}</td>"

    words = {name: ' class="words"' if name in left or name == header else "" for name in names}
    head = "".join(f'<th scope="col"{words[name]}>{escape(name)}</th>' for name in names)
    body = "\n".join(
        f"<tr>{''.join(cell(name, value) for name, value in zip(names, row, strict=True))}</tr>"
        for row in cells.itertuples(index=False, name=None)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def runs_html(name: str, records: pd.DataFrame, variants: Collection[str]) -> str:
    """Return links to the runs of these variants in the provenance of this set and scale (`name`)."""
    runs = sorted(records.loc[records["variant"].isin(list(variants)), "run"].unique())
    links = " ".join(f'<a href="#{name}-{run}">{run}</a>' for run in runs)
    return f"<details><summary>The {len(runs)} runs behind these numbers</summary><p>{links}</p></details>"


def committed_tables(name: str, study: str, reports: Path = Path("reports")) -> str:
    """Return the study's committed tables at this set and scale as Markdown with headings of level 4, without images.

    They are `<study>.md` and `<study>-*.md`; empty if there are none. Links start at the folder `reports`.
    """
    folder = reports / "tables" / name
    parts = []
    for path in [*folder.glob(f"{study}.md"), *sorted(folder.glob(f"{study}-*.md"))]:
        text = re.sub(r"(?m)^!\[.*\n", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"(?m)^# .*\n", "", text) if path.stem == study else re.sub(r"(?m)^# ", "#### ", text)
        text = text.replace("](../../../", "](../")
        parts.append(re.sub(r"(?m)^##+ ", "#### ", text))
    return "\n\n".join(parts)


def provenance(name: str, records: pd.DataFrame, params: Params, reports: Path = Path("reports")) -> pd.DataFrame:
    """Return where every run of a set and scale (`name`) came from: one row per run, read from its manifest.

    Columns: run (HTML: an anchor and a link to the manifest, from the folder `reports`), commit, settings (first digits
    of the SHA-256 of the resolved settings), device, minutes, memory in GiB (peak of the process), epoch (the best
    one). A run without a manifest has a row that says so.
    """
    rows = []
    for run in sorted(records["run"].unique()):
        variant = run.rpartition("-")[0]
        declared = variant in params.variants or variant in params.extended
        path = params.settings(variant).outs / "manifests" / f"{run}.json" if declared else Path("none")
        if not path.is_file():
            rows.append({"run": f'<span id="{name}-{run}">{run}</span>', "commit": "no manifest"})
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        code, memory = manifest["code"], manifest["peak_memory_bytes"]
        link = Path(os.path.relpath(path, reports)).as_posix()
        settings = json.dumps(manifest["settings"], sort_keys=True).encode()
        rows.append(
            {
                "run": f'<a id="{name}-{run}" href="{link}">{run}</a>',
                "commit": (code["commit"] or "none")[:10] + (" and changes" if code["dirty"] else ""),
                "settings": hashlib.sha256(settings).hexdigest()[:10],
                "device": manifest["device"],
                "minutes": f"{manifest['wall_seconds'] / 60:.1f}",
                "memory, GiB": f"{memory.get('cuda', memory['host']) / 2**30:.2f}",
                "epoch": str(manifest["best_epoch"]),
            }
        )
    columns = ["run", "commit", "settings", "device", "minutes", "memory, GiB", "epoch"]
    return pd.DataFrame(rows, columns=columns).fillna("")
