"""A restricted unpickler: it reads plain values and never runs code."""

import io
import pickle
from pathlib import Path
from typing import Any

from wimfris.errors import UserError, one_line
from wimfris.files import read_bytes

# Unpickling raises any of these on truncated or invalid bytes (the `pickle` documentation: "other exceptions may also
# be raised").
_DAMAGED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _UnsafePickle(Exception):
    """Raised for a pickle that asks for a class or function; the message is its name."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists and dictionaries, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        raise _UnsafePickle(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _UnsafePickle("a persistent object")


def load_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle of plain values, with Python 2 byte strings decoded as UTF-8, else Latin-1.

    Raises UserError if the pickle is damaged or asks for a class or function, which is never imported.
    """
    try:
        # "bytes" leaves Python 2 strings undecoded: copies of the annotations mix encodings, so each string is
        # decoded on its own.
        content = _PlainUnpickler(io.BytesIO(read_bytes(path)), encoding="bytes").load()
    except _UnsafePickle as error:
        raise UserError(
            f"{path}: unsafe pickle, it asks for {error}; get the file from a source that you trust"
        ) from None
    except _DAMAGED as error:
        raise UserError(f"{path}: not a readable pickle ({one_line(error)}); get the file again") from None
    return _decode_strings(content)


def _decode_strings(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if isinstance(value, list | tuple):
        return [_decode_strings(item) for item in value]
    if isinstance(value, dict):
        return {_decode_strings(key): _decode_strings(item) for key, item in value.items()}
    return value
