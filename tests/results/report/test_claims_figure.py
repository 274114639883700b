"""The forest plot of the claims, and the sentence for each of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wimfris.results.claims import Verdict, judge_place
from wimfris.results.comparisons import Comparisons, read_comparisons
from wimfris.results.plan import Plan, read_plan
from wimfris.results.report.claims_figure import claim_rows, draw_claims
from wimfris.results.report.claims_tables import answer
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparisons(committed: Path) -> Comparisons:
    return read_comparisons("scenes-tiny", committed / "reports")


@pytest.fixture(scope="module")
def plan(committed: Path) -> Plan:
    return read_plan(committed / "reports" / "claims.yaml")


@pytest.fixture(scope="module")
def verdicts(committed: Path, comparisons: Comparisons, plan: Plan) -> list[Verdict]:
    params = read_params(committed / "params.yaml").at_name("scenes-tiny")
    return judge_place(params, plan, comparisons, committed / "reports")


def test_rows_are_the_primary_comparisons(verdicts: list[Verdict], plan: Plan, comparisons: Comparisons) -> None:
    rows, primary = claim_rows(verdicts, plan), comparisons.primary
    assert len(rows) == len(primary) and set(rows["tier"]) == {"primary"}
    of_miou = rows[rows["metric"] == "miou"]
    expected = primary[primary["metric"] == "miou"]
    for name in ("difference", "low", "high"):
        ours, theirs = np.sort(of_miou[name]), np.sort(100 * expected[name])  # one seed has no interval: NaN, last
        assert ours == pytest.approx(theirs, nan_ok=True), "in points"
    assert list(dict.fromkeys(rows["claim"])) == [one.claim.claim for one in verdicts if one.rows]
    assert (rows["margin"] > 0).all() and not (rows["low"] > rows["difference"]).any()


def test_a_part_of_the_rows_can_be_drawn(verdicts: list[Verdict], plan: Plan, tmp_path: Path) -> None:
    rows = claim_rows(verdicts, plan)
    every = [rows.assign(decision=decision, look=1).head(1) for decision in ("reproduced", "contradicted", "undecided")]
    sizes = []
    for number, part in enumerate((rows, rows.head(2), rows[rows["metric"] == "alpha"], pd.concat(every))):
        draw_claims(part, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            sizes.append(picture.height)
    assert sizes[0] == max(sizes) > 2 * sizes[1]


def test_every_claim_has_one_sentence_below_its_decision_and_reason(verdicts: list[Verdict], plan: Plan) -> None:
    head, seen = "", []
    for line in answer(verdicts, plan).splitlines():
        head = line if line.startswith("- ") else head
        if line.startswith("    - "):
            verdict = next(one for one in verdicts if line.startswith(f"    - {one.claim.claim}"))
            assert head == f"- **{verdict.decision[0].upper()}{verdict.decision[1:]}**: {verdict.reason}."
            seen.append(verdict.claim.name)
    assert sorted(seen) == sorted(verdict.claim.name for verdict in verdicts)
