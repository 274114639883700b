"""Tables as text: cells, and a table's Markdown, LaTeX, CSV and terminal output.

A CSV holds fractions with six decimals; the other formats show percent with one decimal.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tabulate import LATEX_ESCAPE_RULES, tabulate

DASH = "–"
"""The cell of an unknown value."""

GUIDE = "docs/statistics.md"
"""The page that explains the columns of the results tables, from the project's root."""

_READ = "How to read this table:"
_LATEX_COLUMNS = 13  # as many fit side by side on a LaTeX page
_MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_[]<>|&#~$"})
_LATEX = str.maketrans(LATEX_ESCAPE_RULES)


def percent(values: pd.Series, sign: str = "-") -> list[str]:
    """Format fractions as percent, or differences of fractions as points (sign "+")."""
    return [DASH if np.isnan(value) else f"{100 * value:{sign}.1f}" for value in values]


def interval(low: float, high: float, form: str = "+.1f") -> str:
    """Format an interval as [low, high]."""
    return DASH if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def level_text(error: float) -> str:
    """Return the level 1 - error of an interval in percent, with two decimals, or more where these would say 100."""
    percent = 100 * (1 - error)
    return f"{percent:.2f}%" if percent < 99.995 else f"{percent:.6g}%"


def seeds_text(seeds: str, rival_seeds: str) -> str:
    """Return the seeds of a comparison in words; seeds, rival_seeds: numbers with a space between."""
    words = [f"seed{'s' if ' ' in one else ''} {one.replace(' ', ', ')}" for one in (seeds, rival_seeds)]
    return words[0] if seeds == rival_seeds else f"{words[0]} against {words[1]}"


@dataclass(frozen=True)
class Section:
    """A table as it is shown: cells of text under a title, with a note before them and one after."""

    title: str
    note: str  # the facts of this table alone
    cells: pd.DataFrame
    foot: str = ""
    left: tuple[str, ...] = ("system", "split")  # the columns of words; numbers are aligned right
    guide: bool = False  # point to `GUIDE`, which explains the columns

    def alignment(self) -> list[str]:
        """Return `left` or `right` for every column."""
        return ["left" if name in self.left else "right" for name in self.cells.columns]

    def without(self, sentence: str) -> "Section":
        """Return the table without this sentence in its note."""
        return replace(self, note=self.note.replace(sentence, "").strip()) if sentence else self


