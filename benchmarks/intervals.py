"""Which variance over seeds gives intervals that cover the truth? Simulates whole claims with known effects.

    python benchmarks/intervals.py     # 9 settings x 7 variances x 4 numbers of seeds: ten minutes on one core

The systems and comparisons are those of reports/claims.yaml. A run's score on an image is the sum of effects of its
system, its seed, system x image and seed x image, in points of mIoU. Each difference gets the interval of
docs/statistics.md, half width^2 = t_nu^2 V_seed + t_(I-1)^2 V_image, with V_seed and nu by one of these candidates:

* pooled: one variance for all systems;
* welch: each system's own variance, nu by Welch and Satterthwaite;
* two apart: the same, but a system with two seeds is a component of its own, with its own t quantile (in use);
* own quantiles: every system is a component of its own (Banerjee 1960);
* moderated: own variances, shrunk towards a common one (Smyth 2004, limma's eBayes);
* robust: the same, with less shrinkage for outliers (Phipson et al. 2016, limma's robust eBayes);
* outliers: pooled, but a system whose variance is an outlier (F test, Bonferroni) has its own.

Columns of coverage.csv, shares in percent: coverage and worst (of the comparison that is covered least) of 95%
intervals, their mean width in points, and the Monte-Carlo error of a single comparison's coverage; claim_coverage and
claim_width at level 1 - 0.05 / claims. Rows with seeds "6, 12" have two looks: false_null is the share of worlds
without any effect in which a claim is called reproduced or contradicted, false_margin the share of worlds in which
every effect is exactly the margin and a claim is called contradicted, smaller or without effect.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from measured import write
from numpy.typing import NDArray
from scipy import special

from wimfris.results.looks import nominal_levels

HERE = Path(__file__).parent
Floats = NDArray[np.float64]
IMAGES, SEEDS, CHUNK = 250, 12, 100
SYSTEM_IMAGE, SEED_IMAGE = 3.1, 3.0  # SD in points of a system's, and of a run's, effect on an image
LEVEL, ALPHA = 0.95, 0.05
OBSERVED = (1.6, 0.5, 1.4, 1.5, 2.4, 0.3, 1.6, 1.3, 0.2, 1.4, 1.7, 0.3, 0.6, 0.4, 0.1, 0.6, 0.2, 1.4, 0.3, 1.3, 1.4)
"""SDs of mIoU over 2 or 3 seeds at scale tiny, in the order of the claims' systems."""

Parts = list[tuple[Floats, Floats]]
Candidate = Callable[[Floats, NDArray[np.int_]], tuple[Floats, Floats]]
"""(variances (worlds, systems), seeds (systems,)) -> variance and degrees of freedom of each system."""


# --- candidates -------------------------------------------------------------------------------------------------------


def pooled(variances: Floats, seeds: NDArray[np.int_]) -> tuple[Floats, Floats]:
    freedom = seeds - 1
    common = (variances * freedom).sum(-1, keepdims=True) / freedom.sum()
    return np.broadcast_to(common, variances.shape), np.full(variances.shape, np.inf)


def welch(variances: Floats, seeds: NDArray[np.int_]) -> tuple[Floats, Floats]:
    return variances, np.broadcast_to((seeds - 1.0), variances.shape)


def moderated(variances: Floats, seeds: NDArray[np.int_]) -> tuple[Floats, Floats]:
    freedom = seeds - 1.0
    logs = _logs(variances, freedom)
    prior_df, location = _prior(logs.mean(-1), logs.var(-1, ddof=1) - special.polygamma(1, freedom / 2).mean())
    return _shrunk(variances, freedom, prior_df[:, None], location[:, None])


