"""Controls of the harness itself: do the comparisons find what is there, and nothing where nothing is?

A/A. Variants of one function differ by chance alone, as do two halves of the seeds of one variant. The interval for any
seed must separate such a pair no more often than its level allows.

Planted damage. A simulated run is the mean run of `full` plus the deviation of a run of any system from the mean of its
own seeds, drawn with a random sign and scaled by sqrt(S / (S - 1)) for S seeds. It keeps the scatter between seeds,
images and sentences. In a damaged run each sentence fails (IoU 0) with a probability that costs the planted points on
average. Damaged and undamaged runs are compared as any two systems are, at the levels of both tiers. How often the
damage should be detected is the power of `wimfris.results.statistics` at the mean variances and degrees of freedom.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy import special

from wimfris.results.comparisons import UNADJUSTED, Comparisons
from wimfris.results.differences import Pair, compare
from wimfris.results.figures import saved_figure
from wimfris.results.formats import DASH, Section, interval, level_text, percent
from wimfris.results.intervals import draw_interval, padded, reach
from wimfris.results.looks import information, nominal_levels
from wimfris.results.measured import Inputs, Report
from wimfris.results.plan import METRIC, SPLIT, Plan, read_plan
from wimfris.results.published import built_in_note
from wimfris.results.scores import Scores, read_scores
from wimfris.results.statistics import Estimate, Floats, estimate, linearise
from wimfris.results.studies import control_pairs
from wimfris.settings.params import Params

WORLDS = 1000  # simulated experiments with planted damage
HALVES = 200  # random halvings of the seeds of a function
NETWORKS, VARIANTS, SEEDS = "one network and another, these seeds", "control and original, any seed", "halves of seeds"


def controls_report(inputs: Inputs, sizes: Sequence[float]) -> Report:
    """Show the A/A comparisons, how often they separate, and how often planted damage is detected; sizes: in points."""
    assert inputs.comparisons is not None
    plan, records = read_plan(), inputs.records[inputs.records["split"] == SPLIT]
    systems = ["full", *sorted(set(records["variant"].unique()) - {"full"})]
    scores = read_scores(records, systems, SPLIT)
    pairs = same_function_table(records, inputs.comparisons, control_pairs(inputs.params))
    rates = rates_table(pairs, halved(scores, _one_function_each(systems, inputs.params)))
    damage = damage_table(scores, plan, [size / 100 for size in sizes])
    place = f"{inputs.settings.data.name}, scale {inputs.settings.scale}, split {SPLIT}"
    shown = [_pairs_section(pairs, place), _rates_section(rates, place), _damage_section(damage, place)]
    shown = [section for section in shown if len(section.cells)]
    tables = {"same function": pairs, "separated": rates, "planted damage": damage}
    frame = pd.concat([table.assign(control=name) for name, table in tables.items()], ignore_index=True)
    frame.insert(0, "control", frame.pop("control"))
    caveat = built_in_note(inputs.settings.data.name, inputs.settings.scale)
    return Report(shown, frame, lambda path: draw(pairs, damage, path), _summary(rates, damage) + caveat)


# --- the same function ------------------------------------------------------------------------------------------------


def same_function_table(records: pd.DataFrame, comparisons: Comparisons, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Return the comparisons of these pairs: for each common seed alone, then as reports/comparisons states it.

    Columns: kind (`NETWORKS` or `VARIANTS`), comparison, seeds, difference, these_low, these_high, low, high, separated
    (by the interval for these seeds where one seed is compared, else by that for any seed; NaN without an interval).
    """
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        quoted, name = comparisons.quote(*pair), " - ".join(pair)
        if quoted is None:
            continue
        seeds = [set(records.loc[records["variant"] == one, "seed"]) for one in pair]
        for seed in sorted(seeds[0] & seeds[1]):
            one = compare(records[records["seed"] == seed], [pair], SPLIT)[0]
            ends = {"these_low": one.these_low, "these_high": one.these_high}
            rows.append({"kind": NETWORKS, "comparison": name, "seeds": str(seed)} | ends)
            rows[-1] |= {"difference": one.any_seed.difference, "separated": _apart(one.these_low, one.these_high)}
        both = " / ".join(dict.fromkeys((quoted["seeds"], quoted["rival_seeds"])))
        numbers = {key: quoted[key] for key in ("difference", "these_low", "these_high", "low", "high")}
        rows.append({"kind": VARIANTS, "comparison": name, "seeds": both} | numbers)
        rows[-1]["separated"] = _apart(quoted["low"], quoted["high"])
    columns = ["kind", "comparison", "seeds", "difference", "these_low", "these_high", "low", "high", "separated"]
    return pd.DataFrame(rows, columns=columns)


