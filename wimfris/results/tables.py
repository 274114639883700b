"""The main table: every system on every split, averaged over seeds, the two controls beside it; and what all tables
are written with.

It lies at `reports/tables/main.{csv,md,tex}`. The CSV holds fractions, six decimals; Markdown, LaTeX and the terminal
show percent, one decimal.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from tabulate import LATEX_ESCAPE_RULES, tabulate

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.metrics import summarise
from wimfris.runs.records import CONDITIONS, SPLITS

METRICS = ("miou", "oiou", "pr50", "pr60", "pr70", "pr80", "pr90")
"""The metrics of a row, as `wimfris.metrics.summarise` names them."""

BUILT_IN = "scenes"
"""The data set that this package draws itself; its numbers are not comparable with the paper's."""

_ROW = ("dataset", "scale", "protocol", "system", "split")
_TEXT = ("system", "split")
_PERCENT = {
    "miou": "mIoU",
    "miou_sd": "SD",
    "oiou": "oIoU",
    "pr50": "P@50",
    "pr60": "P@60",
    "pr70": "P@70",
    "pr80": "P@80",
    "pr90": "P@90",
    "miou_shuffled": "shuffled",
    "miou_empty": "empty",
}
_COLUMNS = 13  # that fit beside each other on a page of LaTeX's
_MARKDOWN = str.maketrans({character: "\\" + character for character in "\\`*_[]<>|&#~$"})
_LATEX = str.maketrans(LATEX_ESCAPE_RULES)


DASH = "–"
"""What a cell shows where nothing is known."""


def percent(values: pd.Series, sign: str = "-") -> list[str]:
    """Fractions in percent, or their differences in points (sign "+")."""
    return [DASH if np.isnan(value) else f"{100 * value:{sign}.1f}" for value in values]


def interval(low: float, high: float, form: str = "+.1f") -> str:
    """The interval of a difference, [low, high], in the unit of the two."""
    return DASH if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def p_value(p: float) -> str:
    """Three decimals, as far as they tell anything."""
    return DASH if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "<0.001"


@dataclass(frozen=True)
class Section:
    """A table as it is shown: cells of text under a title, a note before them and one after."""

    title: str
    note: str
    cells: pd.DataFrame
    foot: str = ""
    left: tuple[str, ...] = _TEXT  # the columns of words; those of figures are set flush right

    def alignment(self) -> list[str]:
        """`left` or `right` for every column."""
        return ["left" if name in self.left else "right" for name in self.cells.columns]


def main_table(records: pd.DataFrame) -> pd.DataFrame:
    """Summarise records to one row per data set, scale, system (variant) and split.

    Columns: dataset, scale, protocol, system, split, seeds (how many), n (sentences per seed), miou, oiou, pr50 .. pr90
    (means over seeds of each seed's figure, fractions), miou_sd (standard deviation over seeds, ddof 1; empty for one
    seed), miou_shuffled and miou_empty (the controls' mIoU; empty where not every seed has them). Rows come in the
    order data set, scale, system with `full` first, split.

    Raises `UserError` where runs of one data set, scale and split differ in protocol or in the sentences they were
    evaluated on, or where a run has a sentence twice: their means would compare what cannot be compared.
    """
    for (dataset, scale, split), part in records.groupby(["dataset", "scale", "split"]):
        check_comparable(part, f"{dataset}, scale {scale}, split {split}")
    rows = []
    for key, part in records.groupby(["dataset", "scale", "protocol", "variant", "split"]):
        seeds = by_seed(part)
        row = dict(zip(_ROW, key, strict=True)) | {"seeds": len(seeds), "n": int(seeds["n"].iloc[0])}
        row |= {metric: seeds[metric].mean() for metric in METRICS}
        row |= {"miou_sd": seeds["miou"].std(ddof=1)}
        row |= {f"miou_{control}": seeds[f"miou_{control}"].mean(skipna=False) for control in CONDITIONS[1:]}
        rows.append(row)
    table = pd.DataFrame(rows)
    place = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "scale": table["scale"],
            "other": table["system"] != "full",
            "system": table["system"],
            "split": table["split"].map(SPLITS.index),
        }
    )
    return table.loc[place.sort_values(list(place.columns)).index].reset_index(drop=True)


