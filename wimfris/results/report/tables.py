"""The main table: every system on every split, averaged over seeds, beside the two controls.

It lies at `reports/tables/<set>-<scale>/main.{csv,md,tex}`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from wimfris.files import write_text
from wimfris.results.formats import (
    Section,
    csv_text,
    latex_document,
    latex_text,
    markdown_text,
    parse_markdown,
    print_section,
)
from wimfris.results.published import built_in_note
from wimfris.results.scores import GENERALISED, LABELS, METRICS, OF_OBJECTS, by_seed, check_comparable
from wimfris.runs.records import CONDITIONS, NO_SEED, SPLITS

_ROW = ("dataset", "scale", "protocol", "system", "split")


def main_table(records: pd.DataFrame) -> pd.DataFrame:
    """Summarise records to one row per data set, scale, system (variant) and split.

    Columns: dataset, scale, protocol, system, split, seeds (how many, 0 for a system without), n (sentences per seed);
    miou, oiou, pr50 .. pr90 (means over seeds, fractions); miou_sd (standard deviation over seeds, ddof 1, NaN for one
    seed); miou_shuffled and miou_empty (mIoU of the controls, NaN unless every seed has them), n_controls (sentences of
    each control per seed); `GENERALISED` if a sentence names nothing; `OF_OBJECTS` if the records of a run have them.
    Rows are ordered by data set, scale, system (`full` first) and split.

    Raises `UserError` as `check_comparable` for the runs of one data set, scale and split.
    """
    for (dataset, scale, split), part in records.groupby(["dataset", "scale", "split"]):
        check_comparable(part, f"{dataset}, scale {scale}, split {split}")
    rows = []
    for key, part in records.groupby(["dataset", "scale", "protocol", "variant", "split"]):
        seeds = by_seed(part)
        row = dict(zip(_ROW, key, strict=True)) | {"seeds": sum(seeds["seed"] != NO_SEED), "n": int(seeds["n"].iloc[0])}
        row |= {metric: seeds[metric].mean() for metric in (*METRICS, *GENERALISED) if metric in seeds}
        row |= {metric: seeds[metric].mean(skipna=False) for metric in OF_OBJECTS if metric in seeds}
        row |= {"miou_sd": seeds["miou"].std(ddof=1)}
        row |= {f"miou_{control}": seeds[f"miou_{control}"].mean(skipna=False) for control in CONDITIONS[1:]}
        row |= {"n_controls": int((part["condition"] == CONDITIONS[1]).sum() / len(seeds))}
        rows.append(row)
    table = pd.DataFrame(rows)
    order = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "scale": table["scale"],
            "other": table["system"] != "full",
            "system": table["system"],
            "split": table["split"].map(SPLITS.index),
        }
    )
    return table.loc[order.sort_values(list(order.columns)).index].reset_index(drop=True)


def main_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return a main table's columns from `system` on as text, metrics in percent; empty where unknown."""
    cells = table[["system", "split", "seeds", "n"]].astype(str)
    cells["seeds"] = cells["seeds"].replace("0", "none")
    for column, name in ((column, name) for column, name in LABELS.items() if column in table):
        cells[name] = ["" if np.isnan(value) else f"{100 * value:.1f}" for value in table[column]]
    return cells


def write_table(frame: pd.DataFrame, stem: Path, further: Sequence[Section] = ()) -> None:
    """Write a main table to `stem`.csv, .md and .tex, with a section in .md and .tex for each data set and scale, and
    the further sections after them.
    """
    write_text(stem.with_suffix(".csv"), csv_text(frame))
    write_text(stem.with_suffix(".md"), markdown_text("Results", [*_sections(frame), *further]))
    write_text(stem.with_suffix(".tex"), latex_text([*_sections(frame), *further]))


def print_table(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print a main table to the terminal, a block for each data set and scale, without Pr@0.6 and Pr@0.8."""
    for section in _sections(frame):
        print_section(section, ("Pr@0.6", "Pr@0.8"), console)


def _sections(frame: pd.DataFrame) -> Iterator[Section]:
    for (dataset, scale), part in frame.groupby(["dataset", "scale"], sort=False):
        counts = part.loc[part["seeds"] > 0, "seeds"]
        fewest, most = counts.min() if len(counts) else 0, counts.max() if len(counts) else 0
        seeds = f"{fewest} seed{'s' if fewest > 1 else ''}" if fewest == most else f"{fewest} to {most} seeds"
        protocols = ", ".join(sorted(part["protocol"].unique()))
        title = f"{dataset}, scale {scale}, protocol {protocols}, {seeds}"
        cells = main_cells(part)
        cells = cells if part["seeds"].nunique() > 1 else cells.drop(columns="seeds")
        note = (_controls_note(part) + built_in_note(str(dataset), str(scale))).strip()
        yield Section(title, note, cells, guide=True)


def _controls_note(part: pd.DataFrame) -> str:
    """Return on how many sentences the controls were evaluated, where these are not all."""
    fewer = part[(part["n_controls"] > 0) & (part["n_controls"] < part["n"])].drop_duplicates("split")
    counts = ", ".join(f"{row.n_controls} of {row.n} on {row.split}" for row in fewer.itertuples())
    return f"Shuffled and empty are of the first sentences of a split: {counts}." if counts else ""


def write_paper_tables(name: str, reports: Path = Path("reports")) -> Path:
    """Write the studies' tables against the paper, of one data set and scale (`name`), as a LaTeX document."""
    sections = [
        section
        for path in sorted((reports / "tables" / name).glob("*.md"))
        for section in parse_markdown(path.read_text(encoding="utf-8"))[1]
        if "against the paper" in section.title
    ]
    path = reports / "paper.tex"
    write_text(path, latex_document(f"The paper's results and ours: {name}", sections))
    return path
