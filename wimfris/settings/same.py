"""Compare the settings that a run was trained with, as its manifest or runs.csv records them, with present ones."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from wimfris.settings.schema import Settings


def differences(settings: Settings, recorded: dict[str, Any]) -> list[str]:
    """Return one line per setting that differs, for example "model.hmf.window was 4 and is 2"; none if all are equal.

    A key that is newer than the run counts at its default. The scan backend is ignored: it changes how the result is
    computed, not what it is. So are the sizes of adapter families that the run does not use.
    """
    try:
        values = recorded | {"group": settings.group}
        model = values["model"]
        sizes = {name: size for name, size in (model.get("rivals") or {}).items() if name == model["adapters"]}
        values["model"] = model | {"scan": settings.model.scan, "rivals": sizes or None}
        before = Settings.model_validate(values)
    except (KeyError, TypeError, ValidationError):
        return ["its settings are of another version"]
    return list(_different(before.model_dump(mode="json"), settings.model_dump(mode="json"), ""))


def _different(before: Any, now: Any, key: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _different(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key} was {before} and is {now}"
