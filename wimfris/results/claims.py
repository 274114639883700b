"""The paper's claims as tests: `reports/claims.yaml` states them, and the records decide them.

A claim is *reproduced* if all its comparisons are separated in its favour, *contradicted* if one is separated against
it, and *undecided* otherwise, which includes claims whose runs are missing. Separated means that the p value for any
seed is below 5% after Holm's correction over the comparisons of all claims. A verdict holds for the data set and scale
of its runs: only runs at the paper's scale on its data test the paper itself.
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

from wimfris.errors import UserError
from wimfris.results.differences import compare, separated
from wimfris.results.published import PAPERS_SET, PUBLISHED, Figure, Published, read_published
from wimfris.results.statistics import holm

CLAIMS = Path("reports/claims.yaml")
SPLIT = "val"
"""The split of every test, which is that of the paper's ablations."""

PAPER = (PAPERS_SET, "base")
"""Data set and scale of the paper's claims: only a verdict there is about the paper itself."""

Decision = Literal["reproduced", "contradicted", "undecided", "true by construction"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rows(_Strict):
    """Rows of published.csv: a label, or one of our variants -> the row's `variant`."""

    table: str
    system: str = "WIMFRIS-B"
    split: str = "val"
    metric: str = "miou"
    rows: dict[str, str]


class _Claim(_Strict):
    name: str
    claim: str
    system: str  # the variant that the claim is about
    note: str = ""
    published: Rows


class Better(_Claim):
    """`system` has a higher mIoU than every rival."""

    kind: Literal["better"]
    rivals: tuple[str, ...] = Field(min_length=1)
    pool: tuple[str, ...] = ()  # other systems of the study's table: their variance between seeds is pooled with these


class Falls(_Claim):
    """The emphasis that `system` learned falls with depth."""

    kind: Literal["falls"]


class Construction(_Claim):
    """The claim holds because our model was built that way."""

    kind: Literal["construction"]
    value: float
    unit: str


Claim = Better | Falls | Construction


@dataclass(frozen=True)
class Verdict:
    """What the evidence says about a claim, at the data set and scale of its records."""

    claim: Claim
    figures: dict[str, Figure]  # the paper's, by label or variant
    dataset: str
    scale: str
    decision: Decision
    reason: str  # a clause, for example "not run: window_8"
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)  # see `judge`; empty if nothing was tested

    @property
    def at_scale(self) -> str:
        """The decision with the scale at which it holds."""
        if isinstance(self.claim, Construction):
            return self.decision
        return f"at scale {self.scale}: {self.decision}{' (not run)' if self.comparisons.empty else ''}"

    @property
    def at_paper_scale(self) -> str:
        """The decision if it was tested at the paper's scale on its data, else "not tested"."""
        if isinstance(self.claim, Construction) or (self.dataset, self.scale) == PAPER:
            return self.decision
        return "not tested"

    @property
    def decisive(self) -> pd.DataFrame:
        """The comparisons that decide the claim: those of mIoU, or of alpha."""
        return _decisive(self.comparisons)


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """Read the claims. Raises `UserError` that names the invalid claim and key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or restore it with git") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path}: not a YAML file; restore it with git") from None
    try:
        claims = TypeAdapter(list[Annotated[Claim, Field(discriminator="kind")]]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        number = first["loc"][0] if first["loc"] else None
        named = isinstance(number, int) and isinstance(content[number], dict)
        name = content[number].get("name", f"number {number + 1}") if named and isinstance(number, int) else "all"
        key = ".".join(str(part) for part in first["loc"][1:] if part not in ("better", "falls", "construction"))
        raise UserError(f"{path}: claim {name}: {key}: {first['msg']}; correct it") from None
    names = [claim.name for claim in claims]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: claim {repeated[0]} occurs twice; rename or remove one")
    return claims


def judge(
    claims: Sequence[Claim],
    records: pd.DataFrame,
    emphasis: pd.DataFrame,
    *,
    resamples: int = 10_000,
    figures: Path = PUBLISHED,
) -> list[Verdict]:
    """Return a verdict for each claim, in order.

    `records` has the columns of `wimfris.runs.records.SCHEMA` and `emphasis` those of
    `wimfris.results.evidence.EMPHASIS`, both for the runs of one data set and scale.

    The comparisons of a `better` claim are rows of `compare` with the sign reversed: `difference`, its intervals and
    `improvement` are those of the system over the rival, named in `rival`, as fractions. A `falls` claim has one
    comparison: `difference`, `any_low`, `any_high` (95% t interval over seeds) and `p` of alpha's fitted change from
    the first to the last layer, `alpha` (layer -> mean alpha after the last epoch) and `seeds`. `p_holm` is corrected
    over the comparisons of all claims in mIoU and alpha; other metrics have none.

    Raises `UserError` if a claim names a published figure that does not exist, or if the records are of several data
    sets or scales or cannot be compared.
    """
    places = records.groupby(["dataset", "scale"], observed=True).size()
    if len(places) != 1:
        raise UserError(f"claims: the records must be of one data set and scale, got {len(places)}; select one")
    dataset, scale = places.index[0]
    published = read_published(figures)
    measured = [_measure(claim, records, emphasis, resamples) for claim in claims]
    family = [(rows, index) for rows in measured for index in _decisive(rows).index]
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
        verdicts.append(Verdict(claim, _figures(claim, published, figures), dataset, scale, decision, reason, rows))
    return verdicts


def _measure(claim: Claim, records: pd.DataFrame, emphasis: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Return the comparisons of a claim, uncorrected; empty if nothing can be tested."""
    if isinstance(claim, Falls):
        return _change(emphasis[emphasis["variant"] == claim.system])
    if not isinstance(claim, Better) or not (rivals := _comparable(claim, records)):
        return pd.DataFrame()
    existing = set(records["variant"].unique())
    pool = [name for name in (*claim.rivals, *claim.pool) if name in existing]
    rows = compare(records, rivals, claim.system, split=SPLIT, resamples=resamples, pool=pool)
    return _reversed(rows).assign(p_holm=np.nan)


