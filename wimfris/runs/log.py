"""The log of a run: one JSON object per logged step and epoch."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wimfris.errors import UserError
from wimfris.files import write_text

Event = dict[str, Any]
"""A line of the log. Its key `event` is "step" or "epoch"."""


def write_log(events: Sequence[Event], path: Path) -> None:
    """Write a run's log."""
    write_text(path, "".join(json.dumps(event) + "\n" for event in events))


def write_epochs(events: Sequence[Event], path: Path) -> None:
    """Write the numbers of a log's epochs as CSV, one row per epoch."""
    epochs = [event for event in events if event["event"] == "epoch"]
    names = [name for name, value in epochs[0].items() if isinstance(value, int | float)] if epochs else ["epoch"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    write_text(path, text.getvalue())


def read_log(path: Path) -> list[Event]:
    """Read a run's log. Raises UserError where it is missing or a line is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such log; train the run with `dvc repro`") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; delete it and train the run again with `dvc repro`") from None
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            raise UserError(
                f"{path}: line {number} is not a log event; delete the file and train the run again with `dvc repro`"
            )
        events.append(event)
    return events
