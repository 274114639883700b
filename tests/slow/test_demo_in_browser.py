"""The page of `wimfris demo --serve` in headless Chromium, used as a person would. `make test-slow` runs it."""

import base64
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from wimfris.inference.predict import SHIPPED, Predictor
from wimfris.inference.serve import HOST, make_server

pytestmark = pytest.mark.long

SUBMIT = """
const done = arguments[arguments.length - 1], [sentence] = arguments;
if (sentence !== null) document.getElementById("text").value = sentence;
const message = document.getElementById("message");
document.querySelector("button").click();
const wait = () => message.textContent.startsWith("Segmenting") || !message.textContent
  ? setTimeout(wait, 50) : done(message.textContent);
setTimeout(wait, 50);
"""
CHOOSE = """
const [base64, done] = arguments, file = document.getElementById("file");
const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "own.jpg", { type: "image/jpeg" }));
file.files = transfer.files;
file.dispatchEvent(new Event("change"));
done(document.querySelector("[name=scene]:checked") === null);
"""
OVERLAY = "const o = document.getElementById('overlay'); return [o.hidden, o.naturalWidth, o.alt]"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with make_server(Predictor.from_pretrained(), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Any:
    browser.resize(request.param)
    browser.open(address)
    return browser


def test_a_scene_is_segmented_with_its_sentence(page: Any) -> None:
    assert page.run("return document.getElementById('overlay').hidden")
    text = page.run(SUBMIT, None, wait=True)
    assert text.endswith("% of the image")
    hidden, width, alt = page.run(OVERLAY)
    assert not hidden and width >= 320 and alt.startswith("The image with the mask of: ")
    assert page.running_out() == [] and page.messages() == []


def test_an_unknown_word_is_named_and_the_next_sentence_works(page: Any) -> None:
    assert "'dinosaur'" in page.run(SUBMIT, "the red dinosaur", wait=True)
    assert page.run(OVERLAY)[0], "no overlay of another sentence stays"
    assert page.run(SUBMIT, "the largest thing", wait=True).endswith("% of the image")
    page.messages()  # the refused request


def test_a_file_of_one_s_own_takes_the_scene_s_place(page: Any) -> None:

    content = base64.b64encode((SHIPPED.parent / "scenes" / "scene-2.jpg").read_bytes()).decode()
    assert page.run(CHOOSE, content, wait=True)
    assert page.run(SUBMIT, "the largest thing", wait=True).endswith("% of the image")


def test_the_keyboard_is_enough_and_every_control_has_a_name(page: Any) -> None:
    names = page.run(
        "return [...document.querySelectorAll('input, button, summary')].map(e => "
        "[e.type || e.tagName, e.tabIndex, e.labels?.length || e.textContent.trim().length || "
        "(e.closest('label') ? 1 : 0)])"
    )
    assert len(names) == 7 and all(index == 0 and named for _, index, named in names)
    assert page.run("return document.querySelectorAll('.scenes img:not([alt])').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(page: Any, scheme: str) -> None:
    page.run("document.querySelector('details').open = true")
    assert page.low_contrast(scheme) == []
    assert page.running_out() == []


def test_nothing_overlaps(page: Any) -> None:
    """Form, message and overlay lie below each other."""
    page.run(SUBMIT, None, wait=True)
    boxes = page.run(
        "return ['form', 'message', 'overlay'].map(id => { const b = document.getElementById(id)"
        ".getBoundingClientRect(); return [b.top, b.bottom] })"
    )
    assert all(above[1] <= below[0] + 1 for above, below in pairwise(boxes))
