"""Atomic file writes and hashes."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wimfris.errors import UserError

UNWRITABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "EIO", "ENAMETOOLONG")
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, delete it when it fails.

    Raises UserError where the file cannot be written: a full disk, a folder that is read-only or none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors writes files that only their owner can read
            to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system within the block, which writes `path`, into a UserError that names it."""
    try:
        yield
    except Exception as error:
        # Libraries wrap the system's error: safetensors and torch in errors of their own, which hold its text.
        code = error.errno if isinstance(error, OSError) else None
        full = f"{os.strerror(errno.ENOSPC)}" in str(error)
        if code not in UNWRITABLE and not full:
            raise
        reason = os.strerror(errno.ENOSPC if full or code is None else code)
        raise UserError(f"{path}: cannot be written ({reason}); free some disk space, or check the folder") from error


def check_writable(path: Path) -> None:
    """Raise UserError where a file cannot be written, before hours are spent on its content."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{path}: cannot be written, {parent} is not a writable folder; name another file")


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that a crash right after a rename loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises UserError, in one line, if it is missing or cannot be read."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        target = f", a link to {path.readlink()}, which does not exist" if path.is_symlink() else ""
        raise UserError(f"{path}: missing{target}") from None
    except OSError as error:
        raise UserError(f"{path}: unreadable ({error.strerror})") from None
