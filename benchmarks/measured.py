"""Write a benchmark's result: a table as CSV, and as JSON with how and where it was measured."""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import torch

from wimfris.runs.manifest import code_revision, platform_of
from wimfris.settings.schema import Settings


def with_scan(settings: Settings, backend: str) -> Settings:
    """Return the settings with this scan backend."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"scan": backend})})


def write(rows: list[dict[str, object]], path: Path, options: argparse.Namespace) -> None:
    """Write rows to `path`, and beside it a JSON file: command, settings, device, threads, versions, commit, rows.

    Of a setting that is a path, only the last name is written.
    """
    table = pd.DataFrame(rows, dtype=object)
    table.to_csv(path, index=False, lineterminator="\n")
    content = {
        "command": ["python", *sys.argv],
        "settings": vars(options),
        **platform_of(torch.device(getattr(options, "device", "cpu"))),
        "code": code_revision(),
        "rows": rows,
    }
    path.with_suffix(".json").write_text(
        json.dumps(content, indent=1, default=lambda path: path.name) + "\n", encoding="utf-8"
    )
