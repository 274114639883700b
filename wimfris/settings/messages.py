"""Checks of settings, and a pydantic error as one line that names the key."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wimfris.errors import UserError

T = TypeVar("T", bound=BaseModel)


class ImpossibleSetting(ValueError):
    """A value that its type allows and another setting does not."""


def require(condition: bool, key: str, allowed: str, value: object) -> None:
    """Raise ImpossibleSetting, which names the key, its value and what is allowed, where the condition is false."""
    if not condition:
        raise ImpossibleSetting(f"{key}: {value} is not possible; allowed: {allowed}")


def validated(kind: type[T], content: dict[str, Any], scale: str = "", variant: str = "") -> T:
    """Return the content as this model. Raises UserError, in one line, where it is not valid."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        place = f" (scale {scale}, variant {variant})" if scale else ""
        raise UserError(f"params.yaml: {_message(error.errors(), content)}{place}") from None


def _message(errors: Sequence[Any], content: Any) -> str:
    """Return the first error. Where it concerns a union, add what each other branch allows."""
    first, *others = [_line(error, content) for error in errors]
    key = first.split(":")[0]
    branches = [other.split(": ", 1)[1] for other in others if other.split(":")[0] == key]
    return ", or ".join([first.rsplit(", not ", 1)[0], *branches]) if branches else first


def _line(error: Any, content: Any) -> str:
    """Return one pydantic error as `key: what is wrong; what is allowed`."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ImpossibleSetting):
        return str(cause)
    key = ".".join(_path(error, content))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; remove it, or see params.yaml in the repository for the keys there are"
    if error["type"] == "missing":
        return f"{key}: missing; it has no default"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _path(error: Any, content: Any) -> list[str]:
    """Return the keys down to the error. pydantic's location also holds the branches of unions: leave them out."""
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
    return path