def write_table(frame: pd.DataFrame, stem: Path, formats: Iterable[str] = ("csv", "md", "tex")) -> list[Path]:
    """Write a main table to `stem`.csv, .md and .tex, atomically, and return the paths.

    Markdown has a section and LaTeX a `table` environment (booktabs) for each data set and scale, which states
    protocol, data set, scale and number of seeds; the CSV is the bare table. Raises `ValueError` for an unknown format.
    """
    writers = {
        "csv": lambda: csv_text(frame),
        "md": lambda: markdown_text("Results", list(_sections(frame))),
        "tex": lambda: latex_text(list(_sections(frame))),
    }
    paths = []
    for suffix in formats:
        if suffix not in writers:
            raise ValueError(f"format '{suffix}' is none of {', '.join(writers)}")
        path = stem.with_name(f"{stem.name}.{suffix}")
        write_text(path, writers[suffix]())
        paths.append(path)
    return paths


def print_table(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print a main table to the terminal, a block for each data set and scale; P@60 and P@80 are left to the files."""
    for section in _sections(frame):
        print_section(section, ("P@60", "P@80"), console)


def write_main_tables(records: pd.DataFrame, folders: Iterable[Path]) -> pd.DataFrame:
    """Write `main.{csv,md,tex}` of these records to every folder, and return the table."""
    frame = main_table(records)
    for folder in folders:
        write_table(frame, folder / "main")
    return frame


def check_comparable(part: pd.DataFrame, where: str) -> None:
    """Refuse runs that are not of one data set and scale, or were not evaluated on the same cases in the same way."""
    for column, name in (("dataset", "data sets"), ("scale", "scales")):
        values = part.groupby(column, observed=True)["run"].min()
        if len(values) > 1:
            told = " and ".join(f"'{value}' (run {run})" for value, run in values.items())
            raise UserError(f"{where}: {name} {told} cannot be compared; give the records of one of them")
    protocols = part.groupby("protocol")["run"].min()
    if len(protocols) > 1:
        told = " and ".join(f"'{protocol}' (run {run})" for protocol, run in protocols.items())
        raise UserError(f"{where}: protocols {told} cannot stand in one table; evaluate all runs under one of them")
    case = ["ref_id", "sent_id"]
    expected: tuple[str, set[tuple[int, int]]] | None = None
    for _, rows in part.groupby(["variant", "seed"]):
        names = " and ".join(sorted(rows["run"].unique()))
        told_its_own = rows[rows["condition"] == CONDITIONS[0]]
        cases = set(zip(told_its_own["ref_id"], told_its_own["sent_id"], strict=True))
        if not cases:
            raise UserError(f"{where}: run {names} has controls but no sentences; evaluate it again with `dvc repro`")
        if len(cases) < len(told_its_own):
            ref_id, sent_id = told_its_own.loc[told_its_own.duplicated(case), case].min()
            raise UserError(
                f"{where}: sentence {sent_id} of object {ref_id} is there twice in run {names}; "
                "delete what is stale under runs/ and run `dvc repro`"
            )
        expected = expected or (names, cases)
        if cases != expected[1]:
            raise UserError(
                f"{where}: run {names} ({len(cases)} sentences) was not evaluated on the sentences of "
                f"run {expected[0]} ({len(expected[1])}); evaluate both on one index with `dvc repro`"
            )


def by_seed(part: pd.DataFrame) -> pd.DataFrame:
    """One row a seed: n and the metrics of its sentences, and mIoU of its controls (empty where not evaluated)."""
    rows = []
    for _, run in part.groupby("seed"):
        summaries = {
            str(condition): summarise(rows_of_it["intersection"].to_numpy(), rows_of_it["union"].to_numpy())
            for condition, rows_of_it in run.groupby("condition")
        }
        row = {name: summaries[CONDITIONS[0]][name] for name in ("n", *METRICS)}
        rows.append(
            row | {f"miou_{name}": summaries[name]["miou"] if name in summaries else np.nan for name in CONDITIONS[1:]}
        )
    return pd.DataFrame(rows)


def built_in_note(dataset: str, scale: str) -> str:
    """The caveat that a table of the built-in data set carries; nothing for any other."""
    if dataset != BUILT_IN:
        return ""
    return (
        f" These numbers are of the built-in data set ({BUILT_IN}) at scale {scale}; they say nothing about "
        "the figures in the paper, which are of other data and other encoders."
    )


def _sections(frame: pd.DataFrame) -> Iterator[Section]:
    """For each data set and scale its title, the note that a reader needs, and the cells as they are shown."""
    for (dataset, scale), part in frame.groupby(["dataset", "scale"], sort=False):
        fewest, most = part["seeds"].min(), part["seeds"].max()
        seeds = f"{fewest} seed{'s' if fewest > 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
        protocols = ", ".join(sorted(part["protocol"].unique()))
        title = f"{dataset}, scale {scale}, protocol {protocols}, {seeds}"
        note = (
            "Percent, mean over seeds; SD is the standard deviation of mIoU over seeds; n counts the sentences of a "
            "split; shuffled and empty are the mIoU of the same model when it is told another image's sentence, or "
            "nothing." + built_in_note(str(dataset), str(scale))
        )
        cells = pd.DataFrame(
            {"system": part["system"], "split": part["split"], "seeds": part["seeds"], "n": part["n"]}
        ).astype(str)
        for column, name in _PERCENT.items():
            cells[name] = ["" if np.isnan(value) else f"{100 * value:.1f}" for value in part[column]]
        yield Section(title, note, cells if fewest != most else cells.drop(columns="seeds"))


# --- the formats of any table -----------------------------------------------------------------------------------------


def print_section(section: Section, without: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a table to the terminal, columns `without` left to the files; a column `block` becomes lines of its own."""
    cells = section.cells.drop(columns=[name for name in (*without, "block") if name in section.cells])
    blocks = list(section.cells.get("block", [""] * len(cells)))
    table = Table(
        title=Text(section.title),
        title_justify="left",
        caption=Text(f"{section.note}\n{section.foot}".strip()),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for name in cells.columns:
        table.add_column(name, justify="left" if name in section.left else "right", no_wrap=True)
    for before, block, row in zip(["", *blocks], blocks, cells.itertuples(index=False), strict=False):
        if block != before:
            table.add_row(Text(block, "italic"))
        table.add_row(*(Text(cell) for cell in row))
    if console is None:
        console = Console()  # where it is too narrow, rather lines that the terminal breaks than figures cut off
        console.width = max(
            console.width, Measurement.get(console, console.options.update(max_width=999), table).maximum
        )
    console.print(table)
    console.print()


def csv_text(frame: pd.DataFrame) -> str:
    """A bare table, six decimals."""
    return frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def markdown_text(heading: str, sections: Iterable[Section], intro: str = "") -> str:
    """Markdown: a heading, an introduction (Markdown as it is), and for every table a heading of its own, its note, its
    cells and its foot, escaped.
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
        told = [f"## {section.title.translate(_MARKDOWN)}", section.note.strip().translate(_MARKDOWN), body]
        told.append(section.foot.translate(_MARKDOWN))
        parts.append("\n\n".join(filter(None, told)) + "\n")
    return "\n".join(parts)


def latex_text(sections: Iterable[Section]) -> str:
    """LaTeX: a `table` environment (booktabs) for every table, its title, note and foot the caption; a table of many
    columns is shrunk to the width of the text (graphicx).
    """
    sections = list(sections)
    wide = [len(section.cells.columns) > _COLUMNS for section in sections]
    packages = "booktabs,graphicx" if any(wide) else "booktabs"
    parts = [f"% needs \\usepackage{{{packages}}}\n"]
    for section, shrunk in zip(sections, wide, strict=True):
        body = tabulate(
            list(section.cells.itertuples(index=False)),
            headers=list(section.cells.columns),
            tablefmt="latex_booktabs",  # escapes its cells
            disable_numparse=True,
            colalign=section.alignment(),
        )
        if shrunk:
            body = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}"
        caption = " ".join(filter(None, [f"{section.title}.", section.note.strip(), section.foot])).translate(_LATEX)
        parts.append(
            f"\\begin{{table}}\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n\\caption{{{caption}}}\n{body}\n\\end{{table}}\n"
        )
    return "\n".join(parts)
