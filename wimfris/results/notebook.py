"""The report: what `reports/results.ipynb` shows its results with, and the page that is made of it.

The notebook computes, from the committed evidence alone; `write_page` executes it and writes one self-contained HTML
page: no script, nothing from a network, images within it.
"""

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import mistune
import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.comparison import Study
from wimfris.results.evidence import FOLDER, PARTS, current, read_evidence
from wimfris.results.measured import Measured
from wimfris.results.page import PAGE
from wimfris.results.tables import Section
from wimfris.settings.params import Params
from wimfris.settings.run import Run

NOTEBOOK = Path("reports/results.ipynb")
PAGE_PATH = Path("reports/index.html")

ONLY = "notebook-only"
"""The tag of cells that the page leaves out: its contents are its own."""

_TIMEOUT = 600  # seconds a cell may take
_LONG = 32  # characters of a row's header beyond which it is broken into lines


# --- what the notebook shows its results with -------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyFile:
    """A file of studies/: its study, or None where its numbers come from more than records."""

    name: str
    title: str
    study: Study | None


_OWN = "write_report"  # of wimfris.cli.study: what a study calls whose numbers come from more than records


def load_studies(folder: Path = Path("studies")) -> list[StudyFile]:
    """The studies of the folder, in the order of their files. Raises `UserError` where one has no constant `STUDY`.

    Files whose numbers come from more than records (images, weights, a clock) are not imported: they need torch.
    """
    found = []
    for path in sorted(folder.glob("*.py")):
        if _OWN in path.read_text(encoding="utf-8"):
            found.append(StudyFile(path.stem, path.stem.replace("_", " ").capitalize(), None))
            continue
        spec = importlib.util.spec_from_file_location(f"studies_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        study = getattr(module, "STUDY", None)
        if isinstance(study, Measured):
            found.append(StudyFile(path.stem, study.title, None))
            continue
        if not isinstance(study, Study):
            raise UserError(f"{path}: has no constant STUDY; see the other studies, or move it out of {folder}/")
        found.append(StudyFile(path.stem, study.title, study))
    return found


def evidence_of(params: Params, reports: Path = Path("reports")) -> dict[str, tuple[Params, pd.DataFrame]]:
    """The committed records by set and scale, that of params.yaml first: name -> params at that scale, and records.

    Raises `UserError` where the evidence of params.yaml's set and scale is missing.
    """
    own = params.settings().folder.name
    names = sorted({path.stem.removesuffix(PARTS[1]) for path in (reports / FOLDER).glob("*.parquet")} - {own})
    found = {}
    for name in (own, *names):
        records = read_evidence(name, reports)
        update = {"scale": records["scale"].iloc[0], "data": params.data | {"name": records["dataset"].iloc[0]}}
        at = params.model_copy(update=update)
        found[name] = (at, current(at, records))
    return found


def missing_runs(records: pd.DataFrame, params: Params, variants: Iterable[str]) -> list[str]:
    """The declared runs of these variants that the records do not hold."""
    there = set(records["run"].unique())
    return [str(run) for variant in variants for run in params.runs_of(variant) if str(run) not in there]


def missing_html(runs: Sequence[str]) -> str:
    """A visible note that these runs are not in the evidence; empty where none is missing."""
    seeds: dict[str, list[str]] = {}
    for run in map(Run.parse, runs):
        seeds.setdefault(run.variant, []).append(str(run.seed))
    told = ", ".join(f"{variant} (seeds {' '.join(numbers)})" for variant, numbers in seeds.items())
    return notice(f"Not in the evidence: {told}. What rests on these runs is left open below.") if runs else ""


def notice(text: str) -> str:
    """A note that nobody overlooks."""
    return f'<p class="notice" role="note"><strong>Note.</strong> {escape(text)}</p>'


def section_html(section: Section) -> str:
    """A table with its title, the notes before and after it, as HTML."""
    parts = [
        f'<p class="title">{escape(section.title)}</p>',
        f'<p class="small">{escape(section.note)}</p>' if section.note else "",
        table_html(section.cells, section.title, section.left),
        f'<p class="small">{escape(section.foot)}</p>' if section.foot else "",
    ]
    return "\n".join(filter(None, parts))


def table_html(cells: pd.DataFrame, label: str, left: Collection[str] = (), raw: Collection[str] = ()) -> str:
    """Cells of text as a table that scrolls in a box of its own; the columns `raw` hold HTML, `left` words.

    The header of a row is its cell in the column `row`, or in the first one.
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
    """The runs of these variants, each a link to its line in the provenance of this set and scale (`name`)."""
    runs = sorted(records.loc[records["variant"].isin(list(variants)), "run"].unique())
    links = " ".join(f'<a href="#{name}-{run}">{run}</a>' for run in runs)
    return f"<details><summary>The {len(runs)} runs behind these numbers</summary><p>{links}</p></details>"


def committed_tables(name: str, study: str, reports: Path = Path("reports")) -> str:
    """The study's tables as they were written at this set and scale (`<study>.md`, and `<study>-*.md` where it has
    several reports), Markdown under headings of level 4; empty without.
    """
    folder = reports / "tables" / name
    parts = []
    for path in [*folder.glob(f"{study}.md"), *sorted(folder.glob(f"{study}-*.md"))]:
        text = re.sub(r"(?m)^!\[.*\n", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"(?m)^# .*\n", "", text) if path.stem == study else re.sub(r"(?m)^# ", "#### ", text)
        parts.append(re.sub(r"(?m)^##+ ", "#### ", text))
    return "\n\n".join(parts)


def provenance(name: str, records: pd.DataFrame, params: Params, reports: Path = Path("reports")) -> pd.DataFrame:
    """Where every run of a set and scale (`name`) came from: a row a run of the records, from its manifest.

    Columns: run (HTML: an anchor and a link to the manifest, from the folder `reports`), commit, settings (the first
    digits of the SHA-256 of its resolved settings), device, minutes, memory in GiB (the process's peak), epoch (the one
    kept). A run without a manifest has a row that says so.
    """
    rows = []
    for run in sorted(records["run"].unique()):
        variant = Run.parse(run).variant
        known = variant in params.variants or variant in params.extended
        path = params.settings(variant).outs / "manifests" / f"{run}.json" if known else Path("none")
        if not path.is_file():
            rows.append({"run": f'<span id="{name}-{run}">{run}</span>', "commit": "no manifest"})
            continue
        told = json.loads(path.read_text(encoding="utf-8"))
        code, memory = told["code"], told["peak_memory_bytes"]
        link = Path(os.path.relpath(path, reports)).as_posix()
        settings = json.dumps(told["settings"], sort_keys=True).encode()
        rows.append(
            {
                "run": f'<a id="{name}-{run}" href="{link}">{run}</a>',
                "commit": (code["commit"] or "none")[:10] + (" and changes" if code["dirty"] else ""),
                "settings": hashlib.sha256(settings).hexdigest()[:10],
                "device": told["device"],
                "minutes": f"{told['wall_seconds'] / 60:.1f}",
                "memory, GiB": f"{memory.get('cuda', memory['host']) / 2**30:.2f}",
                "epoch": str(told["best_epoch"]),
            }
        )
    columns = ["run", "commit", "settings", "device", "minutes", "memory, GiB", "epoch"]
    return pd.DataFrame(rows, columns=columns).fillna("")


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(notebook: Path = NOTEBOOK, page: Path = PAGE_PATH) -> None:
    """Execute the notebook and write the page. The same evidence gives the same bytes on one installation.

    Raises `UserError` where the notebook is missing or one of its cells finds bad input.
    """
    write_text(page, to_page(execute(notebook)))


def execute(notebook: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Run all cells of the notebook in a fresh kernel, in its folder; the file is left as it is.

    Raises `UserError` where the file is no notebook, or with the line of a cell's own `UserError`; `CellExecutionError`
    where a cell fails otherwise.
    """
    try:
        content = nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{notebook}: no such notebook; run from the project's root, or restore it with git") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError):
        raise UserError(f"{notebook}: not a notebook; restore it with git") from None
    with tempfile.TemporaryDirectory() as folder:  # no one's own IPython profile and start-up files
        client = NotebookClient(
            content,
            kernel_name="python3",
            timeout=_TIMEOUT,
            record_timing=False,
            extra_arguments=["--log-level=40"],  # errors; it would warn that it listens on this machine's own TCP
            resources={"metadata": {"path": str(notebook.parent)}},
        )
        try:
            client.execute(env={**os.environ, "IPYTHONDIR": folder})
        except CellExecutionError as error:
            if error.ename == UserError.__name__:
                raise UserError(error.evalue) from None
            raise
    return content


