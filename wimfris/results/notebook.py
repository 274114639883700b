"""What `reports/results.ipynb` shows its results with: the evidence at all scales, and HTML tables."""

import re
from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from wimfris.results.evidence import Evidence, evidence_names, read_evidence
from wimfris.results.formats import GUIDE, Section
from wimfris.settings.params import Params
from wimfris.settings.run import Run

_LONG = 32  # characters of a row's header beyond which it is wrapped


def evidence_of(params: Params, reports: Path = Path("reports")) -> dict[str, tuple[Params, Evidence]]:
    """Return the current evidence, that of params.yaml first: name of data set and scale -> params there, and evidence.

    Raises `UserError` if the evidence for the set and scale of params.yaml is missing.
    """
    own = params.settings().folder.name
    names = [own, *(name for name in evidence_names(reports) if name != own)]
    scaled = {name: params.at_name(name) for name in names}
    return {name: (scaled[name], read_evidence(scaled[name], reports)) for name in names}


def missing_runs(records: pd.DataFrame, params: Params, variants: Iterable[str]) -> list[Run]:
    """Return the declared runs of these variants that have no records."""
    existing = set(records["run"].unique())
    return [run for variant in variants for run in params.runs_of(variant) if str(run) not in existing]


def missing_html(runs: Sequence[Run]) -> str:
    """Return a notice that the evidence lacks these runs; empty if there are none."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.variant, []).append(str(run.seed))
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


def provenance(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Return where every run of a data set and scale (`name`) came from, as cells: one row per row of runs.csv.

    Columns: run (HTML with an anchor), commit, fingerprint (its first digits), settings (first digits of the
    SHA-256 of the resolved settings), scan, device, minutes, memory in GiB (peak of the process), epoch (the best one).
    """
    return pd.DataFrame(
        {
            "run": [f'<span id="{name}-{run}">{run}</span>' for run in runs["run"]],
            "commit": [commit[:10] + (" and changes" if commit.endswith("+") else "") for commit in runs["commit"]],
            "fingerprint": runs["fingerprint"].str[:10],
            "settings": runs["settings_sha256"].str[:10],
            "scan": runs["scan"],
            "device": runs["device"],
            "minutes": [f"{minutes:.1f}" for minutes in runs["minutes"]],
            "memory, GiB": [f"{memory:.2f}" for memory in runs["memory_gib"]],
            "epoch": runs["best_epoch"].astype(str),
        }
    )
