"""A script's folder comes first on the path, so a benchmark must not have the name of a package that others import."""

import os
import subprocess
import sys
from pathlib import Path


def test_packages_load_beside_the_benchmarks() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2] / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "import numba, pandas, torch, transformers, yaml"]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
