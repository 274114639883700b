"""The committed page in headless Chromium, at two widths: nothing runs out, and links land on their targets.

`make test-slow` runs it.
"""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

REGIONS = """
const roles = ['region', 'group'];
const named = e => roles.includes(e.getAttribute('role')) && e.getAttribute('aria-label') && e.tabIndex === 0;
return [...document.querySelectorAll('body *')]
  .filter(e => e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
  .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 80));
"""
CUT_VERDICTS = """
const width = document.documentElement.clientWidth, cut = [];
for (const table of document.querySelectorAll('table')) {
  const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === 'verdict');
  for (const row of at < 0 ? [] : table.rows) {
    const cell = row.cells[at], box = cell && cell.getBoundingClientRect();
    if (cell && (box.right > width + 1 || cell.scrollWidth > cell.clientWidth + 1)) cut.push(row.textContent);
  }
}
return cut;
"""
CLICK = """
const [name, done] = arguments;
window.scrollTo(0, 0);
document.querySelector(`main a[href="#${name}"], nav a[href="#${name}"]`).click();
requestAnimationFrame(() => setTimeout(() => done(null), 50));
"""
DISTANCE = """
const box = document.getElementById(arguments[0]).getBoundingClientRect();
const end = window.scrollY + window.innerHeight >= document.documentElement.scrollHeight - 2;
return end && box.top < window.innerHeight ? 0 : Math.abs(box.top);
"""


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Any, committed: Path) -> tuple[Any, str]:
    """The page, opened at one width with all folds open, and its address."""
    address = (committed / "reports" / "index.html").as_uri()
    browser.resize(request.param)
    browser.open(address)
    browser.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    return browser, address


def test_nothing_runs_out_of_the_page_but_in_named_regions(page: tuple[Any, str]) -> None:
    browser, _ = page
    assert browser.running_out() == []
    assert browser.run(REGIONS) == []
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_every_verdict_is_in_sight(page: tuple[Any, str]) -> None:
    browser, _ = page
    assert browser.run(CUT_VERDICTS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(page: tuple[Any, str], scheme: str) -> None:
    browser, _ = page
    assert browser.low_contrast(scheme) == []


def test_links_and_addresses_land_on_their_targets(page: tuple[Any, str]) -> None:
    browser, address = page
    names = browser.run("return [...document.querySelectorAll('nav a')].map(link => link.hash.slice(1))")
    assert len(names) > 15
    browser.open(address)
    shown = browser.run(
        "return [...document.querySelectorAll('nav a')].filter(e => e.getClientRects().length)"
        ".map(link => link.hash.slice(1))"
    )
    for name in shown:
        browser.run(CLICK, name, wait=True)
        assert browser.run(DISTANCE, name) < 40, f"click on {name}"
    for name in [*names[::4], names[-1]]:
        browser.open(f"{address}#{name}")
        assert browser.run(DISTANCE, name) < 40, f"address with {name}"
    run = browser.run("return document.querySelector('main details a[href^=\"#\"]').hash.slice(1)")
    browser.open(f"{address}#{run}")  # lies in a fold, which opens
    assert browser.run("return document.getElementById(arguments[0]).getClientRects().length", run)


def test_the_console_is_silent(page: tuple[Any, str]) -> None:
    browser, _ = page
    assert browser.messages() == []
