"""The local page's server: it answers on the loopback address alone, and bad requests get one clear line."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import pytest

from wimfris.errors import UserError
from wimfris.inference.predict import SHIPPED, Predictor
from wimfris.inference.serve import HOST, LARGEST, make_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with make_server(Predictor.from_pretrained(), 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def segment(port: int, text: str, body: bytes | None = None, scene: str = "") -> tuple[int, Any]:
    status, content = ask(port, "POST", f"/segment?text={quote(text)}&scene={scene}", body)
    return status, json.loads(content)


def test_the_page_names_model_scenes_and_words(port: int) -> None:
    status, content = ask(port, "GET", "/")
    page = content.decode()
    assert status == 200 and "{{" not in page
    assert "run full-0, scale tiny" in page and page.count('type="radio"') == 3
    assert all(word in page for word in ("circle", "purple", "leftmost"))


def test_a_scene_and_a_file_give_overlays(port: int) -> None:
    photo = (SHIPPED.parent / "scenes" / "scene-2.jpg").read_bytes()
    for body, scene in ((None, "1"), (photo, "")):
        status, answer = segment(port, "the largest thing", body, scene)
        assert status == 200 and answer["overlay"].startswith("data:image/png;base64,")
        assert 0 < answer["share"] < 1 and answer["unread"] == ""


def test_a_long_sentence_is_cut_and_the_rest_named(port: int) -> None:
    status, answer = segment(port, "the red circle left of " * 4 + "the blue square", scene="0")
    assert status == 200 and answer["unread"].endswith("blue square")


@pytest.mark.parametrize(
    ("text", "body", "scene", "message"),
    [
        ("the red dinosaur", None, "0", "'dinosaur'"),
        ("  ", None, "0", "the sentence is empty"),
        ("the red circle", None, "9", "no image"),
        ("the red circle", None, "", "no image"),
        ("the red circle", b"GIF89a", "", "the image: not a JPEG, PNG, WebP or BMP image"),
    ],
)
def test_bad_input_gets_one_line(text: str, body: bytes | None, scene: str, message: str, port: int) -> None:
    status, answer = segment(port, text, body, scene)
    assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


def test_unknown_paths_and_large_bodies(port: int) -> None:
    assert ask(port, "GET", "/../params.yaml")[0] == 404
    assert ask(port, "GET", "/scene/9")[0] == 404
    assert ask(port, "GET", "/scene/0")[0] == 200
    assert ask(port, "POST", "/elsewhere")[0] == 404
    status, content = ask(port, "POST", "/segment?text=a", None, **{"Content-Length": str(LARGEST + 1)})
    assert status == 413 and b"32 MB" in content


def test_another_site_cannot_reach_it_under_its_own_name(port: int) -> None:
    assert ask(port, "GET", "/", Host=f"evil.example:{port}")[0] == 403
    assert ask(port, "GET", "/", Host=f"localhost:{port}")[0] == 200


def test_a_port_in_use_is_named(port: int) -> None:
    with pytest.raises(UserError, match=f"--port {port}: .*; name another port"):
        make_server(Predictor.from_pretrained(), port)


def test_the_page_loads_nothing_from_elsewhere(port: int) -> None:
    page = ask(port, "GET", "/")[1].decode()
    assert "http://" not in page and "https://" not in page
