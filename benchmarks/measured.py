"""What a benchmark leaves: a table as CSV, and the same as JSON with what it was measured by and on."""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import torch

from wimfris.runs.manifest import code_revision, platform_of


def write(rows: list[dict[str, object]], path: Path, options: argparse.Namespace) -> None:
    """Rows -> `path`, and beside it the JSON: command, settings, device, threads, versions, commit, rows. Of a setting
    that is a path the last name is told alone.
    """
    table = pd.DataFrame(rows, dtype=object)
    table.to_csv(path, index=False, lineterminator="\n")
    told = {
        "command": ["python", *sys.argv],
        "settings": vars(options),
        **platform_of(torch.device(getattr(options, "device", "cpu"))),
        "code": code_revision(),
        "rows": rows,
    }
    path.with_suffix(".json").write_text(
        json.dumps(told, indent=1, default=lambda path: path.name) + "\n", encoding="utf-8"
    )