def to_page(notebook: nbformat.NotebookNode) -> str:
    """The executed notebook as one HTML page: its prose and outputs, without code, under a list of contents.

    Raises `UserError` where an image has no text that stands for it.
    """
    render = _Markdown()
    parts = []
    for cell in notebook.cells:
        if ONLY in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            parts.append(render(cell.source))
        elif cell.cell_type == "code":
            parts += [_output(output, cell.id, render) for output in cell.outputs]
    title = next((text for level, _, text in render.headings if level == 1), "Results")
    return PAGE.substitute(title=title, contents=_contents(render.headings), body="\n".join(filter(None, parts)))


def _output(output: Any, cell: str, render: "_Markdown") -> str:
    if output.output_type == "stream":  # what libraries warn of on stderr differs from machine to machine
        return f"<pre>{escape(output.text)}</pre>" if output.name == "stdout" else ""
    data = output.get("data", {})
    if "text/markdown" in data:
        return render(data["text/markdown"])
    if "text/html" in data:
        return str(data["text/html"])
    if "image/png" in data:
        alt = output.metadata.get("image/png", {}).get("alt")
        if not alt:
            raise UserError(f"cell {cell} of the notebook shows an image without alt text; give it one: Image(alt=...)")
        code = re.sub(r"\s", "", data["image/png"])
        return f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}" loading="lazy">'
    return f"<pre>{escape(data['text/plain'])}</pre>" if "text/plain" in data else ""


class _Markdown:
    """Markdown to HTML whose headings have ids, and are kept."""

    def __init__(self) -> None:
        self.headings: list[tuple[int, str, str]] = []  # level, id, HTML of the text
        outer = self

        class Renderer(mistune.HTMLRenderer):
            def heading(self, text: str, level: int, **_: Any) -> str:
                return outer.heading(text, level)

        self._render = mistune.create_markdown(renderer=Renderer(escape=False), plugins=["table"])

    def __call__(self, text: str) -> str:
        html = str(self._render(text))
        return html.replace(
            "<table>", '<div class="scroll" role="region" tabindex="0" aria-label="table"><table>'
        ).replace("</table>", "</table></div>")

    def heading(self, text: str, level: int) -> str:
        """A heading; its id is the one that a notebook viewer gives it."""
        name = re.sub(r"\s+", "-", re.sub(r"<[^>]*>", "", text).strip())
        self.headings.append((level, name, text))
        return f'<h{level} id="{name}">{text}</h{level}>\n'


def _contents(headings: Sequence[tuple[int, str, str]]) -> str:
    """A list of the sections, and within it of their parts."""
    lines = []
    for level, name, text in headings:
        if level in (2, 3):
            lines.append(f'<li class="level{level}"><a href="#{name}">{text}</a></li>')
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"
