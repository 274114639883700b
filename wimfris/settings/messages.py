"""Checks of settings, and a validation error as one line that names the key and its line in params.yaml."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from wimfris.errors import UserError
from wimfris.settings.lines import Lines, line_of

T = TypeVar("T", bound=BaseModel)


def require(condition: bool, key: str, allowed: str, value: object) -> None:
    """Raise an error that reads "<key> must be <allowed>, got <value>" if the condition is false.

    For checks that involve more than one setting. Call it in a validator.
    """
    if not condition:
        context = {"key": key, "allowed": allowed, "value": str(value)}
        raise PydanticCustomError("impossible_setting", "{key} must be {allowed}, got {value}", context)


def require_known(keys: Iterable[object], known: Sequence[str]) -> None:
    """Raise an error for the first key that is not known, and suggest the closest known one. Call it in a validator."""
    for key in map(str, keys):
        if key not in known:
            closest = get_close_matches(key, known, n=1)
            advice = f"did you mean {closest[0]}?" if closest else "remove it"
            raise PydanticCustomError("unknown_key", "unknown key {key}; {advice}", {"key": key, "advice": advice})


def require_numbers(content: Mapping[str, Any], key: str = "") -> None:
    """Raise an error for a boolean among the values, or in a list or table of them. Call it in a validator.

    Python counts True as 1, and YAML reads yes, no, on and off as booleans. `key` is that of the table.
    """
    for name, value in content.items():
        if any(isinstance(part, bool) for part in (value if isinstance(value, list | tuple) else [value])):
            context = {"key": f"{key}.{name}".lstrip("."), "value": str(value)}
            raise PydanticCustomError("boolean", "{key} must not be a boolean, got {value}", context)


def validated(
    kind: type[T],
    content: dict[str, Any],
    lines: Lines = MappingProxyType({}),
    sections: Sequence[Sequence[str]] = ((),),
    *,
    scale: str = "",
    variant: str = "",
) -> T:
    """Return the content of params.yaml, merged from these sections of it, as an instance of this model.

    Raises UserError, in one line with the key and its line in the file, if it is invalid.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        key, message = _message(error.errors(), content)
        line = line_of(lines, key, sections)
        place = [f"line {line}"] * (line is not None) + [f"scale {scale}, variant {variant}"] * bool(scale)
        raise UserError(f"params.yaml: {message}" + (f" ({', '.join(place)})" if place else "")) from None


def _message(errors: Sequence[Any], content: Any) -> tuple[list[str], str]:
    """Return the path of the first error's key, and the error in one line.

    For a union, the line names what each of its branches expects.
    """
    first, path = errors[0], _path(errors[0], content)
    context = first.get("ctx", {})
    match first["type"]:
        case "impossible_setting":
            return context["key"].split("."), str(first["msg"])
        case "unknown_key":
            return [*path, context["key"]], f"unknown key {'.'.join([*path, context['key']])}; {context['advice']}"
        case "boolean":
            path += context["key"].split(".")
            return path, f"{'.'.join(path)} must not be a boolean, got {context['value']}"
        case "union_tag_not_found" if typo := get_close_matches(path[-1], map(str, first["input"]), n=1):
            unknown = [*path[:-1], typo[0]]
            return unknown, f"unknown key {'.'.join(unknown)}; did you mean {path[-1]}?"
        case "missing" | "union_tag_not_found":
            return path, f"{'.'.join(path)} is missing and has no default"
        case "literal_error" | "union_tag_invalid":
            value = context.get("tag", first["input"])
        case _:
            value = repr(first["input"])  # the quotes show a number that YAML read as text
    expected = [_expectation(error) for error in errors if _path(error, content) == path]
    return path, f"{'.'.join(path)} must {' or '.join(expected).replace(' or be ', ' or ')}, got {value}"


def _expectation(error: Any) -> str:
    """Return what pydantic expects of a value, to follow "must": "be greater than 0"."""
    context = error.get("ctx", {})
    choices = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
    if choices:
        return f"be one of {', '.join(choices)}" if len(choices) > 1 else f"be {choices[0]}"
    return re.sub(r"^\w+ should | after validation|,.*| or instance of \w+", "", error["msg"]).replace("tuple", "list")


def _path(error: Any, content: Any) -> list[str]:
    """Return the keys that lead to the error. pydantic's location also names branches of unions: leave them out."""
    path = []
    for part in error["loc"]:
        if isinstance(content, list):
            exists = isinstance(part, int) and part < len(content)
        else:
            exists = isinstance(content, dict) and part in content
        if exists:
            content = content[part]
        if exists or (error["type"] == "missing" and part == error["loc"][-1]):
            path.append(str(part))
    if "discriminator" in error.get("ctx", {}):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return path