def _apart(low: float, high: float) -> float:
    """Return 1 where an interval excludes 0, 0 where it does not, NaN where it is unknown."""
    return float("nan") if np.isnan(low) else float(low > 0 or high < 0)


def _one_function_each(systems: Sequence[str], params: Params) -> list[list[int]]:
    """Return the places of the systems by function, the original first."""
    original = {name: group[0] for group in params.same_function() for name in group}
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(systems):
        groups.setdefault(original.get(name, name), []).append(place)
    return list(groups.values())


def halved(scores: Scores, functions: Sequence[Sequence[int]]) -> list[float]:
    """Return for each function with four seeds or more how often random halves of its seeds are separated.

    functions: places of systems. Of several runs with one seed the first counts: the others may depend on it.
    """
    values, rng = linearise(*scores.ratios()[METRIC]), np.random.default_rng(0)
    shares = []
    for places in functions:
        present = scores.present[list(places)]
        own = [values[places[int(present[:, k].argmax())], k] for k in np.flatnonzero(present.any(axis=0))]
        if len(own) < 4:
            continue
        runs, apart = np.array(own), []
        for _ in range(HALVES):
            order = rng.permutation(len(runs))
            apart.append(_separated(estimate(*np.split(runs[order], [len(runs) // 2])), UNADJUSTED) != 0)
        shares.append(float(np.mean(apart)))
    return shares


def _separated(one: Estimate, error: float) -> int:
    """Return 1 if the interval of level 1 - error lies above 0, -1 if below, else 0."""
    return int(np.sign(one.difference)) if abs(one.difference) > one.half_width(error) else 0


def rates_table(pairs: pd.DataFrame, halves: Sequence[float]) -> pd.DataFrame:
    """Return how often A/A comparisons are separated, a row per kind: comparisons, separated (a sum), share, and its
    95% binomial interval (Clopper and Pearson), low and high. The halves of one function count as one comparison.
    """
    rows = []
    for kind in (NETWORKS, VARIANTS, SEEDS):
        values = pairs.loc[pairs["kind"] == kind, "separated"].dropna() if kind != SEEDS else np.array(halves)
        n, k = len(values), float(np.sum(values))
        low = special.betaincinv(k, n - k + 1, 0.025) if k > 0 else 0.0
        high = special.betaincinv(k + 1, n - k, 0.975) if k < n else 1.0
        rows.append({"kind": kind, "comparisons": n, "separated": k, "share": k / n if n else np.nan})
        rows[-1] |= {"low": low if n else np.nan, "high": high if n else np.nan}
    return pd.DataFrame(rows)


# --- planted damage ---------------------------------------------------------------------------------------------------


def damage_table(scores: Scores, plan: Plan, sizes: Sequence[float]) -> pd.DataFrame:
    """Return how often planted damage is detected: a row per test and size, 0 among them; empty if no system has two
    seeds.

    The first system of `scores` is damaged; sizes: fractions of mIoU. Columns: test, seeds, error (one minus the level
    of its interval), size, detected (share of `WORLDS` whose interval excludes 0), wrong (share above 0), monte_carlo
    (standard error of detected), expected (the power), difference (the mean).
    """
    starts, images = scores.starts, scores.starts.size
    sentences = np.add.reduceat(np.ones(scores.iou.shape[-1]), starts)
    mean, pool = scores.iou[0, scores.present[0]].mean(axis=0), _deviations(scores)
    if not len(pool) or images < 2:
        return pd.DataFrame(columns=["test", "seeds", "error", "size", "detected", "wrong", "monte_carlo", "expected"])
    counts = (len(plan.exploratory.seeds), *plan.confirmatory.looks)
    sizes, rng = (0.0, *sizes), np.random.default_rng(0)
    worlds: dict[tuple[int, float], list[Estimate]] = {(n, size): [] for n in counts for size in sizes}
    for _ in range(WORLDS):
        shape = (2, max(counts))
        signs = rng.choice([-1.0, 1.0], shape)[..., None]
        iou = mean + signs * pool[rng.integers(len(pool), size=shape)]
        luck = rng.random(iou[0].shape)
        whole = linearise(np.add.reduceat(iou[1], starts, axis=-1), sentences)
        for size in sizes:
            damaged = np.where(luck < size / mean.mean(), 0.0, iou[0])
            values = linearise(np.add.reduceat(damaged, starts, axis=-1), sentences)
            for n in counts:
                worlds[n, size].append(estimate(values[:n], whole[:n]))
    typical = {key: _typical(own, images) for key, own in worlds.items()}
    first = typical[counts[1], 0.0]
    share = information(first.seed_variance, first.image_variance, *plan.confirmatory.looks)
    errors = (UNADJUSTED, *nominal_levels(plan.alpha, share))
    rows = []
    for test, n, error in zip(
        ("exploratory, alone", "claim, first look", "claim, last look"), counts, errors, strict=True
    ):
        for size in sizes:
            signs = np.array([_separated(one, error) for one in worlds[n, size]])
            detected = float((signs != 0).mean())
            row = {"test": test, "seeds": n, "error": error, "size": size, "detected": detected}
            row |= {"wrong": float((signs > 0).mean()), "monte_carlo": np.sqrt(detected * (1 - detected) / WORLDS)}
            row |= {"expected": typical[n, size].power(size, error)}
            rows.append(row | {"difference": float(np.mean([one.difference for one in worlds[n, size]]))})
    return pd.DataFrame(rows)


def _deviations(scores: Scores) -> Floats:
    """Return how the runs of every system with two seeds or more deviate from its mean, (runs, sentences)."""
    parts = [np.empty((0, scores.iou.shape[-1]))]
    for runs, present in zip(scores.iou, scores.present, strict=True):
        own, n = runs[present], int(present.sum())
        if n > 1:
            parts.append((own - own.mean(axis=0)) * np.sqrt(n / (n - 1)))
    return np.concatenate(parts)


def _typical(worlds: Sequence[Estimate], images: int) -> Estimate:
    """Return an estimate with the mean variances and degrees of freedom of these."""
    parts = np.mean([one.seed_parts for one in worlds], axis=0)
    image_variance = float(np.mean([one.image_variance for one in worlds]))
    return Estimate(0.0, tuple((float(variance), float(df)) for variance, df in parts), image_variance, images)


# --- as it is shown ---------------------------------------------------------------------------------------------------


def _pairs_section(pairs: pd.DataFrame, place: str) -> Section:
    cells = pairs[["comparison", "seeds"]].copy()
    cells["diff"] = percent(pairs["difference"], "+")
    for name, ends in (("these seeds", ("these_low", "these_high")), ("any seed", ("low", "high"))):
        cells[name] = [interval(*both) for both in zip(*(100 * pairs[end].astype(float) for end in ends), strict=True)]
    cells["separated"] = pairs["separated"].map({0.0: "no", 1.0: "yes"}).fillna(DASH)
    note = (
        "Each pair computes one function, so it differs by chance. Points of mIoU; 95% intervals, which count in no "
        "family and give no verdict. A row of one seed compares two networks, by the interval for these seeds."
    )
    return Section(f"The same function under two names: {place}", note, cells, left=("comparison", "seeds"), guide=True)


def _rates_section(rates: pd.DataFrame, place: str) -> Section:
    cells = pd.DataFrame({"compared": rates["kind"], "comparisons": rates["comparisons"].astype(str)})
    cells["separated"] = [f"{value:g}" if value == round(value) else f"{value:.1f}" for value in rates["separated"]]
    cells["share"] = percent(rates["share"])
    cells["95% interval"] = [
        interval(*both, form=".1f") for both in zip(100 * rates["low"], 100 * rates["high"], strict=True)
    ]
    cells["nominal"] = [DASH if kind == NETWORKS else f"{100 * UNADJUSTED:.1f}" for kind in rates["kind"]]
    note = (
        "Percent, with the binomial interval of Clopper and Pearson. Two networks of one function are two networks: "
        "the interval for these seeds may separate them, and no verdict rests on it. Halves of seeds need four seeds. "
        f"{HALVES} halvings of one function count as one comparison, and its number separated is their mean."
    )
    return Section(
        f"How often one function is separated from itself: {place}", note, cells, left=("compared",), guide=True
    )


def _damage_section(damage: pd.DataFrame, place: str) -> Section:
    cells = pd.DataFrame({"test": damage["test"], "seeds": damage["seeds"].astype(str)})
    cells["level"] = [level_text(error).removesuffix("%") for error in damage["error"]]
    cells["damage"] = percent(damage["size"])
    for name, column in (("detected", "detected"), ("± (Monte Carlo)", "monte_carlo"), ("should be", "expected")):
        cells[name] = percent(damage[column].astype(float))
    cells["wrong way"] = percent(damage["wrong"].astype(float))
    note = (
        f"Damage in points of mIoU, the rest in percent, of {WORLDS} simulated experiments. Detected: the interval for "
        "any seed excludes 0. Should be: the level where nothing is planted, else the power that tables state. Wrong "
        "way: the damaged system is called higher. With few seeds the interval covers more than its level, so less is "
        "detected than the power says."
    )
    return Section(f"Planted damage: {place}", note, cells, left=("test",), guide=True)


def _summary(rates: pd.DataFrame, damage: pd.DataFrame) -> str:
    """Return what the controls show, as Markdown."""
    by_kind = rates.set_index("kind")
    pairs, halves = by_kind.loc[VARIANTS], by_kind.loc[SEEDS]
    lines = []
    if pairs["comparisons"]:
        lines.append(
            f"The interval for any seed separates {pairs['separated']:.0f} of {pairs['comparisons']:.0f} controls from "
            "the variant whose function they compute."
        )
    else:
        lines.append("No control has two seeds yet.")
    if halves["comparisons"]:
        lines.append(
            f"The interval for any seed separates random halves of one system's seeds in {100 * halves['share']:.1f}% "
            f"of the halvings ({HALVES} halvings, systems: {halves['comparisons']:.0f}). At most "
            f"{100 * UNADJUSTED:.0f}% is allowed."
        )
    if len(damage):
        gaps = 100 * (damage["detected"] - damage["expected"]).astype(float)
        nothing = damage.loc[damage["size"] == 0, "detected"].iloc[0]
        lines.append(
            f"Of {WORLDS} simulated experiments without damage the exploratory test separates {100 * nothing:.1f}%. "
            f"Planted damage is detected at most {max(gaps.max(), 0):.1f} percentage points more often, and at most "
            f"{max(-gaps.min(), 0):.1f} less often, than the stated power."
        )
    return " ".join(lines)


def draw(pairs: pd.DataFrame, damage: pd.DataFrame, path: Path) -> None:
    """Draw the A/A differences with their intervals, and how often planted damage is detected, to a PNG."""
    with saved_figure(path, (7.2, 3.9)) as figure:
        left, right = figure.subplots(1, 2)
        _draw_pairs(pairs, left)
        _draw_damage(damage, right)


def _draw_pairs(pairs: pd.DataFrame, axes: Axes) -> None:
    points = 100 * pairs[["difference", "these_low", "these_high", "low", "high"]].astype(float)
    ends = reach(points.iloc[:, :3].to_numpy(), points.iloc[:, 3:].to_numpy())
    for height, row in enumerate(points.to_dict("records")):
        for prefix, width in (("", 1.0), ("these_", 3.5)):
            draw_interval(axes, height, row[f"{prefix}low"], row[f"{prefix}high"], ends, color="0.35", linewidth=width)
        axes.plot(row["difference"], height, "o", color="0.35", markersize=4.5, markeredgecolor="white")
    axes.axvline(0, color="0.5", linewidth=0.8, zorder=1)
    labels = [f"{name}, seeds {seeds}" for name, seeds in zip(pairs["comparison"], pairs["seeds"], strict=True)]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(title="One function", xlabel="points of mIoU", ylim=(len(labels) - 0.4, -0.6), xlim=padded(*ends))
    axes.grid(visible=False, axis="y")
    handles = [
        Line2D([], [], color="0.35", linewidth=width, label=f"95%, {name}")
        for width, name in ((3.5, "these seeds"), (1.0, "any seed"))
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)


def _draw_damage(damage: pd.DataFrame, axes: Axes) -> None:
    tests = list(dict.fromkeys(damage["test"]))
    for test, colour in zip(tests, sns.color_palette("colorblind", len(tests)), strict=True):
        part = damage[damage["test"] == test].astype({"detected": float, "monte_carlo": float, "expected": float})
        label = f"{test}, {part['seeds'].iloc[0]} seeds"
        axes.plot(100 * part["size"], 100 * part["expected"], color=colour, linewidth=1, linestyle="--")
        axes.errorbar(
            100 * part["size"],
            100 * part["detected"],
            200 * part["monte_carlo"],
            fmt="o",
            color=colour,
            markersize=4,
            label=label,
        )
    axes.plot([], [], color="0.3", linewidth=1, linestyle="--", label="the stated power")
    axes.set(title="Planted damage", xlabel="damage, points of mIoU", ylabel="detected, %", ylim=(-3, 103))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)
