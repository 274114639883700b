"""The tiers of comparisons: which level each gets, which seeds it rests on, and its verdict.

`wimfris.results.comparisons` describes the file that this fills.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wimfris.results.comparisons import (
    ALPHA,
    CONTROL,
    DEPTH,
    EXPLORATORY,
    NO_TIER,
    PRIMARY,
    UNADJUSTED,
    Comparisons,
    Row,
    comparison_row,
    rows_frame,
    splits_of,
)
from wimfris.results.differences import Difference, Pair, compare
from wimfris.results.evidence import Evidence
from wimfris.results.looks import information, nominal_levels
from wimfris.results.plan import METRIC, SPLIT, Better, Falls, Plan
from wimfris.results.statistics import Estimate, selected
from wimfris.results.verdicts import Ends, decide


def compute_comparisons(
    evidence: Evidence, plan: Plan, pairs: Mapping[Pair, bool], side: int, controls: Collection[str] = ()
) -> Comparisons:
    """Compare every pair of the claims and of the studies, on an encoder's grid of this side.

    evidence: of one data set and scale. pairs: of the studies -> whether only studies that the plan does not list have
    it. Such comparisons of one's own join the exploratory family, and `verdict_without_own` states each verdict without
    them. controls: variants whose comparisons are no findings, so that no family counts them.
    """
    pairs_of = {claim.name: [(claim.system, rival) for rival in claim.rivals_at(side)] for claim in plan.better}
    claimed = {pair for own in pairs_of.values() for pair in own}
    studied = {pair[::-1] if pair[::-1] in claimed else pair: own for pair, own in pairs.items()}
    records = of_seeds(evidence.records, plan.exploratory.seeds)
    existing = set(records["variant"].unique())
    wanted = [pair for own in (*pairs_of.values(), studied) for pair in own if existing.issuperset(pair)]
    wanted = list(dict.fromkeys(wanted))
    differences = [row for split in splits_of(records) for row in compare(records, wanted, split)]
    rows: list[Row] = []
    for claim in plan.claims:
        if isinstance(claim, Better):
            own = [row for row in differences if row.pair in pairs_of[claim.name]]
            rows += _claim_rows(claim, evidence.records, own, plan, side)
        elif isinstance(claim, Falls):
            rows += _falls_rows(claim, evidence.emphasis, plan)
    primary = {pair for claim in plan.better if claim.metric == METRIC for pair in pairs_of[claim.name]}
    others = [row for row in differences if row.pair in studied and row.pair not in primary]
    rows += _exploratory_rows([row for row in others if not set(controls) & set(row.pair)], studied, plan)
    rows += _control_rows([row for row in others if set(controls) & set(row.pair)])
    return Comparisons(rows_frame(_each_once(rows)))


def claim_decision(rows: Sequence[Mapping[str, Any]], margin: float) -> str:
    """Return the verdict on a claim from its primary rows: `undecided` before the first look."""
    if not rows or any(row["look"] == 0 for row in rows):
        return "undecided"
    return decide([Ends(*(row[name] for name in Ends._fields)) for row in rows], margin)


def moved(before: Comparisons, now: Comparisons) -> list[str]:
    """Return a line for each comparison with another verdict than before."""
    lines = []
    for row in now.frame[now.frame["verdict"] != ""].to_dict("records"):
        old = before.quote(row["system"], row["rival"], row["split"], row["metric"])
        if old and old["verdict"] != row["verdict"]:
            lines.append(
                f"{row['tier']}, {row['system']} - {row['rival']}: {old['verdict']} before, now {row['verdict']}"
            )
    return lines


def _exploratory_rows(differences: Sequence[Difference], own: Mapping[Pair, bool], plan: Plan) -> list[Row]:
    """Return the rows of all pairs that no claim names."""
    family = [row for row in differences if (row.split, row.metric) == (SPLIT, METRIC)]
    p = {row.pair: row.any_seed.p() for row in family}
    declared = [value for pair, value in p.items() if not own[pair]]
    errors = []
    for values in (list(p.values()), declared):
        discoveries, tests = selected(values, plan.exploratory.q)
        errors.append(plan.exploratory.q * max(discoveries, 1) / max(tests, 1))
    rows = []
    for difference in differences:
        if (difference.split, difference.metric) != (SPLIT, METRIC):
            rows.append(comparison_row(difference, NO_TIER, UNADJUSTED))
            continue
        row = comparison_row(difference, EXPLORATORY, errors[0])
        without = "" if own[difference.pair] else comparison_row(difference, EXPLORATORY, errors[1])["verdict"]
        rows.append(row | {"verdict_without_own": without})
    return rows


def _control_rows(differences: Sequence[Difference]) -> list[Row]:
    """Return the rows of controls: with the interval of one comparison alone, and without a verdict."""
    return [
        comparison_row(difference, NO_TIER, UNADJUSTED)
        | {"tier": CONTROL if (difference.split, difference.metric) == (SPLIT, METRIC) else NO_TIER}
        for difference in differences
    ]


def _each_once(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each comparison, whichever way round: of several, the one with a tier, else the first.

    Two claims may compare the same systems in two metrics; each brings the rows of all metrics.
    """
    kept: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = frozenset((row["system"], row["rival"])), row["split"], row["metric"]
        if key not in kept or (row["tier"] and not kept[key]["tier"]):
            kept[key] = row
    return list(kept.values())


