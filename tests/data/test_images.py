"""The decoder: the same pixels everywhere, and one line for a file that it cannot read whole."""

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from wimfris.data import images
from wimfris.data.images import read_image
from wimfris.errors import UserError

RED = np.zeros((24, 32, 3), np.uint8)
RED[:8, :, 0] = 255  # the upper third is red


def encoded(mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RED).convert(mode).save(file, kind, **options)
    return file.getvalue()


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_image(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_images_are_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded(mode))
    assert (read_image(tmp_path / "a.png") == RED).all()


def test_grey_16_bit_and_cmyk_images_are_rgb(tmp_path: Path) -> None:
    grey = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    cv2.imwrite(str(tmp_path / "deep.png"), grey)
    assert (read_image(tmp_path / "deep.png") == (grey >> 8).astype(np.uint8)[..., None]).all()
    (tmp_path / "grey.png").write_bytes(encoded("L"))
    assert (read_image(tmp_path / "grey.png") == np.where(RED[..., :1] > 0, 76, 0)).all()
    (tmp_path / "ink.jpg").write_bytes(encoded("CMYK", "JPEG", quality=95))
    assert np.abs(read_image(tmp_path / "ink.jpg").astype(int) - RED)[:6].max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_turns_an_image_only_on_demand(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    (tmp_path / "photo").write_bytes(encoded(kind=kind, exif=exif))
    flat, turned = read_image(tmp_path / "photo"), read_image(tmp_path / "photo", orient=True)
    assert flat.shape == (24, 32, 3) and turned.shape == (32, 24, 3)
    assert (turned == np.rot90(flat, -1)).all()


def test_no_name_of_a_path_stops_the_decoder(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe caf\xc3\xa9.png"))
    path.write_bytes(encoded())
    assert (read_image(path) == RED).all()


def test_a_jpeg_damaged_in_its_middle_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    content = bytearray(file.getvalue())
    content[2000:2600] = bytes(600)
    assert refused(tmp_path / "a.jpg", bytes(content)).startswith("damaged or truncated (Corrupt JPEG data")
    assert capfd.readouterr().err == "", "the codec's own line must not reach the terminal"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_image_is_refused(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = encoded(kind=kind)
    for part in (0.3, 0.7, 0.95):
        assert refused(tmp_path / "a", content[: int(part * len(content))]).startswith("damaged or truncated")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"<html>not found</html>", encoded(kind="GIF"), encoded(kind="TIFF")])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "a.jpg", content).startswith("not a JPEG, PNG, WebP or BMP image; get the file again")
    assert refused(tmp_path / "a.jpg", b"").startswith("empty; get the file again")


@pytest.mark.slow
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    width = images.MAX_PIXELS // 8192 + 1
    for size in ((width, 8192), (20_000, 20_000)):
        file = io.BytesIO()
        Image.new("1", size).save(file, "PNG")
        assert "pixels; the limit is 67,108,864" in refused(tmp_path / "a.png", file.getvalue())


def test_a_missing_a_dangling_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, reason in (("none.png", "missing"), ("link.png", "missing, a link to .*gone"), (".", "unreadable")):
        with pytest.raises(UserError, match=reason):
            read_image(tmp_path / name)


def test_other_lines_on_stderr_pass_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decode = cv2.imdecode

    def noisy(*arguments: Any) -> Any:
        os.write(2, b"a line of another thread\n")
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", noisy)
    (tmp_path / "a.png").write_bytes(encoded())
    read_image(tmp_path / "a.png")
    assert capfd.readouterr().err == "a line of another thread\n"
