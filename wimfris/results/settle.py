"""How many confirmatory seeds, and how many images, each open claim needs, and the cheapest plan for all of them.

The chance of a decided verdict is predictive: the true effect is drawn around the present estimate with its present
error, and new runs are simulated with it. For planning alone, the variance between seeds is pooled over the claims,
because one to three seeds estimate it poorly or not at all. The verdicts themselves pool nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from wimfris.results.claims import Verdict
from wimfris.results.looks import information, nominal_levels
from wimfris.results.plan import Construction, Falls, Plan
from wimfris.results.statistics import POWER, Floats

BEYOND = (24, 48, 96, 192)  # seeds that no look has, to state what a claim would need
MORE_IMAGES = (2, 4, 8)  # times as many
_WORTH = 0.05  # the smallest chance of a verdict that a budget is spent on
_DRAWS = 4000


@dataclass(frozen=True)
class Need:
    """What an open claim needs for a decided verdict."""

    verdict: Verdict
    systems: tuple[str, ...]
    chances: Mapping[int, float]  # seeds of a look -> the chance that the claim is decided by then
    seeds: int | None  # the fewest that give `POWER`, at the present images; None if not even the most do
    images: tuple[int, int] | None  # where the images are the limit: seeds, and images that give `POWER`


@dataclass(frozen=True)
class SettlePlan:
    """Which look each claim is taken to, and what that costs."""

    looks: Mapping[str, int]  # claim -> seeds of each of its systems; claims that the plan leaves out are absent
    seeds: Mapping[str, int]  # system -> confirmatory seeds
    minutes: float  # of one core, for the runs that are still missing
    decided: float  # expected number of decided claims


def needs(plan: Plan, verdicts: Sequence[Verdict], side: int) -> list[Need]:
    """Return what every open claim with estimates needs, in order; one seed of each of its systems is enough."""
    open_claims = []
    for verdict in _open(plan, verdicts):
        systems = plan.systems_of(verdict.claim, side)
        if not _estimated(plan, verdict, verdicts, side):
            continue
        known = verdict.rows
        scatter = _pooled_scatter(verdicts, known[0]["metric"])
        chances = _chances(plan, verdict, known, scatter)
        enough = (n for n in plan.confirmatory.looks if chances[n] >= POWER)
        beyond = (n for n in BEYOND if _single_look(plan, verdict, known, scatter, n) >= POWER)
        seeds = next(enough, None) or next(beyond, None)
        images = None
        if seeds is None and known[0]["images"]:
            wanted = ((n, k) for k in MORE_IMAGES for n in (*plan.confirmatory.looks, *BEYOND))
            images = next(
                (
                    (n, k * int(known[0]["images"]))
                    for n, k in wanted
                    if _single_look(plan, verdict, known, scatter, n, k) >= POWER
                ),
                None,
            )
        open_claims.append(Need(verdict, tuple(systems), chances, seeds, images))
    return open_claims


def without_estimate(plan: Plan, verdicts: Sequence[Verdict], side: int) -> dict[str, str]:
    """Return the open claims that `needs` leaves out, and what each one lacks."""
    left_out = [one for one in _open(plan, verdicts) if not _estimated(plan, one, verdicts, side)]
    return {one.claim.name: _lack(plan, one, side) for one in left_out}


def _lack(plan: Plan, verdict: Verdict, side: int) -> str:
    if not _complete(plan, verdict, side):
        return verdict.reason
    one_system = isinstance(verdict.claim, Falls)
    return "it needs two seeds of its system" if one_system else "no claim has a system with two seeds"


def cheapest(
    plan: Plan,
    open_claims: Sequence[Need],
    minutes: Mapping[str, float],
    ready: Mapping[str, int],
    budget: float | None,
) -> SettlePlan:
    """Return the cheapest plan: with every claim that a look can settle, or the most decided claims for the budget.

    minutes: of one core, by system; ready: confirmatory seeds that it has; budget: in minutes of one core. Claims share
    the runs of their systems, so all combinations of looks are tried.
    """
    systems = list(dict.fromkeys(name for need in open_claims for name in need.systems))
    cost = np.array([minutes[name] for name in systems])
    there = np.array([ready.get(name, 0) for name in systems])
    uses = np.array([[name in need.systems for name in systems] for need in open_claims], dtype=int)
    choices: list[tuple[int, ...]] = []
    for need in open_claims:
        enough = next((n for n in plan.confirmatory.looks if need.chances[n] >= POWER), 0)
        worth = (n for n in plan.confirmatory.looks if need.chances[n] >= _WORTH)
        choices.append((0, *worth) if budget is not None else (enough,))
    levels = np.array(list(product(*choices)), dtype=int)  # without a claim: one empty combination
    gains = np.zeros(levels.shape)
    for column, need in enumerate(open_claims):
        for n in plan.confirmatory.looks:
            gains[levels[:, column] == n, column] = need.chances[n]
    spent = np.zeros(len(levels))
    for column in range(len(systems)):
        wanted = (levels * uses[:, column]).max(axis=1, initial=0)
        spent += cost[column] * (wanted - there[column]).clip(min=0)
    total = gains.sum(axis=1)
    allowed = np.flatnonzero(spent <= (np.inf if budget is None else budget))
    best = allowed[np.lexsort((spent[allowed], -total[allowed].round(6)))[0]]
    looks = {need.verdict.claim.name: int(n) for need, n in zip(open_claims, levels[best], strict=True) if n}
    seeds = {name: int((levels[best] * uses[:, column]).max(initial=0)) for column, name in enumerate(systems)}
    return SettlePlan(looks, {name: n for name, n in seeds.items() if n}, float(spent[best]), float(total[best]))


def smallest_budget(
    plan: Plan, open_claims: Sequence[Need], minutes: Mapping[str, float], ready: Mapping[str, int]
) -> tuple[str, float] | None:
    """Return the claim whose cheapest worthwhile look costs least, and its minutes of one core; None without one."""
    costs = {}
    for need in open_claims:
        if look := next((n for n in plan.confirmatory.looks if need.chances[n] >= _WORTH), 0):
            missing = ((name, max(look - ready.get(name, 0), 0)) for name in need.systems)
            costs[need.verdict.claim.name] = sum(minutes[name] * number for name, number in missing)
    return min(costs.items(), key=lambda item: item[1]) if costs else None


def _open(plan: Plan, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts that runs can still decide."""
    last = len(plan.confirmatory.looks)
    runs = [one for one in verdicts if not isinstance(one.claim, Construction)]
    return [one for one in runs if one.decision == "undecided" and one.look < last]


