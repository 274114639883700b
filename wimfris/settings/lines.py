"""params.yaml as content and the line of every key, for messages that name both."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from wimfris.errors import UserError
from wimfris.files import read_bytes

Lines = Mapping[tuple[str, ...], int]
"""Path of a key -> its line, from 1."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where libyaml is there
_MERGE = "tag:yaml.org,2002:merge"  # the key `<<`


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Return the content of a YAML file and the lines of its keys.

    Raises UserError, in one line, if the file is not UTF-8 or not YAML, or if a mapping has a key twice.
    """
    text = ""
    try:
        text = read_bytes(path).decode("utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        for key, line, repeated in _keys(node):
            if repeated:
                raise UserError(f"{path}: line {line}: key {'.'.join(key)} is given twice; remove one of them")
            lines.setdefault(key, line)
        return None if node is None else loader.construct_document(node), lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        conflict = "\n<<<<<<< " in f"\n{text}"
        reason = "git's conflict markers; resolve the conflict" if conflict else getattr(error, "problem", error)
        raise UserError(f"{path}: line {line}: not YAML ({reason})") from None


def line_of(lines: Lines, key: Sequence[str], sections: Sequence[Sequence[str]] = ((),)) -> int | None:
    """Return the line of a key: under the first of `sections` that gives it, else that of the nearest mapping above."""
    for length in range(len(key), 0, -1):
        for section in sections:
            if (path := (*section, *key[:length])) in lines:
                return lines[path]
    return None


def _keys(node: Node | None, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """Yield path, line and whether the key is repeated, of each key; keys that `<<` merges after the mapping's own."""
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys(item, (*above, str(number)))
    if not isinstance(node, MappingNode):
        return
    merged: list[Node] = []
    own: set[str] = set()
    for key_node, value in node.value:
        if key_node.tag == _MERGE:
            merged += value.value if isinstance(value, SequenceNode) else [value]
            continue
        key = str(key_node.value)
        yield (*above, key), key_node.start_mark.line + 1, key in own
        own.add(key)
        yield from _keys(value, (*above, key))
    for other in merged:
        yield from _keys(other, above)