def _decisive(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["metric"] == "miou"] if "metric" in rows else rows


def _comparable(claim: Better, records: pd.DataFrame) -> list[str]:
    """Return the rivals that have a seed in common with the system."""
    seeds = {str(variant): set(part["seed"].unique()) for variant, part in records.groupby("variant", observed=True)}
    return [rival for rival in claim.rivals if seeds.get(claim.system, set()) & seeds.get(rival, set())]


def _figures(claim: Claim, published: Published, path: Path) -> dict[str, Figure]:
    place = claim.published
    figures = {}
    for label, row in place.rows.items():
        key = (place.table, place.system, row, PAPERS_SET, place.split, place.metric)
        if key not in published:
            raise UserError(f"claim {claim.name}: {path} has no row {' / '.join(key)}; correct `published`")
        figures[label] = published[key]
    return figures


def _decide_better(claim: Better, rows: pd.DataFrame, records: pd.DataFrame) -> tuple[Decision, str]:
    compared, trained = [] if rows.empty else list(rows["rival"].unique()), set(records["variant"].unique())
    missing = [name for name in (claim.system, *claim.rivals) if name not in trained]
    apart = [name for name in claim.rivals if name not in compared and {name, claim.system} <= trained]
    gaps = [f"not run: {', '.join(missing)}"] if missing else []
    gaps += [f"no seed in common: {', '.join(apart)}"] if apart else []
    if not compared:
        return "undecided", "; ".join(gaps)
    decided = [row for _, row in _decisive(rows).iterrows() if separated(row)]
    against = [row["rival"] for row in decided if row["difference"] < 0]
    favour = [row["rival"] for row in decided if row["difference"] > 0]
    if against:
        decision: Decision = "contradicted"
        reason = f"worse than {', '.join(against)}"
    elif len(favour) == len(claim.rivals):
        decision, reason = "reproduced", f"better than {', '.join(favour)}"
    else:
        decision = "undecided"
        unclear = [rival for rival in compared if rival not in favour]
        reason = f"not separated from {', '.join(unclear)}" if unclear else f"better than {', '.join(favour)}"
    return decision, "; ".join([reason, *gaps])


def _reversed(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn rows of `compare`, rival minus system, into system minus rival."""
    reversed_rows = rows.assign(
        difference=-rows["difference"],
        these_low=-rows["these_high"],
        these_high=-rows["these_low"],
        any_low=-rows["any_high"],
        any_high=-rows["any_low"],
        improvement=1 - rows["improvement"],
        value=rows["baseline_value"],
        rival_value=rows["value"],
    )
    return reversed_rows.rename(columns={"variant": "rival", "baseline": "system"}).drop(columns="baseline_value")


def _change(course: pd.DataFrame) -> pd.DataFrame:
    """Return alpha's change from the first to the last layer over the runs of one variant: one row, none without runs.

    The change of a run is that of a line fitted to alpha after the last epoch, see `judge`.
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
    changes = np.polyfit(depth, alphas.to_numpy(), 1)[0] * (depth[-1] - depth[0])
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
        return "undecided", "only one layer or one seed"
    if not separated(row):
        return "undecided", "not separated from no change"
    return ("reproduced", "falls") if row["difference"] < 0 else ("contradicted", "rises")
