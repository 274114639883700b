"""The one image decoder: training, `prepare`, the gallery and `predict` see the same pixels of a file."""

import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wimfris.errors import UserError
from wimfris.files import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 2**26  # 67 million, 8192 x 8192: a larger image costs seconds and hundreds of megabytes
RESAVE = "get the file again; if its original is damaged too, save it anew with an image editor"

# Pillow raises these on headers that are truncated or make no sense.
_BAD_HEADER = (EOFError, LookupError, OSError, OverflowError, SyntaxError, TypeError, ValueError, struct.error)
# The codecs report a file that they can decode only in part on stderr, and nowhere else.
_DAMAGE = re.compile(r"(?:Corrupt JPEG data|Premature end of JPEG|libpng error).*")
_stderr = threading.Lock()


def read_image(path: Path, *, orient: bool = False) -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 RGB, turned by its EXIF orientation only if `orient` is true.

    COCO's annotations ignore EXIF, so training does. Grey, palette and CMYK images become RGB, alpha is dropped, and 16
    bits become 8. Raises UserError, in one line, for a file that is missing, unreadable, damaged, truncated, too large
    or of another format.
    """
    return decode_image(read_bytes(path), path, orient=orient)


def decode_image(content: bytes, path: Path, *, orient: bool = False) -> np.ndarray:
    """Return the content of the image file `path` as `read_image` does."""
    width, height = _header_size(content, path)
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height}")
    flags = cv2.IMREAD_COLOR_RGB | (0 if orient else cv2.IMREAD_IGNORE_ORIENTATION)
    with _captured_stderr() as messages:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            image = None
    damage = _DAMAGE.search(messages[0])
    if image is None or damage:
        reason = damage[0].strip() if damage else "its data ends early or makes no sense"
        raise UserError(f"{path}: damaged or truncated ({reason}); {RESAVE}")
    os.write(2, messages[0].encode())
    return np.asarray(image)


def _header_size(content: bytes, path: Path) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        raise _too_large(path, "far too many") from None
    except Image.UnidentifiedImageError:
        fault = "not a JPEG, PNG, WebP or BMP image" if content else "empty"
        raise UserError(f"{path}: {fault}; get the file again, or convert it to PNG") from None
    except _BAD_HEADER as error:
        raise UserError(f"{path}: damaged or truncated ({' '.join(str(error).split())}); {RESAVE}") from None


def _too_large(path: Path, size: str) -> UserError:
    return UserError(f"{path}: has {size} pixels; the limit is {MAX_PIXELS:,}, make the image smaller")


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Yield a list to which the end of the block appends what was written to stderr, C code's lines included.

    One thread at a time: the file descriptor belongs to the whole process.
    """
    messages: list[str] = []
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)  # a codec that writes more than the pipe holds must not wait
    with _stderr:
        saved = os.dup(2)
        os.dup2(writer, 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(writer)
            os.close(saved)
    with os.fdopen(reader, "rb") as file:
        messages.append((file.read() or b"").decode("utf-8", "replace"))
