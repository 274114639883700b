"""The verdicts on the paper's claims, from reports/claims.yaml (`wimfris.results.plan`) and reports/comparisons.

A verdict holds for the data set and scale of its runs: only runs at the paper's scale on its data test the paper
itself. `wimfris.results.verdicts` has the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wimfris.errors import UserError
from wimfris.results.comparisons import Comparisons
from wimfris.results.formats import interval
from wimfris.results.plan import Better, Claim, Construction, Falls, Plan
from wimfris.results.published import PAPERS_SET, PUBLISHED, Figure, Published, read_published
from wimfris.results.tiers import claim_decision
from wimfris.settings.params import Params

PAPER = (PAPERS_SET, "base")
"""Data set and scale of the paper's claims: only a verdict there is about the paper itself."""

CONSTRUCTION = "true by construction"
NOT_TESTED = "not tested"
_NOT_MEASURED = "not measured: these runs lack the column right_object; train them again"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the evidence says about a claim, at the data set and scale of its comparisons."""

    claim: Claim
    margin: float  # a fraction of the claim's metric, or of alpha
    figures: Mapping[str, Figure]  # the paper's, by label or variant
    dataset: str
    scale: str
    decision: str  # one of `verdicts.Decision`, or `CONSTRUCTION`
    reason: str  # a clause, for example "not run: window_8"
    rows: tuple[Row, ...]  # the primary comparisons of the claim; none without runs

    @property
    def at_scale(self) -> str:
        """The decision with the scale at which it holds."""
        if isinstance(self.claim, Construction):
            return self.decision
        gap = "" if self.rows else f" ({self.reason.partition(':')[0]})"
        return f"at scale {self.scale}: {self.decision}{gap}"

    @property
    def at_paper_scale(self) -> str:
        """The decision if it was tested at the paper's scale on its data, else `NOT_TESTED`."""
        if isinstance(self.claim, Construction) or (self.dataset, self.scale) == PAPER:
            return self.decision
        return NOT_TESTED

    @property
    def has_interval(self) -> bool:
        """Whether a row has an interval for any seed, which takes two seeds."""
        return any(np.isfinite(row["low"]) for row in self.rows)

    @property
    def look(self) -> int:
        """The look that its rows show, 0 before the first one."""
        return min((int(row["look"]) for row in self.rows), default=0)


def judge(
    plan: Plan, comparisons: Comparisons, dataset: str, scale: str, side: int, *, figures: Path = PUBLISHED
) -> list[Verdict]:
    """Return a verdict for each claim, in order; side: of the encoder's grid at this scale.

    Raises `UserError` if a claim names a published figure that does not exist.
    """
    published, primary = read_published(figures), comparisons.primary
    verdicts = []
    for claim in plan.claims:
        rows: tuple[Any, ...] = tuple(primary[primary["claim"] == claim.name].to_dict("records"))
        if isinstance(claim, Construction):
            decision, reason = CONSTRUCTION, f"{claim.value:g}{claim.unit}"
        else:
            missing = [name for name in plan.systems_of(claim, side)[1:] if name not in {row["rival"] for row in rows}]
            complete = bool(rows) and not missing
            decision = claim_decision(rows, plan.margin(claim)) if complete else "undecided"
            run = any(comparisons.quote(claim.system, name) for name in missing)
            reason = _NOT_MEASURED if run else _reason(plan, claim, rows, decision, missing)
        named = _figures(claim, published, figures)
        verdicts.append(Verdict(claim, plan.margin(claim), named, dataset, scale, decision, reason, rows))
    return verdicts


def _figures(claim: Claim, published: Published, path: Path) -> dict[str, Figure]:
    place = claim.published
    figures = {}
    for label, row in place.rows.items():
        key = (place.table, place.system, row, PAPERS_SET, place.split, place.metric)
        if key not in published:
            raise UserError(f"claim {claim.name}: {path} has no row {' / '.join(key)}; correct `published`")
        figures[label] = published[key]
    return figures


def _reason(plan: Plan, claim: Claim, rows: tuple[Row, ...], decision: str, missing: list[str]) -> str:
    """Return why the claim has this verdict, as a clause."""
    if not rows:
        return "not run"
    if missing and isinstance(claim, Better):
        return f"not run: {', '.join(map(plan.label, missing))}"
    if not any(row["look"] for row in rows):
        ready, wanted = min(int(row["ready"]) for row in rows), plan.confirmatory.looks[0]
        return f"not tested yet: its systems share {ready} of the {wanted} confirmatory seeds that the first look needs"
    if isinstance(claim, Falls):
        fall = f"its fall is {rows[0]['difference']:+.2f} {interval(rows[0]['low'], rows[0]['high'], '+.2f')}"
        near = {"undecided": "not separated from 0", "no effect of the paper's size": f"within {claim.margin:g} of 0"}
        return f"{fall}, {near[decision]}" if decision in near else fall
    apart: dict[str, list[str]] = {"higher": [], "lower": [], "undecided": []}
    for row in rows:
        apart[row["verdict"]].append(plan.label(row["rival"]))
    if decision == "contradicted":
        better = f", but better than {', '.join(apart['higher'])}" if apart["higher"] else ""
        return f"worse than {', '.join(apart['lower'])}{better}"
    if decision.startswith("reproduced"):
        return f"better than {', '.join(apart['higher'])}"
    if decision == "undecided":
        final = rows[0]["look"] == len(plan.confirmatory.looks)
        return f"not separated from {', '.join(apart['undecided'])}{' at the last look' if final else ''}"
    close = [
        plan.label(row["rival"]) for row in rows if row["high_any"] < row["margin"] and row["low_any"] > -row["margin"]
    ]
    return f"within the margin of {', '.join(close)}"


def judge_place(
    params: Params, plan: Plan, comparisons: Comparisons, reports: Path = PUBLISHED.parent
) -> list[Verdict]:
    """Return the verdicts at the data set and scale of `params`; reports: where published.csv lies."""
    settings = params.settings()
    return judge(plan, comparisons, settings.data.name, settings.scale, settings.grid, figures=reports / PUBLISHED.name)