def robust(variances: Floats, seeds: NDArray[np.int_]) -> tuple[Floats, Floats]:
    """Fit the prior to winsorised variances, and shrink outliers less, as limma's fitFDistRobustly does."""
    freedom = seeds - 1.0
    logs = _logs(variances, freedom)
    low, high = np.quantile(logs, [0.05, 0.9], axis=-1, keepdims=True)
    cut = np.clip(logs, low, high)
    grid, means, spreads = _winsorised(float(np.median(freedom)))
    spread = cut.var(-1, ddof=1)
    log_df = np.interp(-spread, -spreads, np.log(grid))  # the spread falls with the prior's freedom
    prior_df = np.where(spread <= spreads[-1], np.inf, np.exp(log_df))
    centre = cut.mean(-1) - np.interp(np.minimum(log_df, np.log(grid[-1])), np.log(grid), means)
    location = np.exp(centre)
    statistic = variances / location[:, None]
    finite = np.where(np.isinf(prior_df), freedom.sum(), prior_df)[:, None]
    tail = np.clip(special.fdtrc(freedom, finite, statistic), 1e-300, 1)
    order = np.argsort(tail, axis=-1)
    ranks = np.argsort(order, axis=-1)  # 0: the smallest tail, the largest variance
    regular = np.minimum(tail / ((ranks + 0.5) / statistic.shape[-1]), 1)
    # An outlier's prior is such that the largest variance is the median of its distribution.
    trial = np.exp(np.linspace(np.log(0.05), np.log(1e3), 80))
    medians = special.fdtri(np.median(freedom), trial, 0.5)
    largest = np.take_along_axis(statistic, order[:, :1], -1)
    outlier_df = np.interp(-np.log(largest), -np.log(medians), trial)
    outlier_df = np.where(np.isinf(prior_df)[:, None], 0.0, np.minimum(outlier_df, finite))
    own = regular * finite + (1 - regular) * outlier_df
    ascending = np.maximum.accumulate(np.take_along_axis(own, order, -1), axis=-1)
    shrunk = np.take_along_axis(ascending, ranks, -1)
    shrunk = np.where((regular >= 1) & np.isinf(prior_df)[:, None], np.inf, shrunk)
    return _shrunk(variances, freedom, shrunk, location[:, None])


def outliers(variances: Floats, seeds: NDArray[np.int_]) -> tuple[Floats, Floats]:
    freedom = seeds - 1.0
    squares = variances * freedom
    others = (squares.sum(-1, keepdims=True) - squares) / (freedom.sum() - freedom)
    p = special.fdtrc(freedom, freedom.sum() - freedom, variances / np.maximum(others, 1e-12))
    apart = p < ALPHA / variances.shape[-1]
    inside = np.where(apart, 0, freedom)
    common = (variances * inside).sum(-1, keepdims=True) / inside.sum(-1, keepdims=True)
    return np.where(apart, variances, common), np.where(apart, freedom, np.inf)


def _logs(variances: Floats, freedom: Floats) -> Floats:
    half = freedom / 2
    return np.log(np.maximum(variances, 1e-12)) - special.digamma(half) + np.log(half)


def _prior(mean: Floats, excess: Floats) -> tuple[Floats, Floats]:
    """Return the prior's degrees of freedom and location from the mean and excess variance of the log variances."""
    grid = np.exp(np.linspace(np.log(0.02), np.log(1e4), 4000))
    half = np.exp(np.interp(-np.maximum(excess, 1e-9), -special.polygamma(1, grid), np.log(grid)))
    df = np.where(excess > special.polygamma(1, grid[-1]), 2 * half, np.inf)
    return df, np.where(np.isinf(df), np.exp(mean), np.exp(mean + special.digamma(half) - np.log(half)))


@functools.cache
def _winsorised(freedom: float) -> tuple[Floats, Floats, Floats]:
    """Return prior degrees of freedom and the mean and variance of a winsorised log F variable of them."""
    grid = np.exp(np.linspace(np.log(0.5), np.log(1e4), 60))
    rng = np.random.default_rng(0)
    top = np.log(rng.chisquare(freedom, 200_000) / freedom)
    shift = special.digamma(freedom / 2) - np.log(freedom / 2)
    means, spreads = [], []
    for df in grid:
        values = top - np.log(rng.chisquare(df, top.size) / df) - shift
        values = np.clip(values, *np.quantile(values, [0.05, 0.9]))
        means.append(values.mean())
        spreads.append(values.var())
    return grid, np.array(means), np.minimum.accumulate(np.array(spreads))


