"""Verdicts on the paper's claims (`wimfris.results.claims`) as they are shown, and the page `reports/claims.md`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from tabulate import tabulate

from wimfris.files import write_text
from wimfris.results.claims import CONSTRUCTION, NOT_TESTED, PAPER, Verdict
from wimfris.results.comparisons import Comparisons
from wimfris.results.formats import DASH, GUIDE, interval, level_text, seeds_text
from wimfris.results.plan import METRIC, SPLIT, Better, Falls, Plan, registration_lines
from wimfris.results.published import BUILT_IN, TRUST
from wimfris.results.report.comparison_tables import tier_levels
from wimfris.results.scores import COMPARED, LABELS
from wimfris.results.verdicts import Decision

NOTHING = "Nothing here says that the method works at the paper's scale."
WINDOW = "window_helps"
"""The claim that answers whether the window matters."""
OTHER_WINDOWS = {"window_1": "1x1", "window_2": "2x2", "window_8": "8x8"}
"""Variant -> its window, for those that the answer on the window names beside 4x4."""
SAME_LOSS = "_align_4"
"""Ends the name of a variant with another window, whose alignment loss keeps the window of 4x4."""

METRICS = {name: LABELS[name] for name in ("miou", "oiou", "pr70", "right", "iou_right")}
"""Metric -> its name in the columns of `details`."""

DECISIONS = (*get_args(Decision), CONSTRUCTION)


def summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row of text per claim: the claim, its verdict and why, the paper's figures, and its own scale."""
    return pd.DataFrame(
        {
            "claim": [verdict.claim.claim for verdict in verdicts],
            "verdict": [verdict.at_scale for verdict in verdicts],
            "reason": [verdict.reason for verdict in verdicts],
            "paper": [_paper(verdict) for verdict in verdicts],
            "paper's own scale": [verdict.at_paper_scale for verdict in verdicts],
        }
    )


def by_decision(verdicts: Sequence[Verdict], *, reasons: bool = False) -> dict[str, list[str]]:
    """Return each decision with its claims, without full stops; reasons: add why a claim that runs decided has it."""
    listed: dict[str, list[str]] = {decision: [] for decision in DECISIONS}
    for one in verdicts:
        why = f" ({one.reason})" if reasons and one.decision not in ("undecided", CONSTRUCTION) else ""
        listed[one.decision].append(f"{one.claim.claim.removesuffix('.')}{why}")
    return listed


def answer(verdicts: Sequence[Verdict], plan: Plan) -> str:
    """Return the verdicts as Markdown: how many claims have each decision, and one sentence for each claim."""
    first = verdicts[0]
    counts = {decision: len(claims) for decision, claims in by_decision(verdicts).items() if claims}
    listed = ", ".join(f"{count} {decision}" for decision, count in counts.items())
    head = f"At scale {first.scale} on data set {first.dataset}, of the paper's {len(verdicts)} claims: **{listed}**."
    tested = sum(verdict.at_paper_scale not in (NOT_TESTED, CONSTRUCTION) for verdict in verdicts)
    scale = f"{tested or 'None'} of them {'were' if tested > 1 else 'was'} tested at the paper's own scale. {NOTHING}"
    lines = [head, ""]
    groups: dict[tuple[str, str], list[Verdict]] = {}  # claims often share decision and reason
    for verdict in verdicts:
        groups.setdefault((verdict.decision, verdict.reason), []).append(verdict)
    for (decision, reason), claims in groups.items():
        lines += [f"- **{decision[0].upper()}{decision[1:]}**: {reason}."]
        lines += [f"    - {_sentence(verdict, plan)}" for verdict in claims]
    return "\n".join([*lines, "", scale])


def _sentence(verdict: Verdict, plan: Plan) -> str:
    """Return a claim and its comparison with the best rival."""
    text = verdict.claim.claim
    if not verdict.rows:
        return text
    row = min(verdict.rows, key=lambda row: row["difference"])
    if isinstance(verdict.claim, Falls):
        return f"{text} First minus last layer: {row['difference']:+.2f} {interval(row['low'], row['high'], '+.2f')}."
    known = not math.isnan(row["low"])
    ends = interval(100 * row["low"], 100 * row["high"]) if known else "(one seed of a system has no interval)"
    names = f"{plan.label(row['system'])} minus {plan.label(row['rival'])}".replace("_", "\\_")
    unit = "points" if row["metric"] == METRIC else f"points of {METRICS[row['metric']]}"
    strongest = f" (the strongest of {len(verdict.rows)} rivals)" if len(verdict.rows) > 1 else ""
    return f"{text} {names[0].upper()}{names[1:]}{strongest}: {100 * row['difference']:+.1f} {unit} {ends}."


