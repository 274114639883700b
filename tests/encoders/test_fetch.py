"""Downloads from a local server with the hub's protocol: complete and verified, or refused in one line."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from params_file import write_params
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from wimfris.encoders.fetch import fetch_encoders, needed_files
from wimfris.encoders.load import load_vision
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings

ROOT = Path(__file__).parents[2]
NAME, COMMIT = "maker/dino", "b" * 40


class Hub(ThreadingHTTPServer):
    """The part of the hub that downloads use. `cut` truncates bodies half-way; `asked` lists the files sent."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files, self.cut, self.asked = files, False, list[str]()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *rest: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        if self.path.split("?")[0] == f"/api/models/{NAME}/revision/{COMMIT}":
            siblings = [{"rfilename": name} for name in self.server.files]
            body, headers = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), {}
        elif self.path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            name = self.path.rpartition("/")[2]
            body = self.server.files[name]
            large = name.endswith(".safetensors")
            etag = hashlib.sha256(body) if large else hashlib.sha1(f"blob {len(body)}\0".encode() + body)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag.hexdigest()}"'}
            if with_body:
                self.server.asked.append(name)
        else:
            body, headers = b"{}", {"X-Error-Code": "RevisionNotFound"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(404 if "X-Error-Code" in headers else 206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            broken = self.server.cut and "/resolve/" in self.path and len(body) > 10_000
            self.wfile.write(body[start : max(len(body) // 2, start)] if broken else body[start:])
            self.wfile.flush()
            if broken:
                self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=56, num_register_tokens=2
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    return saved | {"pytorch_model.bin": b"the same weights as a pickle", "README.md": b"a card"}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(dict(files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def address(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "ENDPOINT", url)
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    vision = {"source": NAME, "revision": COMMIT}
    return read_params(write_params(tmp_path, {"scales": {"smoke": {"encoders": {"vision": vision}}}})).settings()


def refusal(settings: Settings) -> str:
    """Return the message with which the download is refused."""
    with pytest.raises(UserError) as error:
        fetch_encoders(settings)
    assert "\n" not in str(error.value) and NAME in str(error.value)
    return str(error.value)


def test_fetched_encoders_are_safetensors_and_load(hub: Hub, settings: Settings) -> None:
    (folder,) = fetch_encoders(settings)
    assert sorted(hub.asked) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert load_vision(settings).config.num_register_tokens == 2
    assert fetch_encoders(settings) == [folder] and len(hub.asked) == 2, "a second call fetches nothing"


def test_a_revision_without_safetensors_gives_its_only_weights() -> None:
    names = ["config.json", "merges.txt", "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5", "onnx/a.json"]
    assert needed_files(names) == ["config.json", "merges.txt", "pytorch_model.bin"]
    with pytest.raises(ValueError, match="neither safetensors"):
        needed_files(["config.json", "flax_model.msgpack"])


def test_an_interrupted_download_is_not_used(hub: Hub, settings: Settings) -> None:
    hub.cut = True
    assert "cannot be fetched" in refusal(settings)
    with pytest.raises(UserError, match="`wimfris encoders fetch --scale smoke`"):
        load_vision(settings)
    hub.cut = False
    fetch_encoders(settings)
    load_vision(settings)


def test_a_damaged_file_is_refused_and_fetched_again(hub: Hub, settings: Settings) -> None:
    (folder,) = fetch_encoders(settings)
    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # one bit, which no check of size or shape detects
    blob.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model\.safetensors is not the published file .* run `wimfris encoders fetch"):
        load_vision(settings)
    fetch_encoders(settings)
    load_vision(settings)
    blob.write_bytes(bytes(content)[:1000])
    with pytest.raises(UserError, match="is not the published file"):
        load_vision(settings)


def test_an_edited_configuration_is_refused(hub: Hub, settings: Settings) -> None:
    (folder,) = fetch_encoders(settings)
    blob = (folder / "config.json").resolve()
    blob.write_text(blob.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    with pytest.raises(UserError, match=r"config\.json is not the published file"):
        load_vision(settings)


def test_a_missing_revision_is_refused(hub: Hub, settings: Settings) -> None:
    vision = settings.encoders.vision.model_copy(update={"revision": "c" * 40})
    encoders = settings.encoders.model_copy(update={"vision": vision})
    assert "c" * 40 in refusal(settings.model_copy(update={"encoders": encoders}))


def test_an_unreachable_hub_is_refused(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address(monkeypatch, "http://127.0.0.1:1", tmp_path)
    assert "cannot be fetched" in refusal(settings)


def test_a_silent_hub_does_not_hang(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wimfris.encoders.fetch.TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        assert "cannot be fetched" in refusal(settings)
