"""The paper's claims as tests: `reports/claims.yaml` states them, the evidence decides, `reports/claims.md` tells.

A claim is *reproduced* where every one of its comparisons is separated in its favour, *contradicted* where one is
separated against it, and *undecided* otherwise, also where a run that it needs is not there. Separated means a p value
for any seed below 5% after Holm's correction over the comparisons of all claims (`wimfris.results.statistics`). A
verdict holds for the data set and scale of its runs: only those at the paper's scale, on its data, speak for the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from scipy import stats
from tabulate import tabulate

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.published import PUBLISHED, TRUST, Figure, published
from wimfris.results.statistics import compare, holm, power_line, separated
from wimfris.results.tables import interval, p_value

CLAIMS = Path("reports/claims.yaml")
SPLIT = "val"
"""The split of every test: the one that the paper's ablations state."""

PAPER = ("refcoco", "base")
"""Data set and scale at which the paper made its claims: a verdict there alone speaks of them."""

Decision = Literal["reproduced", "contradicted", "undecided", "true by construction"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rows(_Strict):
    """Rows of published.csv: a label, or a variant of ours -> the row's `variant`."""

    table: str
    system: str = "WIMFRIS-B"
    split: str = "val"
    metric: str = "miou"
    rows: dict[str, str]


class _Claim(_Strict):
    name: str
    claim: str
    system: str  # the variant that it is about
    note: str = ""
    published: Rows


class Better(_Claim):
    """`system` has a higher mIoU than every rival."""

    kind: Literal["better"]
    rivals: tuple[str, ...] = Field(min_length=1)
    pool: tuple[
        str, ...
    ] = ()  # whose variance between seeds is pooled with theirs: the other rows of the study's table


class Falls(_Claim):
    """The emphasis that `system` learned falls with depth."""

    kind: Literal["falls"]


class Construction(_Claim):
    """True of our model because it was built so."""

    kind: Literal["construction"]
    value: float
    unit: str


Claim = Annotated[Better | Falls | Construction, Field(discriminator="kind")]


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of a claim, at the data set and scale of its records."""

    claim: Better | Falls | Construction
    figures: dict[str, Figure]  # the paper's, by label or variant
    dataset: str
    scale: str
    decision: Decision
    reason: str  # a clause that says why, for example "not run: window_8"
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)  # see `judge`; empty where nothing was tested

    @property
    def told(self) -> str:
        """The decision, with the scale at which alone it holds."""
        built = isinstance(self.claim, Construction)
        missing = " (not run)" if self.comparisons.empty and not built else ""
        return self.decision if built else f"at scale {self.scale}: {self.decision}{missing}"

    @property
    def of_paper(self) -> str:
        """What this says of the paper's own claim: nothing, unless tested at the paper's scale and on its data."""
        if isinstance(self.claim, Construction):
            return self.decision
        return self.decision if (self.dataset, self.scale) == PAPER else "not tested"


def read_claims(path: Path = CLAIMS) -> list[Better | Falls | Construction]:
    """Read the claims. Raises `UserError` that names the claim and key at fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or restore it with git") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path}: not a YAML file; restore it with git") from None
    try:
        claims = TypeAdapter(list[Claim]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        number = first["loc"][0] if first["loc"] else None
        named = isinstance(number, int) and isinstance(content[number], dict)
        name = content[number].get("name", f"number {number + 1}") if named and isinstance(number, int) else "all"
        key = ".".join(str(part) for part in first["loc"][1:] if part not in ("better", "falls", "construction"))
        raise UserError(f"{path}: claim {name}: {key}: {first['msg']}; correct it") from None
    names = [claim.name for claim in claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: claim {twice[0]} is there twice; rename or remove one")
    return claims


def judge(
    claims: Sequence[Better | Falls | Construction],
    records: pd.DataFrame,
    emphasis: pd.DataFrame,
    *,
    resamples: int = 10_000,
    figures: Path = PUBLISHED,
) -> list[Verdict]:
    """A verdict for each claim, in order.

    records: columns of `wimfris.runs.records.SCHEMA`, runs of one data set and scale; emphasis: columns of
    `wimfris.results.evidence.EMPHASIS`, of the same runs. The comparisons of a `better` claim are rows of
    `wimfris.results.statistics.compare` turned round: `difference`, its intervals and `improvement` are the system's
    over the rival, which is named in `rival`; all are fractions. Those of a `falls` claim are one row: `difference`,
    `any_low`, `any_high` (95% t interval over seeds) and `p` of alpha's fitted change from the first to the last layer,
    `alpha`, a mapping of layer to mean alpha after the last epoch, and `seeds`. `p_holm` is corrected over all claims'
    comparisons of mIoU and alpha; other metrics have none.

    Raises `UserError` where a claim names a published figure that is not there, or the records are of several data sets
    or scales or not comparable.
    """
    told = records.groupby(["dataset", "scale"], observed=True).size()
    if len(told) != 1:
        raise UserError(
            f"claims: the records are of {len(told)} data sets and scales; give those of one, "
            "for a verdict holds at the scale of its runs"
        )
    dataset, scale = told.index[0]
    measured = [_measure(claim, records, emphasis, resamples) for claim in claims]
    family = [(rows, index) for rows in measured for index in _primary(rows).index]
    corrected = holm(np.array([rows.at[index, "p"] for rows, index in family], dtype=float))
    for (rows, index), p in zip(family, corrected, strict=True):
        rows.at[index, "p_holm"] = p
    verdicts = []
    for claim, rows in zip(claims, measured, strict=True):
        if isinstance(claim, Better):
            decision, reason = _decide_better(claim, rows, records)
        elif isinstance(claim, Falls):
            decision, reason = _decide_falls(claim, rows)
        else:
            decision, reason = "true by construction", f"{claim.value:g}{claim.unit}"
        verdicts.append(Verdict(claim, _figures(claim, figures), dataset, scale, decision, reason, rows))
    return verdicts


def _measure(
    claim: Better | Falls | Construction, records: pd.DataFrame, emphasis: pd.DataFrame, resamples: int
) -> pd.DataFrame:
    """The comparisons of a claim, not yet corrected; empty where nothing can be tested."""
    if isinstance(claim, Falls):
        return _change(emphasis[emphasis["variant"] == claim.system])
    if not isinstance(claim, Better) or not (rivals := _comparable(claim, records)):
        return pd.DataFrame()
    there = set(records["variant"].unique())
    pool = [name for name in (*claim.rivals, *claim.pool) if name in there]
    rows = compare(records, rivals, claim.system, split=SPLIT, resamples=resamples, pool=pool)
    return _turned(rows).assign(p_holm=np.nan)


def _comparable(claim: Better, records: pd.DataFrame) -> list[str]:
    """The rivals that have a seed in common with the system."""
    seeds = {str(variant): set(part["seed"].unique()) for variant, part in records.groupby("variant", observed=True)}
    return [rival for rival in claim.rivals if seeds.get(claim.system, set()) & seeds.get(rival, set())]


def _figures(claim: Better | Falls | Construction, path: Path) -> dict[str, Figure]:
    place = claim.published
    found = {}
    for label, row in place.rows.items():
        figure = published(place.table, place.system, row, split=place.split, metric=place.metric, path=path)
        if figure is None:
            raise UserError(
                f"claim {claim.name}: {path} has no row {place.table} / {place.system} / {row} / refcoco / "
                f"{place.split} / {place.metric}; correct `published`"
            )
        found[label] = figure
    return found


def _decide_better(claim: Better, rows: pd.DataFrame, records: pd.DataFrame) -> tuple[Decision, str]:
    there, ran = [] if rows.empty else list(rows["rival"].unique()), set(records["variant"].unique())
    missing = [name for name in (claim.system, *claim.rivals) if name not in ran]
    apart = [name for name in claim.rivals if name not in there and {name, claim.system} <= ran]
    gaps = [f"not run: {', '.join(missing)}"] if missing else []
    gaps += [f"no seed in common: {', '.join(apart)}"] if apart else []
    if not there:
        return "undecided", "; ".join(gaps)
    found = [row for _, row in _primary(rows).iterrows() if separated(row)]
    against = [row["rival"] for row in found if row["difference"] < 0]
    favour = [row["rival"] for row in found if row["difference"] > 0]
    if against:
        decision: Decision = "contradicted"
        reason = f"worse than {', '.join(against)}"
    elif len(favour) == len(claim.rivals):
        decision, reason = "reproduced", f"better than {', '.join(favour)}"
    else:
        decision = "undecided"
        unclear = [rival for rival in there if rival not in favour]
        reason = f"not separated from {', '.join(unclear)}" if unclear else f"better than {', '.join(favour)}"
    return decision, "; ".join([reason, *gaps])


def _turned(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `compare`, rival minus system, as system minus rival."""
    turned = rows.assign(
        difference=-rows["difference"],
        these_low=-rows["these_high"],
        these_high=-rows["these_low"],
        any_low=-rows["any_high"],
        any_high=-rows["any_low"],
        improvement=1 - rows["improvement"],
        value=rows["baseline_value"],
        rival_value=rows["value"],
    )
    return turned.rename(columns={"variant": "rival", "baseline": "system"}).drop(
        columns=["baseline_value", "sd", "baseline_sd"]
    )


def _change(course: pd.DataFrame) -> pd.DataFrame:
    """Alpha's fitted change from the first to the last layer after the last epoch, over the runs of one variant: one
    row, see `judge`; none without runs.
    """
    if course.empty:
        return pd.DataFrame()
    last = course[course["epoch"] == course.groupby("seed")["epoch"].transform("max")]
    alphas = last.pivot(index="layer", columns="seed", values="alpha")
    depth = alphas.index.to_numpy(dtype=float)
    seeds = alphas.shape[1]
    row = {"seeds": seeds, "alpha": dict(alphas.mean(axis=1)), "p_holm": np.nan}
    if len(depth) < 2 or seeds < 2:
        return pd.DataFrame([row | dict.fromkeys(("difference", "any_low", "any_high", "p"), np.nan)])
    changes = np.polyfit(depth, alphas.to_numpy(), 1)[0] * (depth[-1] - depth[0])  # fitted line, last minus first layer
    error = changes.std(ddof=1) / np.sqrt(seeds)
    half = float(stats.t.ppf(0.975, seeds - 1) * error)
    low, high = changes.mean() - half, changes.mean() + half
    p = 2 * float(stats.t.sf(abs(changes.mean()) / error, seeds - 1))
    return pd.DataFrame([row | {"difference": changes.mean(), "any_low": low, "any_high": high, "p": p}])


def _decide_falls(claim: Falls, rows: pd.DataFrame) -> tuple[Decision, str]:
    if rows.empty:
        return "undecided", f"not run: {claim.system}"
    row = rows.iloc[0]
    if np.isnan(row["p"]):
        return "undecided", "one layer or one seed alone"
    if not separated(row):
        return "undecided", "not separated from no change"
    return ("reproduced", "falls") if row["difference"] < 0 else ("contradicted", "rises")


def summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row a claim, as text: the claim, where and what the paper tells, the verdict at its scale, and of the paper."""
    return pd.DataFrame(
        {
            "claim": [verdict.claim.claim for verdict in verdicts],
            "paper": [_paper(verdict) for verdict in verdicts],
            "verdict": [verdict.told for verdict in verdicts],
            "why": [verdict.reason for verdict in verdicts],
            "paper's own scale": [verdict.of_paper for verdict in verdicts],
        }
    )


def details(verdict: Verdict) -> pd.DataFrame:
    """A row a comparison, as text and in points: effect, both intervals, n, the paper's gain and how far to trust it.

    Of a `falls` claim the row is alpha's change; no row where nothing was tested.
    """
    return pd.DataFrame([_detail(verdict, row) for _, row in _primary(verdict.comparisons).iterrows()])


def _primary(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of a claim's comparisons that decide it."""
    return rows[rows["metric"] == "miou"] if "metric" in rows else rows


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
    gain = f"{ours.value - theirs.value:+.1f}" if ours and theirs else "none known"
    trust = max((figure.trust for figure in (ours, theirs) if figure), key=TRUST.index) if ours and theirs else ""
    return {
        "comparison": f"{verdict.claim.system} - {row['rival']}",
        "ΔmIoU": f"{100 * row['difference']:+.1f}",
        "these seeds": interval(100 * row["these_low"], 100 * row["these_high"]),
        "any seed": interval(100 * row["any_low"], 100 * row["any_high"]),
        "p, Holm": p_value(row["p_holm"]),
        "ΔoIoU": f"{100 * others['oiou']:+.1f}",
        "ΔPr@0.7": f"{100 * others['pr70']:+.1f}",
        "images": f"{row['images']}",
        "sentences": f"{row['sentences']}",
        "seeds": f"{row['seeds']}",
        "paper's gain": gain,
        "trust": trust,
    }


def _paper(verdict: Verdict) -> str:
    """The paper's figures, those of variants in its own words, and the range of trust in them."""
    place, figures = verdict.claim.published, verdict.figures.values()
    stated = ", ".join(
        f"{label if ' ' in label else figure.variant} {figure}" for label, figure in verdict.figures.items()
    )
    trust = sorted({figure.trust for figure in figures}, key=TRUST.index)
    title = f"{'Figure' if place.table[0] == 'F' else 'Table'} {place.table[1:]}"
    return f"{title}: {stated} (trust {' to '.join(trust)})"


def footer(verdict: Verdict) -> str:
    """What a reader of `details` needs: whose seeds the intervals rest on, and the power of the comparisons."""
    if not isinstance(verdict.claim, Better) or verdict.comparisons.empty:
        return ""
    table = ", pooled over the table of its study" if verdict.claim.pool else ""
    return f"The variance between seeds is that of these systems{table}. {power_line(verdict.comparisons)}"


def write_claims(
    records: pd.DataFrame, emphasis: pd.DataFrame, path: Path, *, claims: Path = CLAIMS, figures: Path = PUBLISHED
) -> list[Verdict]:
    """Judge the claims by records and emphasis of one data set and scale, and write the verdicts as Markdown.

    The same evidence gives the same bytes. Raises `UserError` as `read_claims` and `judge`.
    """
    verdicts = judge(read_claims(claims), records, emphasis, figures=figures)
    first = verdicts[0]
    protocols = ", ".join(sorted(records["protocol"].unique()))
    paper = (first.dataset, first.scale) == PAPER
    family = sum(len(_primary(verdict.comparisons)) for verdict in verdicts)
    parts = [
        "# The paper's claims",
        f"*Made from the evidence and [claims.yaml](claims.yaml): data set {first.dataset}, scale {first.scale}, "
        f"protocol {protocols}, split {SPLIT}.*",
        "**Reproduced**: every comparison is separated in the claim's favour, for any seed. **Contradicted**: one is "
        "separated against it. **Undecided**: neither, which is no evidence of no effect: the last sentence under a "
        f"table tells what could have been shown. The family of Holm's correction is all {family} comparisons below: "
        "that any of them is separated by chance has a probability below 5%.",
    ]
    if not paper:
        parts.append(
            f"These verdicts hold at scale {first.scale} on data set {first.dataset}. They say nothing of the paper's "
            f"figures and claims, which are of scale {PAPER[1]} on {PAPER[0]}: the last column."
        )
    parts.append(_markdown(summary(verdicts)))
    for verdict in verdicts:
        parts.append(f"## {verdict.claim.claim}")
        parts.append(f"**{_capital(verdict.told)}**: {verdict.reason}. {verdict.claim.note}".strip())
        parts.append(f"The paper: {_paper(verdict)}.")
        if not verdict.comparisons.empty:
            parts.append(_markdown(details(verdict)))
        parts.append(footer(verdict))
    parts.append(
        "Differences are in points, the system minus its rival; intervals are 95%: *these seeds* from a bootstrap over "
        "images, *any seed* with seeds and images drawn anew. The paper's figures, their sources and what trust means: "
        "[published.md](published.md)."
    )
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")
    return verdicts


def _markdown(cells: pd.DataFrame) -> str:
    escaped = cells.map(lambda cell: cell.replace("|", "\\|").replace("_", "\\_"))
    return tabulate(escaped.to_numpy().tolist(), headers=list(cells.columns), tablefmt="pipe", disable_numparse=True)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