def _estimated(plan: Plan, verdict: Verdict, verdicts: Sequence[Verdict], side: int) -> bool:
    """Say whether every comparison of a claim has an estimate, and something tells the scatter over seeds."""
    rows, column = verdict.rows, "seed_variance" if isinstance(verdict.claim, Falls) else "image_variance"
    known = _complete(plan, verdict, side) and all(np.isfinite(row[column]) for row in rows)
    return known and bool(_scatters(verdicts, rows[0]["metric"]))


def _complete(plan: Plan, verdict: Verdict, side: int) -> bool:
    """Say whether every system of a claim has a run."""
    return len(verdict.rows) == max(len(plan.systems_of(verdict.claim, side)) - 1, 1)


def _pooled_scatter(verdicts: Sequence[Verdict], metric: str) -> float:
    """Return the variance between the seeds of one system, the mean over the claims' comparisons in this metric."""
    return float(np.mean(_scatters(verdicts, metric)))


def _scatters(verdicts: Sequence[Verdict], metric: str) -> list[float]:
    rows = [row for one in verdicts for row in one.rows if row["metric"] == metric]
    return [_one_system(row) for row in rows if np.isfinite(row["seed_variance"])]


def _one_system(row: Mapping[str, Any]) -> float:
    counts = [len(row[name].split()) for name in ("seeds", "rival_seeds")]
    return float(row["seed_variance"]) / (1 / counts[0] + 1 / counts[1])