def print_section(section: Section, without: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a table to the terminal; a column `block` becomes lines of its own.

    A table that is wider than the terminal is folded: further columns follow below, beside the rows' names. The columns
    `without` are left out, and named.
    """
    console = console or Console()
    cells = section.cells.drop(columns=[name for name in (*without, "block") if name in section.cells])
    blocks = list(section.cells.get("block", [""] * len(cells)))
    names = list(takewhile(lambda name: name in section.left and name != "verdict", cells.columns)) or [
        cells.columns[0]
    ]
    groups = _fold(cells, names, console.width)
    absent = [name for name in without if name in section.cells]
    caption = [f"{_READ} {GUIDE}" if section.guide else "", section.note.strip(), section.foot]
    caption += [f"Only in the files: {', '.join(absent)}."] if absent else []
    for number, group in enumerate(groups):
        table = Table(box=None, padding=(0, 1, 0, 0))
        if number == 0:
            table.title, table.title_justify = Text(section.title), "left"
        for name in group:
            table.add_column(name, justify="left" if name in section.left else "right", no_wrap=name not in names)
        for before, block, row in zip(["", *blocks], blocks, cells[group].itertuples(index=False), strict=False):
            if block != before:
                table.add_row(Text(block, "italic"))
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    console.print(Text("\n".join(filter(None, caption))))
    console.print()


def _fold(cells: pd.DataFrame, names: list[str], width: int) -> list[list[str]]:
    """Return the columns in groups that fit a terminal of this width, each after the columns of the rows' names."""
    widths = {name: max(map(cell_len, [name, *cells[name]])) + 1 for name in cells.columns}
    left = sum(widths[name] for name in names)
    groups: list[list[str]] = [list(names)]
    for name in cells.columns:
        if name in names:
            continue
        used = left + sum(widths[other] for other in groups[-1] if other not in names)
        if used + widths[name] > width and len(groups[-1]) > len(names):
            groups.append(list(names))
        groups[-1].append(name)
    return groups


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV with six decimals."""
    return frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def markdown_text(heading: str, sections: Iterable[Section], intro: str = "") -> str:
    """Return tables as Markdown, each under a heading, with its note before and its foot after it, escaped.

    `intro` is Markdown and is not escaped. Links start at reports/tables/<set>-<scale>/, where the files lie.
    """
    parts = list(filter(None, [f"# {heading.translate(_MARKDOWN)}\n", intro]))
    for section in sections:
        body = tabulate(
            [[cell.translate(_MARKDOWN) for cell in row] for row in section.cells.itertuples(index=False)],
            headers=[name.translate(_MARKDOWN) for name in section.cells.columns],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=section.alignment(),
        )
        guide = f"{_READ} [{GUIDE}](../../../{GUIDE})" if section.guide else ""
        paragraphs = [f"## {section.title.translate(_MARKDOWN)}", guide, section.note.strip().translate(_MARKDOWN)]
        paragraphs += [body, section.foot.translate(_MARKDOWN)]
        parts.append("\n\n".join(filter(None, paragraphs)) + "\n")
    return "\n".join(parts)


def parse_markdown(text: str) -> tuple[str, list[Section]]:
    """Return the intro and the tables of a file that `markdown_text` wrote, without its heading and its pictures."""
    intro, *parts = re.split(r"(?m)^## ", text)
    intro = re.sub(r"(?m)^(# .*|!\[.*)\n", "", intro).strip()
    return intro, [_parse_section(*part.split("\n", 1)) for part in parts]


def _parse_section(title: str, content: str) -> Section:
    blocks = content.strip().split("\n\n")
    guide = blocks[0].startswith(_READ)
    blocks = blocks[guide:]
    table = next(number for number, block in enumerate(blocks) if block.startswith("|"))
    header, rule, *rows = (list(_parse_row(line)) for line in blocks[table].splitlines())
    left = tuple(name for name, dashes in zip(header, rule, strict=True) if not dashes.endswith(":"))
    note, foot = (_unescaped("\n\n".join(part)) for part in (blocks[:table], blocks[table + 1 :]))
    return Section(_unescaped(title), note, pd.DataFrame(rows, columns=header), foot, left, guide)


def _parse_row(line: str) -> Iterator[str]:
    for cell in re.split(r"(?<!\\)\|", line)[1:-1]:
        yield _unescaped(cell.strip())


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def latex_text(sections: Iterable[Section]) -> str:
    """Return tables as LaTeX `table` environments (booktabs), whose captions hold title, note and foot.

    A table of many columns is shrunk to the width of the text (graphicx).
    """
    sections = list(sections)
    wide = any(len(section.cells.columns) > _LATEX_COLUMNS for section in sections)
    packages = "booktabs,graphicx" if wide else "booktabs"
    return f"% needs \\usepackage{{{packages}}}\n\n{_latex_tables(sections)}"


def latex_document(title: str, sections: Iterable[Section]) -> str:
    """Return the tables of `latex_text` as a LaTeX document that compiles as it is."""
    head: tuple[str, ...] = (
        "\\documentclass[a4paper]{article}",
        "\\usepackage[T1]{fontenc}",
        "\\usepackage[utf8]{inputenc}",
    )
    head += ("\\usepackage{booktabs,graphicx}", "\\usepackage[margin=2cm]{geometry}")
    begin = f"\\begin{{document}}\n\\section*{{{title.translate(_LATEX)}}}\n"
    tables = _latex_tables(sections).replace("\\end{table}\n", "\\end{table}\n\\clearpage\n")  # LaTeX holds few floats
    return "\n".join([*head, begin, tables, "\\end{document}\n"])


def _latex_tables(sections: Iterable[Section]) -> str:
    parts = []
    for section in sections:
        body = tabulate(
            list(section.cells.itertuples(index=False)),
            headers=list(section.cells.columns),
            tablefmt="latex_booktabs",  # escapes its cells
            disable_numparse=True,
            colalign=section.alignment(),
        )
        if len(section.cells.columns) > _LATEX_COLUMNS:
            body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
        sentences = [f"{section.title}.", f"{_READ} {GUIDE}." if section.guide else "", section.note.strip()]
        caption = " ".join(filter(None, [*sentences, section.foot])).translate(_LATEX)
        parts.append(
            f"\\begin{{table}}\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n\\caption{{{caption}}}\n{body}\n\\end{{table}}\n"
        )
    return "\n".join(parts)
