"""Does training on another machine give the committed results? Compares the evidence of two checkouts.

    python benchmarks/replication.py ../rerun     # a checkout in which `make repro` has ended -> replication.csv

A seed gives the same bits on one machine only: another processor's kernels round differently, and after training that
is like another seed. The table has a row for each core run and split, with the metrics of both checkouts in percent.
The printed summary compares the spread of the differences in mIoU between machines with the spread between seeds on
either machine, pooled over variants. Where both are alike, a rerun elsewhere says what a rerun with other seeds says.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from measured import write

from wimfris.results.evidence import EvidenceFiles, read_evidence
from wimfris.results.scores import METRICS
from wimfris.settings.params import Params, read_params

HERE = Path(__file__).parent


def read_metrics(params: Params, checkout: Path) -> dict[str, Any]:
    """Return run -> split -> condition -> metric of a checkout, for the runs that have the settings of params.yaml."""
    reports = checkout / "reports"
    current = set(read_evidence(params, reports).runs["run"])
    metrics = json.loads(EvidenceFiles(params.settings().folder.name, added=False, reports=reports).metrics.read_text())
    return {run: splits for run, splits in metrics.items() if run in current}


def seed_spread(frame: pd.DataFrame, column: str) -> float:
    """Return the standard deviation over seeds, pooled over variants."""
    return math.sqrt(frame.groupby("variant")[column].var(ddof=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    options = parser.parse_args()
    params, rows = read_params(), []
    here, there = (read_metrics(params, checkout) for checkout in (Path(), options.other))
    for run in params.runs():
        if str(run) not in here or str(run) not in there:
            raise SystemExit(f"{run}: no evidence with the settings of params.yaml, here or in {options.other}")
        for split in here[str(run)]:
            row: dict[str, object] = {"variant": run.variant, "seed": run.seed, "split": split}
            for name in METRICS:
                for prefix, metrics in (("", here), ("rerun_", there)):
                    row[prefix + name] = f"{100 * metrics[str(run)][split]['sentence'][name]:.3f}"
            rows.append(row)
    options.other = options.other.name
    write(rows, HERE / "replication.csv", options)
    frame = pd.DataFrame(rows)
    val = frame[frame["split"] == "val"].astype({"miou": float, "rerun_miou": float})
    between = (val["rerun_miou"] - val["miou"]).to_numpy()
    print(
        f"{len(val)} runs on val: the rerun's mIoU minus the committed one is {between.mean():+.2f} points on average,"
    )
    print(f"with a standard deviation of {between.std(ddof=1):.2f};")
    seeds = [math.sqrt(2) * seed_spread(val, column) for column in ("miou", "rerun_miou")]
    print(f"that of the difference between two seeds is {seeds[0]:.2f} here and {seeds[1]:.2f} there")
    means = val.groupby("variant")[["miou", "rerun_miou"]].mean()
    print(means.sort_values("miou").round(1).to_string())


if __name__ == "__main__":
    main()
