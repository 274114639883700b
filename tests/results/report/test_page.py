"""The committed page: links, headings, names and pictures, checked without a browser."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def source(committed: Path) -> str:
    return (committed / "reports" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> BeautifulSoup:
    return BeautifulSoup(source, "html.parser")


def test_the_page_is_small(source: str) -> None:
    assert len(source) < 3_000_000


def test_ids_are_unique(page: BeautifulSoup) -> None:
    ids = [element["id"] for element in page.find_all(id=True)]
    assert len(ids) == len(set(ids))


def test_every_picture_is_shown_once_and_has_text_and_size(page: BeautifulSoup) -> None:
    images = page.find_all("img")
    assert all(image.get("alt") and int(image["width"]) and int(image["height"]) for image in images)
    assert len({image["src"] for image in images}) == len(images)


def test_every_link_leads_somewhere(page: BeautifulSoup) -> None:
    ids = {element["id"] for element in page.find_all(id=True)}
    links = {link["href"] for link in page.find_all("a", href=True)}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    files = {link.partition("#")[0] for link in links if not re.match(r"#|https?:", link)}
    assert "../docs/statistics.md" in files
    assert [file for file in files if not (ROOT / "reports" / file).exists()] == []


def test_headings_skip_no_level(page: BeautifulSoup) -> None:
    levels = [int(heading.name[1]) for heading in page.find_all(re.compile(r"^h\d$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    sections = [heading.text for heading in page.find_all("h2")]
    assert sections[:3] == ["Summary", "Does the window matter?", "Claims"] and sections[-1] == "Provenance"
    assert len(page.find_all("main")) == len(page.find_all("nav")) == 1


def test_every_table_has_a_caption_and_a_named_region(page: BeautifulSoup) -> None:
    tables = page.find_all("table")
    assert tables and all(table.caption and table.caption.text.strip() for table in tables)
    regions = [table.parent for table in tables]
    assert all(region["role"] == "region" and region["tabindex"] == "0" for region in regions)
    assert len({region["aria-label"] for region in regions}) == len(regions)
    assert all(region["aria-label"] == table.caption.text for region, table in zip(regions, tables, strict=True))
    assert all(cell.get("scope") in ("row", "col", "rowgroup") for cell in page.find_all("th"))


def test_the_verdict_stands_beside_the_name(page: BeautifulSoup) -> None:
    heads = [[cell.text for cell in table.thead.find_all("th")] for table in page.find_all("table")]
    places = [head.index("verdict") for head in heads if "verdict" in head]
    assert len(places) > 20 and set(places) == {1}


def test_no_backtick_shows(page: BeautifulSoup) -> None:
    texts = page.body.find_all(string=lambda text: "`" in text)
    assert [text for text in texts if text.parent.name not in ("code", "pre")] == []
