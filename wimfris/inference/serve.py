"""A local web page to try a model: image and sentence in, overlay out. Loopback only."""

import base64
import html
import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from wimfris.data.images import decode_image
from wimfris.data.tokens import WordTokenizer
from wimfris.errors import UserError
from wimfris.inference.demo import shipped_scenes
from wimfris.inference.overlay import enlarged
from wimfris.inference.predict import Predictor

HOST = "127.0.0.1"
LARGEST = 32 * 2**20  # bytes of an uploaded image
SIDE = 384  # pixels: a smaller picture is enlarged for the page
PAGE = Path(__file__).with_name("serve.html")


def make_server(predictor: Predictor, port: int) -> ThreadingHTTPServer:
    """Return a server on the loopback address; port 0 takes a free one. Raises UserError where the port is taken."""
    try:
        return ThreadingHTTPServer((HOST, port), _handler(predictor))
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; name another port") from None


def _page(predictor: Predictor) -> str:
    """Return the page, with the model's name and the words that it knows."""
    tokenizer, settings = predictor.tokenizer, predictor.settings
    words = ", ".join(tokenizer.words) if isinstance(tokenizer, WordTokenizer) else "any English words"
    scenes = "\n".join(_choice(number, scene.sentence) for number, scene in enumerate(shipped_scenes()))
    name = f"run {predictor.facts.get('run', settings.variant)}, scale {settings.scale}"
    text = PAGE.read_text(encoding="utf-8")
    for key, value in {"MODEL": html.escape(name), "WORDS": html.escape(words), "SCENES": scenes}.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def _choice(number: int, sentence: str) -> str:
    """Return the radio button of a shipped scene."""
    radio = f'<input type="radio" name="scene" value="{number}" data-sentence="{html.escape(sentence)}"'
    picture = f'<img src="/scene/{number}" width="96" height="96" alt="Scene {number + 1}">'
    return f"<label>{radio}{' checked' * (number == 0)}>{picture}</label>"


def _handler(predictor: Predictor) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers the page's requests with this model."""
    page, lock = _page(predictor).encode(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/":
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page)
                return
            try:
                content = _scene(path.removeprefix("/scene/")).read_bytes()
            except UserError:
                self._refuse(HTTPStatus.NOT_FOUND, f"{path}: no such page")
            else:
                self._answer(HTTPStatus.OK, "image/jpeg", content)

        def do_POST(self) -> None:
            """Answer POST /segment?text=...[&scene=...]: the body is an image file, or empty with a scene."""
            address = urlsplit(self.path)
            fields = {name: values[0] for name, values in parse_qs(address.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            if address.path != "/segment":
                self._refuse(HTTPStatus.NOT_FOUND, f"{address.path}: no such page")
                return
            if length > LARGEST:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the image has more than {LARGEST >> 20} MB")
                return
            content, sentence = self.rfile.read(length), fields.get("text", "")
            try:
                if not content:
                    content = _scene(fields.get("scene", "")).read_bytes()
                image = decode_image(content, Path("the image"), orient=True)
                with lock:
                    mask = predictor(image, sentence)
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
                return
            unread = predictor.unread(sentence)
            answer = {
                "overlay": "data:image/png;base64," + base64.b64encode(_png(image, mask)).decode(),
                "share": float(mask.mean()),
                "unread": unread,
            }
            self._answer(HTTPStatus.OK, "application/json", json.dumps(answer).encode())

        def _refuse(self, status: HTTPStatus, message: str) -> None:
            self._answer(status, "application/json", json.dumps({"error": message}).encode())

        def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
            # A page of another site must not reach this server under a name of its own.
            if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
                status, kind, content = HTTPStatus.FORBIDDEN, "text/plain", b"open the page at 127.0.0.1"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            """Stay silent: the terminal shows the address alone."""

    return Handler


def _scene(number: str) -> Path:
    """Return the picture of a shipped scene. Raises UserError for another number."""
    scenes = shipped_scenes()
    if number not in map(str, range(len(scenes))):
        raise UserError("no image; choose a scene or a file")
    return scenes[int(number)].path


def _png(image: np.ndarray, mask: np.ndarray) -> bytes:
    """Return the overlay as PNG; a small picture is enlarged."""
    factor = max(1, SIDE // max(image.shape[:2]))
    return bytes(cv2.imencode(".png", enlarged(image, mask, factor)[..., ::-1])[1])
