"""The committed report states no difference, interval or verdict that reports/comparisons does not hold."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from wimfris.results.claims import judge_place
from wimfris.results.comparison import Study
from wimfris.results.comparisons import Comparisons, read_comparisons
from wimfris.results.evidence import read_evidence
from wimfris.results.formats import DASH, interval, parse_markdown
from wimfris.results.plan import read_plan
from wimfris.results.published import read_published
from wimfris.results.report.claims_tables import NOTHING, window_answer
from wimfris.results.report.comparison_figure import draw
from wimfris.results.studies import load_study
from wimfris.settings.params import Params, read_params

NAMES = ("scenes-tiny", "scenes-small")
TITLES = {"ΔmIoU": "diff", "our gain": "diff"}  # column -> another name of it
Quote = tuple[str, str, str]


@pytest.fixture(scope="module")
def files(committed: Path) -> dict[str, Comparisons]:
    return {name: read_comparisons(name, committed / "reports") for name in NAMES}


@pytest.fixture(scope="module")
def known(files: dict[str, Comparisons]) -> set[Quote]:
    """Difference, interval for any seed and verdict of every comparison as shown, from both sides."""
    quotes: set[Quote] = set()
    for one in files.values():
        for row in one.frame.to_dict("records"):
            for system, rival in ((row["system"], row["rival"]), (row["rival"], row["system"])):
                quoted = one.quote(system, rival, row["split"], row["metric"])
                assert quoted
                scale, form = (1, "+.2f") if row["metric"] == "alpha" else (100, "+.1f")
                ends = interval(scale * quoted["low"], scale * quoted["high"], form)
                quotes.add((f"{scale * quoted['difference']:{form}}", ends, quoted["verdict"] or DASH))
    return quotes


def strangers(cells: pd.DataFrame, known: set[Quote]) -> list[Quote]:
    """Return what a table states about differences, and the files do not hold."""
    cells = cells.rename(columns=TITLES)
    if not {"diff", "any seed"} <= set(cells.columns):
        return []
    if "verdict" not in cells:  # a table of controls: one network beside another has no interval for any seed
        cells = cells[cells["any seed"] != DASH]
    with_verdict = {(*quote[:2], verdict) for quote in known for verdict in (quote[2], DASH)}
    rows = cells.assign(verdict=cells.get("verdict", DASH))[["diff", "any seed", "verdict"]].itertuples(index=False)
    return [tuple(row) for row in rows if row[0] != DASH and tuple(row) not in with_verdict]  # type: ignore[misc]


def html_tables(text: str) -> Iterator[pd.DataFrame]:
    for table in BeautifulSoup(text, "html.parser").find_all("table"):
        header = [cell.text for cell in table.thead.find_all("th")]
        rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")[1:]]
        yield pd.DataFrame([row for row in rows if len(row) == len(header)], columns=header)


def markdown_tables(text: str) -> Iterator[pd.DataFrame]:
    for block in re.findall(r"(?m)(?:^\|.*\n)+", text):
        lines = [
            [cell.strip().replace("\\", "") for cell in line.strip("|\n").split(" | ")] for line in block.splitlines()
        ]
        rows = [line for line in lines[2:] if len(line) == len(lines[0])]
        yield pd.DataFrame(rows, columns=lines[0])


def test_every_table_of_a_study_quotes_the_comparisons(committed: Path, known: set[Quote]) -> None:
    paths = sorted((committed / "reports" / "tables").glob("*/*.md"))
    seen = 0
    for path in paths:
        for section in parse_markdown(path.read_text(encoding="utf-8"))[1]:
            assert strangers(section.cells, known) == [], path
            assert "verdict" not in section.cells or "split val" in section.title, "verdicts are of val"
            seen += "verdict" in section.cells
    assert seen >= 10


def test_the_csv_of_a_study_holds_the_same_values(committed: Path, files: dict[str, Comparisons]) -> None:
    for path in sorted((committed / "reports" / "tables").glob("*/*.csv")):
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
        if "tier" not in frame:
            continue
        for row in frame.dropna(subset=["difference"]).to_dict("records"):
            quoted = files[path.parent.name].quote(row["variant"], row["baseline"], row["split"])
            assert quoted
            for name in ("difference", "low", "high"):
                assert row[name] == pytest.approx(quoted[name], abs=1e-6, nan_ok=True), (path, row["variant"])
            assert (row["verdict"] if isinstance(row["verdict"], str) else "") == quoted["verdict"]


@pytest.mark.slow
def test_the_page_the_notebook_and_the_claims_quote_them(committed: Path, known: set[Quote]) -> None:
    reports = committed / "reports"
    content = nbformat.read(reports / "results.ipynb", as_version=4)
    outputs = [one.get("data", {}).get("text/html", "") for cell in content.cells for one in cell.get("outputs", [])]
    tables = [*html_tables((reports / "index.html").read_text()), *html_tables("".join(map(str, outputs)))]
    tables += markdown_tables((reports / "claims.md").read_text(encoding="utf-8"))
    assert sum("verdict" in table for table in tables) > 40
    assert [quote for table in tables for quote in strangers(table, known)] == []


def test_a_changed_number_or_verdict_is_found(committed: Path, known: set[Quote]) -> None:
    text = (committed / "reports" / "tables" / "scenes-tiny" / "core.md").read_text(encoding="utf-8")
    cells = parse_markdown(text)[1][0].cells
    row = cells.index[cells["diff"] != DASH][0]
    for column, value in (("diff", "+99.9"), ("verdict", "higher"), ("any seed", "[-0.1, +0.1]")):
        altered = cells.copy()
        altered.loc[row, column] = value
        assert len(strangers(altered, known)) == 1


def test_the_page_and_the_tables_name_the_same_places(committed: Path) -> None:
    pattern = re.compile(r"(?:Most|All) rows were trained at commit .*?(?= Variants of|$)", re.MULTILINE)
    reports = committed / "reports"
    page = BeautifulSoup((reports / "index.html").read_text(encoding="utf-8"), "html.parser").get_text("\n")
    tables = "\n".join(path.read_text(encoding="utf-8") for path in sorted((reports / "tables").glob("*/*.md")))
    on_page, in_tables = (set(pattern.findall(text.replace("\\", ""))) for text in (page, tables))
    assert in_tables and on_page <= in_tables


def test_one_answer_on_the_window_stands_everywhere(committed: Path, files: dict[str, Comparisons]) -> None:
    params, reports = read_params(committed / "params.yaml"), committed / "reports"
    plan = read_plan(reports / "claims.yaml")
    answer = window_answer(judge_place(params, plan, files["scenes-tiny"], reports), files["scenes-tiny"])
    for page in ("README.md", "docs/results.md", "docs/faq.md", "reports/claims.md"):
        assert answer in " ".join((committed / page).read_text(encoding="utf-8").split()), page
    for page in ("README.md", "docs/results.md", "docs/statistics.md", "reports/claims.md", "reports/index.html"):
        assert NOTHING in " ".join((committed / page).read_text(encoding="utf-8").split()), page


@pytest.mark.slow
def test_a_figure_draws_the_comparisons(committed: Path, files: dict[str, Comparisons], tmp_path: Path) -> None:
    params: Params = read_params(committed / "params.yaml")
    study = load_study("window_size", committed / "studies")
    assert isinstance(study, Study)
    study = study.at(params)
    runs = [str(run) for variant in study.variants for run in params.runs_of(variant)]
    records = read_evidence(params, committed / "reports").select(runs).records
    published = read_published(committed / "reports" / "published.csv")
    hashes = []
    for changed in (False, True):
        frame = files["scenes-tiny"].frame.copy()
        frame["low"] -= 0.01 * np.float64(changed)
        path = tmp_path / f"{changed}.png"
        draw(study.table(records, Comparisons(frame), "val", published), records, path)
        hashes.append(Image.open(path).info["Content"])
    drawn = Image.open(committed / "reports" / "figures" / "scenes-tiny" / "window_size.png").info["Content"]
    assert hashes[0] == drawn != hashes[1]
