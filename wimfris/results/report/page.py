"""The report as one HTML page: the executed notebook's prose and outputs, without scripts or network access."""

import os
import re
import struct
import tempfile
from base64 import b64decode
from collections.abc import Sequence
from copy import deepcopy
from html import escape
from pathlib import Path
from typing import Any

import mistune
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.report.page_template import PAGE

NOTEBOOK = Path("reports/results.ipynb")
PAGE_PATH = Path("reports/index.html")

ONLY = "notebook-only"
"""The tag of cells that the page leaves out, because it has a list of contents of its own."""

_TIMEOUT = 600  # seconds a cell may take


def write_page(notebook: Path = NOTEBOOK, page: Path = PAGE_PATH) -> None:
    """Execute the notebook, and write it with its outputs and the page made of them.

    The same evidence gives the same bytes on one installation. Raises `UserError` as `execute` and `to_page`.
    """
    executed = execute(notebook)
    write_text(page, to_page(executed))
    write_text(notebook, nbformat.writes(executed) + "\n")


def execute(notebook: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of its cells, run in a fresh kernel in the notebook's folder.

    What differs between machines is left out: warnings, times and the version of Python. Raises `UserError` if the file
    is not a notebook, or with the message of a cell's own `UserError`; `CellExecutionError` if a cell fails otherwise.
    """
    try:
        content = nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{notebook}: no such notebook; run from the project's root, or restore it with git") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError):
        raise UserError(f"{notebook}: not a notebook; restore it with git") from None
    metadata = deepcopy(content.metadata)
    with tempfile.TemporaryDirectory() as folder:  # keeps the user's IPython profile and start-up files out
        client = NotebookClient(
            content,
            kernel_name="python3",
            timeout=_TIMEOUT,
            record_timing=False,
            extra_arguments=["--log-level=40"],  # errors only: the kernel warns that it listens on a local TCP port
            resources={"metadata": {"path": str(notebook.parent)}},
        )
        try:
            client.execute(env={**os.environ, "IPYTHONDIR": folder})
        except CellExecutionError as error:
            if error.ename == UserError.__name__:
                raise UserError(error.evalue) from None
            raise
    content.metadata = metadata
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return content


def to_page(notebook: nbformat.NotebookNode) -> str:
    """Return the executed notebook as one HTML page: its prose and outputs, without code, beside a list of contents.

    Raises `UserError` if an image has no alternative text.
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
    if output.output_type == "stream":  # stderr holds warnings of libraries, which differ between machines
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
        width, height = struct.unpack(">II", b64decode(code[:44])[16:24])  # of the PNG's header
        # The size keeps the place of everything below, so that links land where they should.
        image = f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}" width="{width}" height="{height}">'
        return f'<div class="picture" role="group" tabindex="0" aria-label="Figure">{image}</div>'
    return f"<pre>{escape(data['text/plain'])}</pre>" if "text/plain" in data else ""


class _Markdown:
    """Renders Markdown as HTML, gives headings ids and collects them."""

    def __init__(self) -> None:
        self.headings: list[tuple[int, str, str]] = []  # level, id, HTML of the text
        outer = self

        class Renderer(mistune.HTMLRenderer):
            def heading(self, text: str, level: int, **_: Any) -> str:
                return outer.heading(text, level)

        self._render = mistune.create_markdown(renderer=Renderer(escape=False))

    def __call__(self, text: str) -> str:
        return str(self._render(text))

    def heading(self, text: str, level: int) -> str:
        """Return a heading whose id is the one that a notebook viewer gives it."""
        name = re.sub(r"\s+", "-", re.sub(r"<[^>]*>", "", text).strip())
        repeated = sum(name == re.sub(r"-\d+$", "", other) for _, other, _ in self.headings)
        name = f"{name}-{repeated + 1}" if repeated else name
        self.headings.append((level, name, text))
        return f'<h{level} id="{name}">{text}</h{level}>\n'


def _contents(headings: Sequence[tuple[int, str, str]]) -> str:
    """Return a list of the headings of level 2, those of level 3 in lists of their own."""
    parts: list[str] = []
    inner = False
    for level, name, text in headings:
        if level not in (2, 3):
            continue
        if (level == 3) != inner:
            parts.append("<ul>" if level == 3 else "</ul></li>")
        elif parts:
            parts.append("</li>")
        inner = level == 3
        parts.append(f'<li><a href="#{name}">{text}</a>')
    return "\n".join(["<ul>", *parts, "</li></ul>" * inner, "</li>" if parts else "", "</ul>"])