def window_answer(verdicts: Sequence[Verdict], comparisons: Comparisons) -> str:
    """Return the one answer to "Does the window matter?": a number with its interval, a verdict, and their limits."""
    verdict = next(one for one in verdicts if one.claim.name == WINDOW)
    scale = f"scale {verdict.scale} (data set {verdict.dataset})"
    if not verdict.rows:
        return f"No runs of {scale} can say whether the window matters. {NOTHING}"
    row = verdict.rows[0]
    points = 100 * row["difference"]
    ends = interval(100 * row["low"], 100 * row["high"])
    size = f"{abs(points):.1f}"
    score = f"score {size} points of mIoU {'more' if points > 0 else 'less'} than"
    if size == "0.0":
        score = "score the same mIoU, to 0.1 points, as"
    return (
        f"At {scale}, windows of 4x4 {score} no window. The interval of the difference is {ends} at level "
        f"{level_text(row['error'])}, from seeds {row['seeds'].replace(' ', ', ')}. "
        f'The verdict on "{verdict.claim.claim.removesuffix(".")}" is **{verdict.decision}** (primary tier; '
        f"{verdict.reason}). {_other_windows(comparisons)}{_limits(verdict)}"
    ).rstrip()


def _limits(verdict: Verdict) -> str:
    """Return what the verdict does not speak for; empty at the paper's scale on its data."""
    drawn = "These are systems trained on drawn scenes. " if verdict.dataset == BUILT_IN else ""
    return drawn + ("" if (verdict.dataset, verdict.scale) == PAPER else NOTHING)


def _other_windows(comparisons: Comparisons) -> str:
    """Return how 4x4 compares with other windows, each with its verdict unless it has one seed; empty without runs."""
    same, changed = (_against_4x4(comparisons, end) for end in (SAME_LOSS, ""))
    text = f"4x4 minus other windows, with the same alignment loss: {same}. " if same else ""
    if changed:
        head = "With the loss's window changed, too" if same else "4x4 minus other windows"
        text += f"{head}: {changed}. "
    return text


def _against_4x4(comparisons: Comparisons, end: str) -> str:
    """Return 4x4 minus every other window, whose variants have this end of their names; empty without runs."""
    parts, single = [], []
    for name, size in OTHER_WINDOWS.items():
        row = comparisons.quote("full", name + end)
        if row is None:
            continue
        part = f"{size} {100 * row['difference']:+.1f}"
        if row["verdict"]:
            ends = interval(100 * row["low"], 100 * row["high"])
            parts.append(f"{part} {ends} ({row['verdict']}, {row['tier']} tier)")
        else:
            single.append(part)
    if single:
        parts.append(f"{', '.join(single)} (one seed{' each' * (len(single) > 1)}, no verdict)")
    return "; ".join(parts)


def details(verdict: Verdict, plan: Plan, comparisons: Comparisons) -> pd.DataFrame:
    """Return one row of text per comparison that decides the claim, in points; no row if nothing was tested."""
    return pd.DataFrame([_detail(verdict, plan, comparisons, row) for row in verdict.rows])


