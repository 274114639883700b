"""Tables, notes and folds as HTML, for the report's notebook and page. Links start at the folder `reports`."""

import re
from collections.abc import Collection, Iterator, Sequence
from html import escape

import pandas as pd

from wimfris.results.formats import DASH, Section
from wimfris.settings.run import Run

_LONG = 32  # characters of a cell from which its column is wrapped
_GROUPS = ("block", "stratum")  # columns that are shown as headings over rows
_NEUTRAL = ("undecided", "undecided (not run)", "true by construction", DASH)  # verdicts that are not emphasised


def section_html(section: Section, *, fold: bool = False) -> str:
    """Return a table with its caption and its notes; `fold` hides it behind a line that names it."""
    parts = [f'<p class="small">{text_html(note.strip())}</p>' for note in (section.note, section.foot) if note.strip()]
    parts.insert(0, table_html(section.cells, section.title, section.left))
    return folded(section.title, "\n".join(parts)) if fold else "\n".join(parts)


def table_html(cells: pd.DataFrame, caption: str, left: Collection[str] = (), raw: Collection[str] = ()) -> str:
    """Return cells of text as a table in a scrolling region; the columns `raw` hold HTML, `left` words.

    A row's header is its cell in the column `row`, or in the first column. The columns `block` and `stratum` become
    headings over their rows.
    """
    group = next((name for name in _GROUPS if name in cells), None)
    names = [name for name in cells.columns if name != group]
    header = "row" if "row" in names else names[0]
    wide = {name for name in names if name not in raw and cells[name].astype(str).str.len().max() > _LONG}
    words = {name for name in names if name in left or name == header} | wide
    kinds = {name: f' class="words{" long" * (name in wide)}"' if name in words else "" for name in names}

    def cell(name: str, value: object) -> str:
        shown = str(value) if name in raw else escape(str(value)).replace("_", "_<wbr>")
        if name == "verdict" and shown not in _NEUTRAL:
            shown = f"<strong>{shown}</strong>"
        return f'<th scope="row"{kinds[name]}>{shown}</th>' if name == header else f"<td{kinds[name]}>{shown}</td>"

    head = "".join(f'<th scope="col"{kinds[name]}>{escape(name)}</th>' for name in names)
    bodies = []
    for title, part in _groups(cells, group):
        heading = (
            f'<tr class="group"><th scope="rowgroup" colspan="{len(names)}"><span>{escape(title)}</span></th></tr>'
        )
        rows = [heading] if title else []
        for row in part[names].itertuples(index=False, name=None):
            rows.append(f"<tr>{''.join(cell(name, value) for name, value in zip(names, row, strict=True))}</tr>")
        bodies.append("<tbody>\n" + "\n".join(rows) + "\n</tbody>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>\n'
        f"<caption><span>{text_html(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        + "\n".join(bodies)
        + "\n</table></div>"
    )


def _groups(cells: pd.DataFrame, group: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the heading of each stretch of rows, and its rows."""
    if group is None:
        yield "", cells
        return
    titles = cells[group]
    if group == "stratum":  # names each stratum in its first row alone
        titles = titles.where(titles != "").ffill()
    for _, part in cells.groupby((titles != titles.shift()).cumsum(), sort=False):
        yield str(titles[part.index[0]]), part


def text_html(text: str) -> str:
    """Return text as HTML, words in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def notice(text: str) -> str:
    """Return a highlighted note."""
    return f'<p class="notice"><strong>Note.</strong> {text_html(text)}</p>'


def folded(title: str, content: str) -> str:
    """Return HTML behind a line that opens it."""
    return f"<details><summary>{text_html(title)}</summary>\n{content}\n</details>"


def missing_html(runs: Sequence[Run], name: str) -> str:
    """Return a notice that the evidence of a set and scale (`name`) lacks these runs; empty if there are none."""
    if not runs:
        return ""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.variant, []).append(str(run.seed))
    groups: dict[str, list[str]] = {}
    for variant, numbers in seeds.items():
        groups.setdefault(" ".join(numbers), []).append(variant)
    missing = "; ".join(f"seeds {numbers} of {', '.join(variants)}" for numbers, variants in groups.items())
    return notice(
        f"Not in the evidence of {name}: {missing}. A row uses the seeds that are there, and is empty without any."
    )


def runs_html(name: str, records: pd.DataFrame, variants: Collection[str]) -> str:
    """Return links to the runs of these variants in the provenance of this set and scale (`name`)."""
    runs = sorted(records.loc[records["variant"].isin(list(variants)), "run"].unique())
    links = " ".join(f'<a href="#{name}-{run}">{run}</a>' for run in runs)
    return folded(f"The {len(runs)} runs behind these numbers", f"<p>{links}</p>")
