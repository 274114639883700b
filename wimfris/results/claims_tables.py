"""Verdicts on the paper's claims (`wimfris.results.claims`) as they are shown, and the page `reports/claims.md`."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
from tabulate import tabulate

from wimfris.files import write_text
from wimfris.results.claims import CLAIMS, PAPER, SPLIT, Better, Decision, Falls, Verdict, judge, read_claims
from wimfris.results.differences import power_line
from wimfris.results.differences import verdict as verdict_of
from wimfris.results.formats import DASH, GUIDE, interval, p_value
from wimfris.results.published import PUBLISHED, TRUST


def summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row of text per claim: the claim, its verdict and why, the paper's figures, and its own scale."""
    return pd.DataFrame(
        {
            "claim": [verdict.claim.claim for verdict in verdicts],
            "verdict": [verdict.at_scale for verdict in verdicts],
            "why": [verdict.reason for verdict in verdicts],
            "paper": [_paper(verdict) for verdict in verdicts],
            "paper's own scale": [verdict.at_paper_scale for verdict in verdicts],
        }
    )


def answer(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts in words, as Markdown: how many claims there are, then a line for each decision with them."""
    first = verdicts[0]
    decisions: dict[str, list[str]] = {decision: [] for decision in get_args(Decision)}
    for verdict in verdicts:
        decisions[verdict.decision].append(verdict.claim.claim.removesuffix("."))
    lines = [
        f"- **{decision[0].upper()}{decision[1:]}** ({len(claims)}): {'; '.join(claims) or 'none'}."
        for decision, claims in decisions.items()
    ]
    tested = sum(verdict.at_paper_scale not in ("not tested", "true by construction") for verdict in verdicts)
    head = f"At scale {first.scale} on data set {first.dataset}, the paper's {len(verdicts)} claims are:"
    scale = f"{tested or 'None'} of them {'were' if tested > 1 else 'was'} tested at the paper's own scale."
    return "\n".join([head, "", *lines, "", scale])


def details(verdict: Verdict) -> pd.DataFrame:
    """Return one row of text per comparison that decides the claim, in points; no row if nothing was tested."""
    return pd.DataFrame([_detail(verdict, row) for _, row in verdict.decisive.iterrows()])


def footer(verdict: Verdict) -> str:
    """Return the sentences below `details`: over which systems the seed variance is pooled, and the power."""
    if not isinstance(verdict.claim, Better) or verdict.comparisons.empty:
        return ""
    systems = "all systems of the study's table" if verdict.claim.pool else "these systems"
    return f"The variance between seeds is pooled over {systems}. {power_line(verdict.comparisons)}"


def write_claims(
    records: pd.DataFrame, emphasis: pd.DataFrame, path: Path, *, claims: Path = CLAIMS, figures: Path = PUBLISHED
) -> list[Verdict]:
    """Judge the claims by the records and emphasis of one data set and scale, and write the verdicts as Markdown.

    The same evidence gives the same bytes. Raises `UserError` as `read_claims` and `judge`.
    """
    verdicts = judge(read_claims(claims), records, emphasis, figures=figures)
    first = verdicts[0]
    protocols = ", ".join(sorted(records["protocol"].unique()))
    family = sum(len(verdict.decisive) for verdict in verdicts)
    parts = [
        "# The paper's claims",
        f"*Made from the evidence and [claims.yaml](claims.yaml): data set {first.dataset}, scale {first.scale}, "
        f"protocol {protocols}, split {SPLIT}.*",
        f"How to read this page: [{GUIDE}](../{GUIDE}). Holm's family: all {family} comparisons below. "
        "Sources of the published figures, and what trust means: [published.md](published.md).",
    ]
    if (first.dataset, first.scale) != PAPER:
        parts.append(
            f"These verdicts hold at scale {first.scale} on data set {first.dataset}. They say nothing about the "
            f"paper's own results, which are at scale {PAPER[1]} on {PAPER[0]} (last column)."
        )
    parts.append(_markdown(summary(verdicts)))
    for verdict in verdicts:
        decision = verdict.at_scale[:1].upper() + verdict.at_scale[1:]
        parts.append(f"## {verdict.claim.claim}")
        parts.append(f"**{decision}**: {verdict.reason}. {verdict.claim.note}".strip())
        parts.append(f"The paper: {_paper(verdict)}.")
        if not verdict.comparisons.empty:
            parts.append(_markdown(details(verdict)))
        parts.append(footer(verdict))
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")
    return verdicts


def _detail(verdict: Verdict, row: pd.Series) -> dict[str, str]:
    if isinstance(verdict.claim, Falls):
        return {
            "mean alpha by layer": ", ".join(f"{layer}: {alpha:.2f}" for layer, alpha in row["alpha"].items()),
            "change, first to last layer": f"{row['difference']:+.2f}",
            "any seed": interval(row["any_low"], row["any_high"], "+.2f"),
            "p, Holm": p_value(row["p_holm"]),
            "seeds": f"{row['seeds']}",
        }
    rows = verdict.comparisons
    others = rows[rows["rival"] == row["rival"]].set_index("metric")["difference"]
    ours, theirs = (verdict.figures.get(name) for name in (verdict.claim.system, row["rival"]))
    gain, trust = "none known", ""
    if ours and theirs:
        gain, trust = f"{ours.value - theirs.value:+.1f}", max(ours.trust, theirs.trust, key=TRUST.index)
    return {
        "comparison": f"{verdict.claim.system} - {row['rival']}",
        "verdict": verdict_of(row) or DASH,
        "ΔmIoU": f"{100 * row['difference']:+.1f}",
        "any seed": interval(100 * row["any_low"], 100 * row["any_high"]),
        "p, Holm": p_value(row["p_holm"]),
        "these seeds": interval(100 * row["these_low"], 100 * row["these_high"]),
        "ΔoIoU": f"{100 * others['oiou']:+.1f}",
        "ΔPr@0.7": f"{100 * others['pr70']:+.1f}",
        "images": f"{row['images']}",
        "sentences": f"{row['sentences']}",
        "seeds": f"{row['seeds']}",
        "paper's gain": gain,
        "trust": trust,
    }


def _paper(verdict: Verdict) -> str:
    """Return the paper's figures, those of variants in its own words, and the range of trust in them."""
    place, figures = verdict.claim.published, verdict.figures.values()
    stated = ", ".join(
        f"{label if ' ' in label else figure.variant} {figure}" for label, figure in verdict.figures.items()
    )
    trust = sorted({figure.trust for figure in figures}, key=TRUST.index)
    title = f"{'Figure' if place.table[0] == 'F' else 'Table'} {place.table[1:]}"
    return f"{title}: {stated} (trust {' to '.join(trust)})"


def _markdown(cells: pd.DataFrame) -> str:
    escaped = cells.map(lambda cell: cell.replace("|", "\\|").replace("_", "\\_"))
    return tabulate(escaped.to_numpy().tolist(), headers=list(cells.columns), tablefmt="pipe", disable_numparse=True)