def footer(verdict: Verdict, plan: Plan) -> str:
    """Return the sentences below `details`: the margin, the look, and the power after correction."""
    if not verdict.rows:
        return ""
    rows = pd.DataFrame(list(verdict.rows))
    claim, margin = verdict.claim, f"{100 * verdict.margin:.1f} points"
    if isinstance(claim, Falls):
        margin = f"{verdict.margin:g} of alpha"
    elif isinstance(claim, Better) and claim.metric != METRIC:
        margin += f" of {METRICS[claim.metric]}"
    first, final = plan.confirmatory.looks
    pairs = dict.fromkeys(zip(rows["seeds"], rows["rival_seeds"], strict=True))
    seeds = seeds_text(*next(iter(pairs))) if len(pairs) == 1 else "the seeds in the table"
    look = {
        0: f"No look yet: the estimates are of {seeds}, and decide nothing",
        1: f"First look, {first} seeds of each system",
        2: f"Second and last look, {final} seeds of each system",
    }[verdict.look]
    if isinstance(claim, Falls):
        return f"Margin: {margin}. {look}. Interval: level {level_text(rows['error'].iloc[0])}."
    levels = tier_levels(rows, power=verdict.look > 0)
    return f"Margin: {margin}. {look}. Intervals for any seed: {levels}."


def over_scales(files: Mapping[str, Comparisons], plan: Plan) -> pd.DataFrame:
    """Return the comparisons that several scales have, as cells: effect and interval at each scale, and how the effect
    changes from each scale to the next.

    files: name of a data set and scale -> its comparisons. A comparison is shown as it stands in the first of them. The
    interval of a change treats the scales as independent: the half widths add as their squares.
    """
    pairs: dict[tuple[str, str], None] = {}
    for one in files.values():
        rows = pd.concat([one.primary, one.exploratory])
        rows = rows[(rows["split"] == SPLIT) & (rows["metric"] == METRIC)]
        pairs |= dict.fromkeys(
            pair for pair in zip(rows["system"], rows["rival"], strict=True) if pair[::-1] not in pairs
        )
    table = []
    for pair in pairs:
        quoted = {name: row for name, one in files.items() if (row := one.quote(*pair))}
        if len(quoted) < 2:
            continue
        cells = {"comparison": f"{pair[0]} - {pair[1]}", "tier": next(iter(quoted.values()))["tier"]}
        cells |= {name: _effect(quoted[name]) if name in quoted else DASH for name in files}
        for (before, first), (after, second) in pairwise(quoted.items()):
            ends, change = (first, second), second["difference"] - first["difference"]
            half = np.hypot(*(max(row["high"] - row["difference"], row["difference"] - row["low"]) for row in ends))
            between = "" if np.isnan(half) else f" {interval(100 * (change - half), 100 * (change + half))}"
            cells[f"{after} - {before}"] = f"{100 * change:+.1f}{between}"
        table.append(cells)
    return pd.DataFrame(table).fillna(DASH) if table else pd.DataFrame()


def own_rows(comparisons: Comparisons) -> str:
    """Return which exploratory verdicts one's own studies change; empty where there are none."""
    rows = comparisons.exploratory
    own = rows[(rows["verdict"] != "") & (rows["verdict_without_own"] == "")]
    if own.empty:
        return ""
    declared = rows[rows["verdict_without_own"] != ""]
    moved = declared[declared["verdict"] != declared["verdict_without_own"]]
    text = "; ".join(
        f"{row['system']} - {row['rival']}: {row['verdict_without_own']}, with them {row['verdict']}"
        for row in moved.to_dict("records")
    )
    head = f"{len(own)} comparisons of your own studies joined the exploratory family."
    return f"{head} Verdicts that changed: {text or 'none'}."


def write_claims(
    verdicts: Sequence[Verdict], plan: Plan, files: Mapping[str, Comparisons], path: Path, *, protocol: str = "cris"
) -> None:
    """Write the verdicts as Markdown; files: the comparisons of each data set and scale, the verdicts' own first."""
    first, comparisons = verdicts[0], next(iter(files.values()))
    registration = path.parent / "registration.yaml"
    parts = [
        "# The paper's claims",
        f"*Made from the [comparisons](comparisons/) and [claims.yaml](claims.yaml): data set {first.dataset}, scale "
        f"{first.scale}, protocol {protocol}, split {SPLIT}.*",
        f"How to read this page: [{GUIDE}](../{GUIDE}). Sources of the published figures, and what trust means: "
        "[published.md](published.md).",
        "\n".join(registration_lines(plan, registration)),
    ]
    if (first.dataset, first.scale) != PAPER:
        parts.append(
            f"These verdicts hold at scale {first.scale} on data set {first.dataset}. They say nothing about the "
            f"paper's own results, which are at scale {PAPER[1]} on {PAPER[0]} (last column). {NOTHING}"
        )
    parts.append(_markdown(summary(verdicts)))
    parts += ["## Does the window matter?", window_answer(verdicts, comparisons)]
    for verdict in verdicts:
        decision = verdict.at_scale[:1].upper() + verdict.at_scale[1:]
        parts.append(f"## {verdict.claim.claim}")
        parts.append(f"**{decision}**: {verdict.reason}. {verdict.claim.note}".strip())
        parts.append(f"The paper: {_paper(verdict)}.")
        if verdict.rows:
            parts.append(_markdown(details(verdict, plan, comparisons)))
        parts.append(footer(verdict, plan))
    scales = over_scales(files, plan)
    if len(scales):
        parts += ["## The same comparisons at other scales", SCALES, _markdown(scales)]
    if own := own_rows(comparisons):
        parts += ["## Your own rows", own]
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")