def _shrunk(variances: Floats, freedom: Floats, prior_df: Floats, location: Floats) -> tuple[Floats, Floats]:
    finite = np.where(np.isinf(prior_df), 1.0, prior_df)
    mixed = (finite * location + freedom * variances) / (finite + freedom)
    shape = np.broadcast_shapes(variances.shape, prior_df.shape)
    infinite = np.broadcast_to(np.isinf(prior_df), shape)
    return np.where(infinite, location, mixed), np.where(infinite, np.inf, finite + freedom)


CANDIDATES: dict[str, Candidate] = {
    "pooled": pooled,
    "welch": welch,
    "two apart": welch,
    "own quantiles": welch,
    "moderated": moderated,
    "robust": robust,
    "outliers": outliers,
}


# --- worlds -----------------------------------------------------------------------------------------------------------


class Claims:
    """The comparisons of claims.yaml: pairs of systems, and the claim, rivals and margin of each."""

    def __init__(self) -> None:
        content = yaml.safe_load((HERE.parent / "reports" / "claims.yaml").read_text(encoding="utf-8"))
        rows = content["claims"] if isinstance(content, dict) else content
        smallest = content["smallest_effect"] if isinstance(content, dict) else 1.0
        tested = [row for row in rows if row["kind"] == "better"]
        self.names = list(dict.fromkeys(name for row in tested for name in (row["system"], *row["rivals"])))
        self.count = sum(row["kind"] != "construction" for row in rows)
        pairs = [(row["system"], rival) for row in tested for rival in row["rivals"]]
        self.pairs = np.array([[self.names.index(name) for name in pair] for pair in pairs])
        self.claim = np.repeat(np.arange(len(tested)), [len(row["rivals"]) for row in tested])
        self.rivals = np.bincount(self.claim)[self.claim]
        self.margin = np.array([row.get("margin", smallest) for row in tested])[self.claim]

    def any(self, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for each claim whether any of its comparisons is true, (worlds, claims)."""
        return np.logical_or.reduceat(values, np.unique(self.claim, return_index=True)[1], axis=-1)


def settings(systems: int) -> dict[str, dict[str, object]]:
    one = np.ones(systems)
    observed = np.resize(np.array(OBSERVED), systems)
    equal, baseline, variant = 1.3 * one, 0.6 * one, 0.6 * one
    baseline[0], variant[1] = 2.4, 3.0
    return {
        "equal": {"sd": equal},
        "as observed": {"sd": observed},
        "baseline 2.4 among 0.6": {"sd": baseline},
        "a variant 3.0 among 0.6": {"sd": variant},
        "seed numbers correlated 0.5": {"sd": equal, "correlation": 0.5},
        "none between seeds": {"sd": 0 * one},
        "seeds x images": {"sd": 0.6 * one, "seed_image": 12.0},
        "t3 seeds": {"sd": equal, "shape": "t3"},
        "skewed seeds": {"sd": equal, "shape": "skewed"},
    }


def draw(
    rng: np.random.Generator,
    worlds: int,
    sd: Floats,
    correlation: float = 0.0,
    seed_image: float = SEED_IMAGE,
    shape: str = "normal",
) -> tuple[Floats, Floats]:
    """Return the scores of runs (worlds, systems, SEEDS), and those by image of the first 2, 3, 6 and 12 seeds."""
    systems = len(sd)
    draws = {
        "normal": lambda size: rng.standard_normal(size),
        "t3": lambda size: rng.standard_t(3, size) / np.sqrt(3),
        "skewed": lambda size: 1 - rng.standard_exponential(size),  # a few bad runs
    }[shape]
    seed = np.sqrt(1 - correlation) * draws((worlds, systems, SEEDS))
    seed += np.sqrt(correlation) * draws((worlds, 1, SEEDS))
    runs = sd[:, None] * seed
    by_image = seed_image * rng.standard_normal((worlds, systems, SEEDS, IMAGES), dtype=np.float32)
    system_image = SYSTEM_IMAGE * rng.standard_normal((worlds, systems, IMAGES), dtype=np.float32)
    runs = runs + by_image.mean(-1) + system_image.mean(-1)[..., None]
    images = np.stack([system_image + by_image[:, :, :seeds].mean(2) for seeds in (2, 3, 6, 12)], axis=2)
    return runs, images


def estimates(runs: Floats, images: Floats, seeds: NDArray[np.int_], pairs: NDArray[np.int_]) -> dict[str, Floats]:
    """Return the difference of each pair, and the variances of its seeds and its images."""
    place = {2: 0, 3: 1, 6: 2, 12: 3}
    means = np.stack([runs[:, v, :n].mean(-1) for v, n in enumerate(seeds)], axis=-1)
    variances = np.stack([runs[:, v, :n].var(-1, ddof=1) for v, n in enumerate(seeds)], axis=-1)
    by_image = np.stack([images[:, v, place[int(n)]] for v, n in enumerate(seeds)], axis=1)
    apart = by_image[:, pairs[:, 0]] - by_image[:, pairs[:, 1]]
    return {
        "difference": means[:, pairs[:, 0]] - means[:, pairs[:, 1]],
        "variances": variances,
        "image": apart.var(-1, ddof=1) / IMAGES,
    }


def seed_parts(label: str, world: dict[str, Floats], seeds: NDArray[np.int_], pairs: NDArray[np.int_]) -> Parts:
    """Return the components of V_seed of each pair: variance and degrees of freedom of each."""
    variances, freedom = CANDIDATES[label](world["variances"], seeds)
    freedom = np.minimum(freedom, (seeds - 1).sum())[:, pairs]
    parts = variances[:, pairs] / seeds[pairs]
    if label == "own quantiles" or (label == "two apart" and seeds.min() == 2):
        return [(parts[..., side], freedom[..., side]) for side in (0, 1)]
    total = parts.sum(-1)
    return [(total, total**2 / np.maximum((parts**2 / freedom).sum(-1), 1e-300))]


def half_width(parts: Parts, image: Floats, alpha: Floats | float) -> Floats:
    alpha = np.broadcast_to(alpha, image.shape)
    squares = [special.stdtrit(np.maximum(df, 1.0), alpha / 2) ** 2 * variance for variance, df in parts]
    return np.sqrt(sum(squares) + special.stdtrit(IMAGES - 1.0, alpha / 2) ** 2 * image)


# --- what is counted --------------------------------------------------------------------------------------------------


@functools.cache
def levels(alpha: float) -> tuple[Floats, Floats, Floats]:
    """Return shares of information, and the two looks' nominal levels at them."""
    shares = np.linspace(0.3, 0.99, 150)
    first, second = np.array([nominal_levels(alpha, float(share)) for share in shares]).T
    return shares, first, second


def false_claims(claims: Claims, looks: list[tuple[Floats, Parts, Floats]], truth: str) -> NDArray[np.bool_]:
    """Return for each world whether any claim gets a false verdict at either look; see the module.

    looks: difference, components of V_seed, and V_image at each.
    """
    _, first, image = looks[0]
    seed_part = sum(variance for variance, _ in first)
    share = np.clip((seed_part / 2 + image) / np.maximum(seed_part + image, 1e-12), 0.3, 0.99)
    false = np.zeros((len(share), claims.claim.max() + 1), dtype=bool)
    open_ = ~false
    for number, (difference, parts, image) in enumerate(looks):
        ends = []
        for alpha in (np.full(len(claims.rivals), ALPHA / claims.count), ALPHA / claims.count / claims.rivals):
            tested = np.empty_like(share)
            for value in np.unique(alpha):
                shares, *both = levels(float(value))
                here = alpha == value
                tested[:, here] = np.interp(share[:, here], shares, both[number])
            half = half_width(parts, image, tested)
            shift = 0.0 if truth == "null" else claims.margin
            ends.append((difference + shift - half, difference + shift + half))
        (low, _), (low_any, high_any) = ends
        above = ~claims.any(low <= 0)
        below = claims.any(high_any < 0)
        small = claims.any(high_any < claims.margin)
        flat = claims.any((low_any > -claims.margin) & (high_any < claims.margin))
        wrong = above | below if truth == "null" else below | (above & small) | (~above & flat)
        decided = above | below | flat
        false |= open_ & wrong
        open_ &= ~decided
    return false.any(-1)


def simulate(claims: Claims, name: str, setting: dict[str, object], worlds: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(sum(map(ord, name)))
    systems = len(claims.names)
    star = np.stack([np.zeros(systems - 1, dtype=int), np.arange(1, systems)], axis=-1)
    plans = {str(n): np.full(systems, n) for n in (3, 6, 12)}
    plans["3 against 2"] = np.array([3] + [2] * (systems - 1))
    covered: dict[tuple[str, str], list[NDArray[np.bool_]]] = {}
    covered_claim: dict[tuple[str, str], list[float]] = {}
    widths: dict[tuple[str, str], list[Floats]] = {}
    false: dict[tuple[str, str], list[NDArray[np.bool_]]] = {}
    for _ in range(worlds // CHUNK):
        runs, images = draw(rng, CHUNK, **setting)  # type: ignore[arg-type]
        for plan, seeds in plans.items():
            world = estimates(runs, images, seeds, star)
            for label in CANDIDATES:
                components = seed_parts(label, world, seeds, star)
                halves = [half_width(components, world["image"], a) for a in (1 - LEVEL, ALPHA / claims.count)]
                inside = [np.abs(world["difference"]) <= half for half in halves]
                covered.setdefault((plan, label), []).append(inside[0])
                covered_claim.setdefault((plan, label), []).append(float(inside[1].mean()))
                widths.setdefault((plan, label), []).append(np.array([2 * half.mean() for half in halves]))
        worlds_at = [estimates(runs, images, np.full(systems, n), claims.pairs) for n in (6, 12)]
        for label in CANDIDATES:
            looks = []
            for n, world in zip((6, 12), worlds_at, strict=True):
                components = seed_parts(label, world, np.full(systems, n), claims.pairs)
                looks.append((world["difference"], components, world["image"]))
            for truth in ("null", "margin"):
                false.setdefault((truth, label), []).append(false_claims(claims, looks, truth))
    rows: list[dict[str, object]] = []
    for (plan, label), parts in covered.items():
        share = np.concatenate(parts).mean(0)
        width, claim_width = np.mean(widths[plan, label], axis=0)
        rows.append(
            {
                "setting": name,
                "seeds": plan,
                "variance": label,
                "coverage": f"{100 * share.mean():.1f}",
                "worst": f"{100 * share.min():.1f}",
                "error": f"{100 * np.sqrt(LEVEL * (1 - LEVEL) / worlds):.1f}",
                "width": f"{width:.2f}",
                "claim_coverage": f"{100 * np.mean(covered_claim[plan, label]):.2f}",
                "claim_width": f"{claim_width:.2f}",
            }
        )
    for label in CANDIDATES:
        row = {"setting": name, "seeds": "6, 12", "variance": label}
        row["error"] = f"{100 * np.sqrt(ALPHA * (1 - ALPHA) / worlds):.1f}"
        for truth in ("null", "margin"):
            row[f"false_{truth}"] = f"{100 * np.concatenate(false[truth, label]).mean():.1f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=4000, help="simulated worlds in each setting")
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv")
    options = parser.parse_args()
    claims, rows = Claims(), []
    for name, setting in settings(len(claims.names)).items():
        rows += simulate(claims, name, setting, options.worlds)
        print(pd.DataFrame([row for row in rows if row["setting"] == name]).to_string(index=False), flush=True)
    columns = dict.fromkeys(key for row in rows for key in row)
    write([{key: row.get(key, "") for key in columns} for row in rows], options.out, options)


if __name__ == "__main__":
    main()
