"""The explorer in headless Chromium, used as a person would: every control, and the address that keeps a selection.

`make test-slow` runs it.
"""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wimfris.data.rle import decode_rle, encode_mask
from wimfris.measure.explorer import LEVELS, UNIT, explorer_page

pytestmark = pytest.mark.long

HEIGHT, WIDTH, IMAGES, EACH = 24, 32, 15, 4
CHOOSE = """
const [name, value] = arguments, select = document.querySelector(`[name=${name}]`);
select.value = value;
select.dispatchEvent(new Event("change", { bubbles: true }));
"""
TEXT = "return document.getElementById('summary').textContent"
VALUES = "return Object.fromEntries([...document.querySelectorAll('select')].map(s => [s.name, s.value]))"
NAMES = """
return [...document.querySelectorAll("select, button, a, summary")].filter(e => e.getClientRects().length)
  .filter(e => e.tabIndex !== 0 || !(e.labels?.[0] ?? e).textContent.trim()).map(e => e.outerHTML.slice(0, 80));
"""


def simulated() -> dict[str, Any]:
    """Return the page's data of three systems on val and testA; the third has neither masks nor objects."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (IMAGES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    addresses = [base64.b64encode(cv2.imencode(".webp", image)[1].tobytes()).decode() for image in images]
    targets = [[n, HEIGHT, WIDTH, encode_mask(rng.random((HEIGHT, WIDTH)) < 0.3)] for n in range(IMAGES)]
    count, val = 2 * IMAGES * EACH, IMAGES * EACH
    sentences: dict[str, Any] = {
        "split": ["val"] * val + ["testA"] * val,
        "image": [n // EACH for n in range(count)],
        "target": [n // EACH for n in range(count)],
        "text": [f"the thing number {n}" for n in range(count)],
    }
    sentences |= {name: rng.integers(0, len(one.levels), count).tolist() for name, one in LEVELS.items()}
    systems: list[dict[str, Any]] = []
    for name, label in (("full", "the full model"), ("none", "no adapters"), ("other", "other")):
        iou = rng.integers(0, UNIT, count)
        iou[-1] = -1 if name == "none" else iou[-1]
        masks = [encode_mask(rng.random((HEIGHT, WIDTH)) < 0.2) for _ in range(val)]
        systems.append({"name": name, "label": label, "run": f"{name}-0", "iou": iou.tolist()})
        known = name != "other"
        systems[-1] |= {
            "right": rng.integers(0, 2, count).tolist() if known else None,
            "masks": masks if known else None,
        }
    return {
        "title": "scenes, scale tiny, protocol cris",
        "release": "results-1",
        "unit": UNIT,
        "splits": ["val", "testA"],
        "strata": [{"name": name, "title": one.title, "levels": one.levels} for name, one in LEVELS.items()],
        "pictures": [[WIDTH, HEIGHT, f"data:image/webp;base64,{address}"] for address in addresses],
        "targets": targets,
        "sentences": sentences,
        "systems": systems,
        "comparisons": [["none", "full", -0.05, -0.081, 0.012, 0.9955, "undecided", "primary", "0 1 2"]],
    }


DATA = simulated()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "index.html").write_text("<!doctype html><title>report</title>")
    (folder / "explorer.html").write_text(explorer_page(DATA, "index.html"), encoding="utf-8")
    return Path(folder / "explorer.html").as_uri()


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Any:
    browser.resize(request.param)
    browser.open(address)
    return browser


def expected(a: int, b: int, split: str = "val", **levels: int) -> tuple[float, float, int]:
    """Return mean difference, half width over images, and number of sentences, from the data."""
    sentences = DATA["sentences"]
    one, other = (np.array(DATA["systems"][k]["iou"]) for k in (a, b))
    keep = (np.array(sentences["split"]) == split) & (one >= 0) & (other >= 0)
    for name, level in levels.items():
        column = DATA["systems"][a if name == "right_a" else b]["right"] if "right" in name else sentences[name]
        keep &= np.array(column) == level
    difference, image = (one - other)[keep] / UNIT, np.array(sentences["image"])[keep]
    centre = difference.mean()
    sums = np.array([(difference - centre)[image == n].sum() for n in np.unique(image)])
    return centre, 1.96 * np.sqrt(sums.size * (sums**2).sum() / (sums.size - 1)) / keep.sum(), int(keep.sum())


def words(centre: float, half: float, count: int) -> str:
    def number(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", "−")

    return f"{number(centre)} points of IoU [{number(centre - half)}, {number(centre + half)}] on {count} sentences"


@pytest.mark.parametrize(
    "choice",
    [{}, {"kind": 1}, {"size": 2}, {"windows": 3}, {"distractors": 0}, {"right_a": 1}, {"right_b": 0, "kind": 0}],
)
def test_every_stratum_gives_the_numbers_of_its_sentences(page: Any, choice: dict[str, int], address: str) -> None:
    for name, level in choice.items():
        page.run(CHOOSE, name, str(level))
    text = page.run(TEXT)
    assert words(*expected(0, 1, **choice)) in text
    assert text.startswith("full minus none: ")
    bars = page.run("return [...document.querySelectorAll('#bins td')].map(cell => +cell.textContent)")
    assert len(bars) == 21 and sum(bars) == expected(0, 1, **choice)[2]
    link, values = page.run("return document.getElementById('link').href"), page.run(VALUES)
    page.open(link)
    assert page.run(TEXT) == text and page.run(VALUES) == values, "the link keeps the selection"
    page.run("document.getElementById('reset').click()")
    assert words(*expected(0, 1)) in page.run(TEXT)


def test_systems_splits_and_swapping(page: Any) -> None:
    text = page.run(TEXT)
    assert "averages over seeds 0, 1, 2 and all sentences of val: +5.0, interval [−1.2, +8.1] at level" in text
    assert "99.55%, undecided (primary tier)" in text
    page.run("document.getElementById('swap').click()")
    assert page.run(TEXT).startswith("none minus full: ") and words(*expected(1, 0)) in page.run(TEXT)
    page.run(CHOOSE, "split", "testA")
    assert words(*expected(1, 0, "testA")) in page.run(TEXT) and "The report" not in page.run(TEXT)
    assert page.run("return document.querySelectorAll('canvas').length") == 0
    page.run(CHOOSE, "b", "other")
    page.run(CHOOSE, "split", "val")
    assert words(*expected(1, 2)) in page.run(TEXT)
    assert page.run("return [right_a, right_b].map(s => s.disabled)".replace("right_", "fields.right_")) == [
        False,
        True,
    ]
    label = page.run("return fields.right_b.labels[0].textContent")
    assert label.startswith("Object of other (not in these records)")
    assert page.run("return document.getElementById('missing').textContent").startswith("No masks of other")
    assert page.messages() == []


PARTS = "return [...document.querySelectorAll('#parts tr')].map(r => [...r.cells].map(c => c.textContent))"


def test_a_table_says_where_the_difference_comes_from(page: Any) -> None:
    one, other = DATA["systems"][:2]
    keep = np.array(DATA["sentences"]["split"]) == "val"
    difference = (np.array(one["iou"]) - np.array(other["iou"]))[keep] / UNIT
    switched = (np.array(one["right"]) != np.array(other["right"]))[keep]
    table, title = {}, ""
    for first, *numbers in page.run(PARTS):
        title = title if numbers else first
        table[title, first] = numbers

    def cells(rows: np.ndarray) -> list[str]:
        sums = [difference[part].sum() / rows.sum() for part in (rows, rows & switched, rows & ~switched)]
        numbers = sums[0], sums[0] * rows.sum() / rows.size, *sums[1:]
        return [str(rows.sum()), *(f"{100 * number:+.1f}".replace("-", "−") for number in numbers)]

    assert table["", "this selection"] == cells(np.ones_like(switched))
    for name, stratum in LEVELS.items():
        for number, level in enumerate(stratum.levels):
            rows = np.array(DATA["sentences"][name])[keep] == number
            assert not rows.any() or table[stratum.title, level] == cells(rows), level
    page.run(CHOOSE, "b", "other")
    assert all(len(row) <= 4 for row in page.run(PARTS)) and page.messages() == []


def test_an_address_of_another_page_is_harmless(page: Any, address: str) -> None:
    page.open(f"{address}#a=unknown&kind=77&right_b=x&b=other")
    assert page.run(VALUES)["a"] == "full" and page.run(VALUES)["b"] == "other" and page.run(VALUES)["kind"] == ""
    page.run("location.hash = 'a=none&b=full'")
    page.run("requestAnimationFrame(() => setTimeout(arguments[0], 50))", wait=True)
    assert page.run(TEXT).startswith("none minus full")
    assert page.messages() == []


def test_an_empty_selection_says_so(page: Any) -> None:
    for name in LEVELS:
        page.run(CHOOSE, name, "0")
    for name in ("right_a", "right_b"):
        page.run(CHOOSE, name, "0")
    if "No sentence is in this selection" not in page.run(TEXT):
        page.run(CHOOSE, "right_b", "1")
    assert "No sentence is in this selection" in page.run(TEXT) and page.messages() == []


def test_pictures_show_target_and_mask_and_have_text(page: Any) -> None:
    first = page.run("const c = document.querySelectorAll('#more canvas'); return [...c].map(e => e.ariaLabel)")
    iou = (np.array(DATA["systems"][0]["iou"]) - np.array(DATA["systems"][1]["iou"]))[: IMAGES * EACH]
    best = int(np.argmax(iou))
    assert first[0].startswith(f"“the thing number {best}”: target outlined, the mask of full tinted, IoU ")
    assert len(first) == 12 and len(set(first)) == 12
    for system in DATA["systems"][:2]:
        rle = system["masks"][best]
        bits = page.run(f"return [...decode(arguments[0], {HEIGHT * WIDTH})]", rle)
        assert np.array_equal(np.array(bits).reshape(WIDTH, HEIGHT).T, decode_rle(rle, HEIGHT, WIDTH))
    page.run("document.querySelector('[data-list=more]').click()")
    after = page.run("return [...document.querySelectorAll('#more canvas')].map(e => e.ariaLabel)")
    assert after[:12] == first and len(after) == 24


def test_the_keyboard_is_enough_and_every_control_has_a_name(page: Any) -> None:
    assert page.run(NAMES) == []
    assert page.run("return document.getElementById('summary').ariaLive") == "polite"
    assert page.run("return document.getElementById('bars').ariaLabel").startswith("Histogram. Sentences by")
    assert page.run("return document.querySelectorAll('h1, h2').length") == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_nothing_runs_out(page: Any, scheme: str) -> None:
    page.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    page.run(CHOOSE, "b", "other")
    assert page.low_contrast(scheme) == []
    assert page.running_out() == []
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.messages() == []


def test_the_page_asks_for_nothing(page: Any) -> None:
    names = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