SCALES = (
    "Points of mIoU, with each scale's interval for any seed; one seed has none. Because of rounding, the last column "
    "may differ by 0.1 from the values shown. The scales also have different recipes (epochs, training images, average "
    "of the weights: params.yaml), so a change from one to the other is not that of the grid alone."
)


def _effect(row: Mapping[str, Any]) -> str:
    points = f"{100 * row['difference']:+.1f}"
    return (
        f"{points} (one seed)" if np.isnan(row["low"]) else f"{points} {interval(100 * row['low'], 100 * row['high'])}"
    )


def _detail(verdict: Verdict, plan: Plan, comparisons: Comparisons, row: Mapping[str, Any]) -> dict[str, str]:
    if isinstance(verdict.claim, Falls):
        return {
            "mean alpha, first and last layer": f"{row['value']:.2f}, {row['rival_value']:.2f}",
            "fall": f"{row['difference']:+.2f}",
            "any seed": interval(row["low"], row["high"], "+.2f"),
            "seeds": row["seeds"],
        }
    others = {name: comparisons.quote(row["system"], row["rival"], metric=name) for name in COMPARED}
    ours, theirs = (verdict.figures.get(row[name]) for name in ("system", "rival"))
    gain, trust = "none known", ""
    if ours and theirs and verdict.claim.published.metric == row["metric"]:
        gain, trust = f"{ours.value - theirs.value:+.1f}", max(ours.trust, theirs.trust, key=TRUST.index)
    return {
        "comparison": f"{row['system']} - {row['rival']}",
        "verdict": row["verdict"] or DASH,
        f"Δ{METRICS[row['metric']]}": f"{100 * row['difference']:+.1f}",
        "any seed": interval(100 * row["low"], 100 * row["high"]),
        **({"for any rival": interval(100 * row["low_any"], 100 * row["high_any"])} if len(verdict.rows) > 1 else {}),
        "these seeds": interval(100 * row["these_low"], 100 * row["these_high"]),
        **{
            f"Δ{METRICS[name]}": f"{100 * other['difference']:+.1f}" if other else DASH
            for name, other in others.items()
            if name != row["metric"]
        },
        "images": f"{row['images']}",
        "sentences": f"{row['sentences']}",
        "seeds": " / ".join(dict.fromkeys((row["seeds"], row["rival_seeds"]))),
        "paper's gain": gain,
        "trust": trust,
    }


def _paper(verdict: Verdict) -> str:
    """Return the paper's figures, those of variants in its own words, and the range of trust in them."""
    place, figures = verdict.claim.published, verdict.figures.values()
    if not figures:
        return "no figure known"
    stated = ", ".join(
        f"{label if ' ' in label else figure.variant} {figure}" for label, figure in verdict.figures.items()
    )
    trust = sorted({figure.trust for figure in figures}, key=TRUST.index)
    title = f"{'Figure' if place.table[0] == 'F' else 'Table'} {place.table[1:]}"
    return f"{title}: {stated} (trust {' to '.join(trust)})"


def _markdown(cells: pd.DataFrame) -> str:
    escaped = cells.map(lambda cell: cell.replace("|", "\\|").replace("_", "\\_"))
    return tabulate(escaped.to_numpy().tolist(), headers=list(cells.columns), tablefmt="pipe", disable_numparse=True)
