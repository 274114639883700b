"""What a claim needs before and after a change of the recipe: scatter over seeds and images, and seeds to a verdict.

    python benchmarks/recipes.py --before f0d2767    # -> recipes.csv

`before` is a revision of this repository whose comparisons were made with the former recipe. Both are judged by the
present plan and statistics, so that nothing but the evidence differs.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measured import write

from wimfris.results.claims import judge_place
from wimfris.results.comparisons import Comparisons, comparisons_path, read_comparisons
from wimfris.results.plan import Plan, read_plan
from wimfris.results.settle import BEYOND, needs, without_estimate
from wimfris.settings.params import Params, read_params

HERE = Path(__file__).parent


def comparisons_at(revision: str, name: str) -> Comparisons:
    """Return the comparisons of a data set and scale (`name`) that a revision holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = comparisons_path(name, Path(folder))
        path.parent.mkdir(parents=True)
        address = f"{revision}:{comparisons_path(name, Path('reports'))}"
        path.write_bytes(
            subprocess.run(["git", "show", address], capture_output=True, check=True, cwd=HERE.parent).stdout
        )
        return read_comparisons(name, Path(folder))


def claim_rows(params: Params, plan: Plan, comparisons: Comparisons) -> dict[str, dict[str, object]]:
    """Return for each claim the SD over seeds of one system and the SE over images, in points, and the seeds needed.

    A claim whose systems have one seed has no SD of its own. The seeds that it needs then follow from the SD of others.
    """
    verdicts = judge_place(params, plan, comparisons)
    grid = params.settings().grid
    wanted = {need.verdict.claim.name: need for need in needs(plan, verdicts, grid)}
    unknown = without_estimate(plan, verdicts, grid)
    rows: dict[str, dict[str, object]] = {}
    for verdict in verdicts:
        compared = [row for row in verdict.rows if row["metric"] == "miou"]
        if not compared or verdict.claim.name in unknown:
            continue
        known = [row for row in compared if np.isfinite(row["seed_variance"])]
        each = [sum(1 / len(row[name].split()) for name in ("seeds", "rival_seeds")) for row in known]
        variances = [row["seed_variance"] / share for row, share in zip(known, each, strict=True)]
        need = wanted.get(verdict.claim.name)
        rows[verdict.claim.name] = {
            "seed_sd": round(100 * float(np.mean(variances)) ** 0.5, 2) if known else None,
            "image_se": round(100 * float(np.mean([row["image_variance"] for row in compared])) ** 0.5, 2),
            "seeds_needed": "decided" if need is None else need.seeds or f"more than {BEYOND[-1]}",
        }
    return rows


def main() -> None:
    """Write recipes.csv: a row per claim that both kinds of evidence have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a revision with the evidence of the former recipe")
    options = parser.parse_args()
    params, plan = read_params(), read_plan()
    name = params.settings().folder.name
    before = claim_rows(params, plan, comparisons_at(options.before, name))
    after = claim_rows(params, plan, read_comparisons(name))
    rows = [
        {"claim": claim}
        | {f"{key}_before": value for key, value in before[claim].items()}
        | {f"{key}_after": value for key, value in after[claim].items()}
        for claim in before
        if claim in after
    ]
    write(rows, HERE / "recipes.csv", options)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
