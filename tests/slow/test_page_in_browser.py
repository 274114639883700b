"""The committed page in headless Chromium, at two widths: nothing runs out, and links land on their targets."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))),
        reason="chromium and chromedriver are not installed",
    ),
]
WIDTHS = {390: 844, 1280: 800}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")

RUNS_OUT = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('main *, nav *')]
  .filter(e => e.getClientRects().length && !e.closest('.scroll, .picture'))
  .filter(e => e.getBoundingClientRect().right > width + 1)
  .map(e => e.outerHTML.slice(0, 80));
"""
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
LOW_CONTRAST = """
const channel = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const behind = e => {
  for (; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll('body *')]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
  .filter(e => {
    const [one, other] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    return (Math.max(one, other) + .05) / (Math.min(one, other) + .05) < 4.5;
  }).map(e => e.outerHTML.slice(0, 80));
"""


class Browser:
    """A session of ChromeDriver, by the WebDriver protocol."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                self._call("GET", "/status")
                break
            time.sleep(0.1)
        options = {"goog:chromeOptions": {"args": FLAGS}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.base += f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def command(self, name: str, **values: Any) -> None:
        """Run a command of the DevTools protocol."""
        self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": values})

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": address})

    def run(self, script: str, *values: Any, wait: bool = False) -> Any:
        return self._call("POST", f"/execute/{'async' if wait else 'sync'}", {"script": script, "args": values})

    def messages(self) -> list[str]:
        """Return what the page has written to the console since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        ["chromedriver", f"--port={port}", "--log-level=SEVERE"], stdout=subprocess.DEVNULL
    ) as driver:
        session = None
        try:
            session = Browser(port)
            yield session
        finally:
            if session:
                session.close()
            driver.terminate()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser, committed: Path) -> tuple[Browser, str]:
    """The page, opened at one width with all folds open, and its address."""
    address = (committed / "reports" / "index.html").as_uri()
    size = {"width": request.param, "height": WIDTHS[request.param], "deviceScaleFactor": 1, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", **size)
    browser.open(address)
    browser.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    return browser, address


def test_nothing_runs_out_of_the_page_but_in_named_regions(page: tuple[Browser, str]) -> None:
    browser, _ = page
    assert browser.run(RUNS_OUT) == []
    assert browser.run(REGIONS) == []
    assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_every_verdict_is_in_sight(page: tuple[Browser, str]) -> None:
    browser, _ = page
    assert browser.run(CUT_VERDICTS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(page: tuple[Browser, str], scheme: str) -> None:
    browser, _ = page
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    assert browser.run(LOW_CONTRAST) == []


def test_links_and_addresses_land_on_their_targets(page: tuple[Browser, str]) -> None:
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


def test_the_console_is_silent(page: tuple[Browser, str]) -> None:
    browser, _ = page
    assert browser.messages() == []
