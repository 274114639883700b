"""Does the trained result depend on the scan's backend? The full model at the built-in scale, by backend and seed.

    dvc repro prepare encoders                 # what training reads
    python benchmarks/trained.py --jobs 2      # 2 backends x 3 seeds, about 3 minutes of a core each -> trained_cpu.csv

Beside the CSV stands the same as JSON, with the settings, device, versions and commit it was measured by. Every run is
trained anew, in a folder of its own, and takes nothing from the runs of the matrix.
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
from measured import write

from wimfris.data.source import source_images
from wimfris.results.scores import METRICS
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.trainer import RunFiles, train_run

HERE = Path(__file__).parent


def settings_of(backend: str) -> Settings:
    """Of the full model as params.yaml has it, with that backend."""
    settings = read_params().settings()
    return settings.model_copy(update={"model": settings.model.model_copy(update={"scan": backend})})


def train(backend: str, seed: int) -> None:
    """In the working directory, which holds params.yaml and what the stages before training made."""
    settings = settings_of(backend)
    train_run(settings, seed, source_images(settings))


def trained(backend: str, seed: int) -> dict[str, object]:
    """A row: metrics on every split, in percent, and what the manifest says of the run."""
    with tempfile.TemporaryDirectory() as place:
        folder, settings = Path(place), settings_of(backend)
        (folder / settings.folder).mkdir(parents=True)
        for made in (Path("params.yaml"), *(settings.folder / name for name in ("refer", "index", "encoders.json"))):
            (folder / made).symlink_to(made.absolute())
        command = [sys.executable, __file__, "--one", backend, str(seed)]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": path})
        files = RunFiles.of(folder / settings.outs, f"{settings.variant}-{seed}")
        metrics, manifest = json.loads(files.metrics.read_text()), json.loads(files.manifest.read_text())
    row: dict[str, object] = {"data": settings.folder.name, "protocol": settings.evaluate.protocol}
    row |= {"scan": manifest["scan"], "seed": seed}
    for split, told in metrics.items():
        row |= {f"{split}_{name}": f"{100 * told['sentence'][name]:.2f}" for name in METRICS}
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
        train(options.one[0], int(options.one[1]))
        return
    asked = [(backend, seed) for seed in options.seeds for backend in options.backends]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda one: trained(*one), asked))
    rows.sort(key=lambda row: (str(row["scan"]), int(str(row["seed"]))))
    write(rows, HERE / "trained_cpu.csv", options)
    frame = pd.DataFrame(rows)
    print(frame.groupby("scan")[["val_miou", "val_oiou"]].agg(lambda cells: cells.astype(float).mean()).to_string())


if __name__ == "__main__":
    main()
