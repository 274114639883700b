"""Checks of settings, and a validation error as one line that names the key."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from wimfris.errors import UserError

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


def validated(kind: type[T], content: dict[str, Any], scale: str = "", variant: str = "") -> T:
    """Return the content as an instance of this model. Raises UserError, in one line, if it is invalid."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        place = f" (scale {scale}, variant {variant})" if scale else ""
        raise UserError(f"params.yaml: {_message(error.errors(), content)}{place}") from None


def _message(errors: Sequence[Any], content: Any) -> str:
    """Return the first error in one line. For a union, name what each of its branches expects."""
    first, path = errors[0], _path(errors[0], content)
    key, context = ".".join(path), first.get("ctx", {})
    match first["type"]:
        case "impossible_setting":
            return str(first["msg"])
        case "unknown_key":
            return f"unknown key {'.'.join([*path, context['key']])}; {context['advice']}"
        case "missing" | "union_tag_not_found":
            return f"{key} is missing and has no default"
        case "literal_error" | "union_tag_invalid":
            value = context.get("tag", first["input"])
        case _:
            value = repr(first["input"])  # the quotes show a number that YAML read as text
    expected = [_expectation(error) for error in errors if _path(error, content) == path]
    return f"{key} must {' or '.join(expected).replace(' or be ', ' or ')}, got {value}"


def _expectation(error: Any) -> str:
    """Return what pydantic expects of a value, to follow "must": "be greater than 0"."""
    context = error.get("ctx", {})
    choices = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
    if choices:
        return f"be one of {', '.join(choices)}" if len(choices) > 1 else f"be {choices[0]}"
    return re.sub(r"^\w+ should | after validation|,.*| or instance of \w+", "", error["msg"])


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
