"""Does the trained result depend on the scan's backend? Trains the full model by backend and seed.

    dvc repro prepare encoders                 # makes what training reads
    python benchmarks/trained.py --jobs 2      # 2 backends x 3 seeds -> trained_cpu.csv

A JSON file beside the CSV has the same rows, with the settings, device, versions and commit of the measurement. Every
run is trained anew in its own folder, whatever runs the matrix has finished.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from measured import with_scan, write

from wimfris.results.scores import METRICS
from wimfris.runs.files import RunFiles
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.run import train_into

HERE = Path(__file__).parent
RUN = Path("run")  # where a run leaves its files, in its own folder


def settings_of(backend: str) -> Settings:
    """Return the settings of the full model in params.yaml, with this backend."""
    return with_scan(read_params().settings(), backend)


def train(backend: str, seed: int) -> dict[str, object]:
    """Train in a process and a folder of its own; return the metrics on every split, in percent, and the run's cost."""
    with tempfile.TemporaryDirectory() as place:
        folder, settings = Path(place), settings_of(backend)
        (folder / settings.folder).mkdir(parents=True)
        for path in (Path("params.yaml"), *(settings.folder / name for name in ("refer", "index", "encoders.json"))):
            (folder / path).symlink_to(path.absolute())
        command = [sys.executable, __file__, "--one", backend, str(seed)]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": path})
        files = RunFiles(folder / RUN)
        metrics, manifest = json.loads(files.metrics.read_text()), json.loads(files.manifest.read_text())
    row: dict[str, object] = {"data": settings.folder.name, "protocol": settings.evaluate.protocol}
    row |= {"scan": manifest["scan"], "seed": seed}
    for split, conditions in metrics.items():
        row |= {f"{split}_{name}": f"{100 * conditions['sentence'][name]:.2f}" for name in METRICS}
    return row | {
        "seconds": manifest["wall_seconds"],
        "device": manifest["device"],
        "torch": manifest["packages"]["torch"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="*", default=["reference", "cpu"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        backend, seed = options.one
        train_into(settings_of(backend), int(seed), RUN)
        return
    runs = [(backend, seed) for seed in options.seeds for backend in options.backends]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda run: train(*run), runs))
    rows.sort(key=lambda row: (str(row["scan"]), int(str(row["seed"]))))
    write(rows, HERE / "trained_cpu.csv", options)
    frame = pd.DataFrame(rows)
    print(frame.groupby("scan")[["val_miou", "val_oiou"]].agg(lambda cells: cells.astype(float).mean()).to_string())


if __name__ == "__main__":
    main()
