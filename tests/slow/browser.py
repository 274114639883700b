"""A headless Chromium for the tests of pages."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")

SETTLED = """
const done = arguments[arguments.length - 1];
requestAnimationFrame(() => setTimeout(() => done(null), 50));
"""
RUNS_OUT = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('main *, nav *')]
  .filter(e => e.getClientRects().length && !e.closest('.scroll, .picture'))
  .filter(e => e.getBoundingClientRect().right > width + 1)
  .map(e => e.outerHTML.slice(0, 80));
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
        """Load a page, and wait until it has scrolled to the fragment of its address."""
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": address})
        self.run(SETTLED, wait=True)

    def run(self, script: str, *values: Any, wait: bool = False) -> Any:
        return self._call("POST", f"/execute/{'async' if wait else 'sync'}", {"script": script, "args": values})

    def messages(self) -> list[str]:
        """Return what the page has written to the console since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def resize(self, width: int) -> None:
        """Show pages at this width, in a window of 800 px height."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def running_out(self) -> list[str]:
        """Return the elements that run out of the page, but for those in scroll regions."""
        return self.run(RUNS_OUT)

    def low_contrast(self, scheme: str) -> list[str]:
        """Return the texts with a contrast below 4.5 (WCAG AA), in the light or dark scheme."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        return self.run(LOW_CONTRAST)

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))):
        pytest.skip("chromium and chromedriver are not installed")
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