def _parts(verdict: Verdict, rows: Sequence[Mapping[str, Any]], scatter: float) -> tuple[float, Floats, int]:
    """Return the variance of the seeds of a comparison at one seed each, V_image by row, and the systems compared."""
    if isinstance(verdict.claim, Falls):
        return float(rows[0]["seed_variance"]) * len(rows[0]["seeds"].split()), np.zeros(1), 1
    return 2 * scatter, np.array([row["image_variance"] for row in rows], dtype=float), 2


def _effects(rows: Sequence[Mapping[str, Any]], seed_part: float, image: Floats) -> Floats:
    """Draw true effects (draws, rows) around the present estimates."""
    counts = np.array([min(len(row["seeds"].split()), len(row["rival_seeds"].split())) for row in rows])
    error = np.sqrt(seed_part / counts + image)
    estimates = np.array([row["difference"] for row in rows], dtype=float)
    return estimates + error * np.random.default_rng(0).standard_normal((_DRAWS, len(rows)))


def _decided(estimates: Floats, half: Floats, half_any: Floats, margin: float) -> NDArray[np.bool_]:
    """Return which draws (draws,) are decided, by the rule of `verdicts.decide`."""
    low, low_any, high_any = estimates - half, estimates - half_any, estimates + half_any
    inside = (low_any > -margin) & (high_any < margin)
    decided = (high_any < 0).any(-1) | (low > 0).all(-1) | inside.any(-1)
    return np.asarray(decided)


def _half(seed_part: float, image: Floats, seeds: int, systems: int, images: int, error: float) -> Floats:
    squares = special.stdtrit(systems * (seeds - 1.0), error / 2) ** 2 * seed_part / seeds
    return np.asarray(np.sqrt(squares + special.stdtrit(max(images - 1.0, 1.0), error / 2) ** 2 * image))


def _chances(plan: Plan, verdict: Verdict, rows: Sequence[Mapping[str, Any]], scatter: float) -> dict[int, float]:
    """Return the chance that a claim is decided by each look; 0 for a look that was taken and left it open."""
    seed_part, image, systems = _parts(verdict, rows, scatter)
    first, final = plan.confirmatory.looks
    rng = np.random.default_rng(1)
    true = _effects(rows, seed_part, image)
    shared = np.sqrt(image) * rng.standard_normal(true.shape)
    halves = [np.sqrt(seed_part / n) * rng.standard_normal(true.shape) for n in (first, final - first)]
    if verdict.look:  # the error of the first look's estimate is part of the last one's
        error = np.array([row["difference"] for row in rows], dtype=float) - true
        shared = error * image / np.maximum(seed_part / first + image, np.finfo(float).tiny)
        halves[0] = error - shared
    estimates = {first: true + shared + halves[0]}
    estimates[final] = true + shared + (first * halves[0] + (final - first) * halves[1]) / final
    share = information(seed_part / first, float(image.mean()), first, final)
    decided = np.zeros(_DRAWS, dtype=bool)
    chances = {}
    for number, seeds in enumerate((first, final)):
        errors = [nominal_levels(plan.alpha / k, share)[number] for k in (1, len(rows))]
        half, half_any = (_half(seed_part, image, seeds, systems, int(rows[0]["images"]), one) for one in errors)
        if number >= verdict.look:
            decided |= _decided(estimates[seeds], half, half_any, verdict.margin)
        chances[seeds] = float(decided.mean())
    return chances


def _single_look(
    plan: Plan, verdict: Verdict, rows: Sequence[Mapping[str, Any]], scatter: float, seeds: int, times: int = 1
) -> float:
    """Return the chance that a claim is decided by one look at these seeds, with `times` as many images."""
    seed_part, image, systems = _parts(verdict, rows, scatter)
    new = image / times
    noise = np.sqrt(seed_part / seeds + new) * np.random.default_rng(1).standard_normal((_DRAWS, len(rows)))
    errors = (plan.alpha, plan.alpha / len(rows))
    half, half_any = (_half(seed_part, new, seeds, systems, times * int(rows[0]["images"]), one) for one in errors)
    return float(_decided(_effects(rows, seed_part, image) + noise, half, half_any, verdict.margin).mean())
