"""Do the committed results come again on another machine? The core's runs here beside those of another checkout.

    python benchmarks/replication.py ../rerun     # a checkout in which `make repro` has ended -> replication.csv

A seed gives the same bits on one machine only: another processor's kernels round otherwise, and training makes of the
last bits what it makes of another seed. The table has a row a run and split, with the metrics of both in percent; what
is printed is the spread of the differences in mIoU between the machines beside that between seeds on either, pooled
over variants: where they are alike, a rerun elsewhere says what a rerun with other seeds says.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from measured import write

from wimfris.results.evidence import trained_with
from wimfris.results.scores import METRICS
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.trainer import RunFiles

HERE = Path(__file__).parent


def told(checkout: Path, settings: Settings, run: str) -> tuple[dict[str, Any], Settings]:
    """Metrics by split and condition, and the settings as the manifest has them."""
    files = RunFiles.of(checkout / settings.outs, run)
    metrics, manifest = (json.loads(path.read_text()) for path in (files.metrics, files.manifest))
    return metrics, trained_with(manifest, settings)


def spread(frame: pd.DataFrame, column: str) -> float:
    """Standard deviation over seeds, pooled over variants."""
    return math.sqrt(frame.groupby("variant")[column].var(ddof=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    params, rows = read_params(), []
    for run in params.runs():
        settings = params.settings_of(run)
        (here, ours), (there, theirs) = (told(checkout, settings, run) for checkout in (Path(), options.other))
        if not ours == theirs == settings:
            raise SystemExit(f"{run}: trained with other settings than params.yaml has, here or in {options.other}")
        variant, _, seed = run.rpartition("-")
        for split in here:
            of = {"variant": variant, "seed": int(seed), "split": split}
            pair = (("", here), ("rerun_", there))
            values = {f"{name}{key}": 100 * of_one[split]["sentence"][key] for key in METRICS for name, of_one in pair}
            rows.append(of | {key: f"{value:.3f}" for key, value in values.items()})
    options.other = options.other.name
    write(rows, HERE / "replication.csv", options)
    frame = pd.DataFrame(rows)
    val = frame[frame["split"] == "val"].astype({"miou": float, "rerun_miou": float})
    between = (val["rerun_miou"] - val["miou"]).to_numpy()
    print(f"{len(val)} runs on val: rerun less committed {between.mean():+.2f} points of mIoU in the mean,")
    print(f"standard deviation of one difference {between.std(ddof=1):.2f};")
    seeds = [math.sqrt(2) * spread(val, column) for column in ("miou", "rerun_miou")]
    print(f"of the difference of two seeds here {seeds[0]:.2f}, there {seeds[1]:.2f}")
    means = val.groupby("variant")[["miou", "rerun_miou"]].mean()
    print(means.sort_values("miou").round(1).to_string())


if __name__ == "__main__":
    main()