def _claim_rows(
    claim: Better, records: pd.DataFrame, differences: Sequence[Difference], plan: Plan, side: int
) -> list[Row]:
    """Return the rows of a claim: of the look that decided it, else of the last look, else of exploratory seeds."""
    systems = plan.systems_of(claim, side)
    known = records[["variant", "seed"]].drop_duplicates()
    seeds = [set(known.loc[known["variant"] == name, "seed"]) for name in systems]
    common = [all(seed in own for own in seeds) for seed in plan.confirmatory.seeds]
    ready = common.index(False) if False in common else len(common)
    rows = _look_rows(claim, differences, plan, look=0)
    pairs = [(claim.system, rival) for rival in systems[1:]]
    for look, wanted in enumerate(plan.confirmatory.looks, start=1):
        if not pairs or ready < wanted:
            break
        part = of_seeds(records, plan.confirmatory.seeds[:wanted])
        part = part[part["variant"].isin(systems)]
        compared = [row for split in splits_of(part) for row in compare(part, pairs, split)]
        first = {row.pair: row.any_seed for row in compared if (row.split, row.metric) == (SPLIT, claim.metric)}
        if len(first) < len(pairs):  # a run does not say which object is right
            break
        if look == 1:
            shares = {pair: _share(one, plan) for pair, one in first.items()}
        rows = _look_rows(claim, compared, plan, look, shares)
        if claim_decision([row for row in rows if row["tier"]], plan.margin(claim)) != "undecided":
            break
    return [row | {"ready": ready} for row in rows]


def _share(estimate: Estimate, plan: Plan) -> float:
    return information(estimate.seed_variance, estimate.image_variance, *plan.confirmatory.looks)


def _errors(alpha: float, look: int, share: float | None) -> float:
    """Return the two-sided error that a look tests at, of `alpha` in all; all of it without a look."""
    return alpha if share is None or look == 0 else nominal_levels(alpha, share)[look - 1]


def _look_rows(
    claim: Better, differences: Sequence[Difference], plan: Plan, look: int, shares: Mapping[Pair, float] | None = None
) -> list[Row]:
    rivals = len({row.pair for row in differences})
    rows = []
    for difference in differences:
        if (difference.split, difference.metric) != (SPLIT, claim.metric):
            rows.append(comparison_row(difference, NO_TIER, UNADJUSTED))
            continue
        share = shares[difference.pair] if shares else None
        errors = (_errors(plan.alpha, look, share), _errors(plan.alpha / rivals, look, share))
        row = comparison_row(difference, PRIMARY, *errors) | {"margin": plan.margin(claim), "look": look}
        rows.append(row if look else row | {"verdict": "undecided" if row["verdict"] else ""})
    return [row | {"claim": claim.name if row["tier"] else ""} for row in rows]


def _falls_rows(claim: Falls, emphasis: pd.DataFrame, plan: Plan) -> list[Row]:
    """Return the row of the learned emphasis: alpha of the first minus that of the last layer, of a line fitted to
    alpha after the last epoch.
    """
    course = emphasis[emphasis["variant"] == claim.system]
    ready = 0
    while ready < len(plan.confirmatory.seeds) and plan.confirmatory.seeds[ready] in set(course["seed"]):
        ready += 1
    looks = [(0, plan.exploratory.seeds)]
    looks += [
        (look, plan.confirmatory.seeds[:wanted])
        for look, wanted in enumerate(plan.confirmatory.looks, start=1)
        if ready >= wanted
    ]
    rows: list[Row] = []
    first, final = plan.confirmatory.looks
    for look, seeds in looks:
        part = course[course["seed"].isin(seeds)]
        if part.empty or part["layer"].nunique() < 2:
            continue
        last = part[part["epoch"] == part.groupby("seed")["epoch"].transform("max")]
        alphas = last.pivot(index="layer", columns="seed", values="alpha")
        depth = alphas.index.to_numpy(dtype=float)
        falls = -np.polyfit(depth, alphas.to_numpy(), 1)[0] * (depth[-1] - depth[0])
        parts = ((float(falls.var(ddof=1) / len(falls)), len(falls) - 1.0),) if len(falls) > 1 else ()
        estimate = Estimate(float(falls.mean()), parts, 0.0, 2)
        names = " ".join(map(str, alphas.columns))
        means = alphas.mean(axis=1)
        difference = Difference(
            (claim.system, DEPTH), "-", ALPHA, float(means.iloc[0]), float(means.iloc[-1]), np.nan, np.nan, estimate,
            np.nan, names, names, 0, 0,
        )  # fmt: skip
        error = _errors(plan.alpha, look, first / final)
        row = comparison_row(difference, PRIMARY, error) | {"claim": claim.name, "margin": claim.margin, "look": look}
        rows = [row | {"ready": ready} | ({} if look else {"verdict": "undecided" if row["verdict"] else ""})]
        if look and claim_decision(rows, claim.margin) != "undecided":
            break
    return rows


def of_seeds(records: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the records of these seeds, and of systems without a seed (a negative number)."""
    return records[records["seed"].isin(list(seeds)) | (records["seed"] < 0)]
