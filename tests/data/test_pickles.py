"""The restricted unpickler: plain values are read, code never runs, and a damaged file is one line with its name."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from wimfris.data.pickles import load_plain_pickle
from wimfris.errors import UserError

REFS = Path(__file__).parents[1] / "golden" / "refer_fixture" / "refcoco" / "refs(unc).p"


def test_byte_strings_of_python_2_become_text(tmp_path: Path) -> None:
    def short(text: bytes) -> bytes:  # SHORT_BINSTRING, Python 2's str
        return b"U" + bytes([len(text)]) + text

    path = tmp_path / "refs(unc).p"
    values = short("café".encode()) + short("café".encode("latin-1")) + short(b"plain")
    path.write_bytes(b"\x80\x02}(" + short(b"sent") + b"](" + values + b"eu.")
    assert load_plain_pickle(path) == {"sent": ["café", "café", "plain"]}
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")  # STRING, protocol 0
    assert load_plain_pickle(path) == ["café"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_a_class_is_named_and_never_executed(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"cos\nsystem\n(S'touch exploded'\ntR.")
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: unsafe pickle, it asks for os\.system"):
        load_plain_pickle(path)
    path.write_bytes(pickle.dumps([Bomb()], protocol))
    with pytest.raises(UserError, match="unsafe pickle, it asks for"):
        load_plain_pickle(path)
    path.write_bytes(pickle.dumps([OrderedDict(a=1)], protocol))
    with pytest.raises(UserError, match=r"collections\.OrderedDict"):
        load_plain_pickle(path)
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_pickle_is_one_line_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    for protocol in (0, 2):
        whole = pickle.dumps(pickle.loads(REFS.read_bytes()), protocol)
        for length in [*range(40), *range(40, len(whole), 97), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"refs\(unc\)\.p: not a readable pickle") as caught:
                load_plain_pickle(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html>\n<html>",
        b"PK\x03\x04",
        b"\x80\x02X\xff\xff\xff\xffa.",
    ],
)
def test_other_files_are_not_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable pickle"):
        load_plain_pickle(path)
