"""No test depends on the results in the working tree: `make repro && make test` passes on every machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
READERS = re.compile(r"\bcommitted\b|ROOT / .reports|REPORTS")  # what a test file that reads results says


def alter(reports: Path) -> None:
    """Change results as another processor does, and more: counts by one pixel, scores in the last bits, all tables."""
    for path in reports.rglob("*.parquet"):
        table = pq.read_table(path)
        for name in ("intersection", "target_iou"):
            if name in table.column_names:
                column = table[name].to_numpy()
                altered = column + (1 if column.dtype.kind in "iu" else np.spacing(column))
                place = table.column_names.index(name)
                table = table.set_column(
                    place, table.schema.field(name), pa.array(altered, table.schema.field(name).type)
                )
        pq.write_table(table, path)
    for path in reports.rglob("*.json"):
        text = re.sub(r"\d+\.\d{3,}", lambda number: repr(float(np.nextafter(float(number[0]), 1e9))), path.read_text())
        json.loads(text)
        path.write_text(text)
    for path in (reports / "tables").rglob("*.*"):
        path.write_text(path.read_text().replace("0", "9"))
    for path in (*reports.glob("claims.md"), *reports.glob("index.html")):
        path.write_text("altered\n")
    for path in reports.rglob("*.png"):
        path.unlink()


@pytest.mark.slow
@pytest.mark.long
def test_tests_pass_with_altered_results(tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    command = ["git", "clone", "--quiet", "--no-local", "--depth", "1", f"file://{ROOT}", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the project is no git repository here")
    alter(folder / "reports")
    changed = subprocess.run(
        ["git", "status", "--short"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert "reports/records/scenes-tiny.parquet" in changed and "reports/tables/scenes-tiny/main.md" in changed
    files = [
        str(path.relative_to(folder)) for path in (folder / "tests").rglob("test_*.py") if "slow" not in path.parts
    ]
    readers = [
        name for name in files if READERS.search((folder / name).read_text()) and name != f"tests/{Path(__file__).name}"
    ]
    assert "tests/studies/test_studies.py" in readers
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            "0",
            "-m",
            "not slow and not long",
            *sorted(readers),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
