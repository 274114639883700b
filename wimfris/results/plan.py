"""What is decided before the runs: reports/claims.yaml, its hash, and what has changed since confirmatory runs began.

The plan declares the paper's claims with their margins, the two tiers of comparisons, and the looks. Its hash covers
what can change a verdict, and no words. `wimfris settle --run` registers the plan before the first confirmatory run
(reports/registration.yaml); every later change is a deviation, which the report shows.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.runs.manifest import code_revision

CLAIMS = Path("reports/claims.yaml")
REGISTRATION = Path("reports/registration.yaml")
SPLIT, METRIC = "val", "miou"
"""The split of every verdict, and its metric unless a claim names another: those of the paper's ablations."""

_WORDS = {"claim", "note", "published", "unit"}  # keys that change no verdict


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
    """`system` is better than every rival, in mIoU or in the metric that the claim names."""

    kind: Literal["better"]
    rivals: tuple[str, ...] = Field(min_length=1)
    metric: Literal["miou", "right", "iou_right"] = "miou"
    margin: float | None = Field(default=None, gt=0)  # points of the metric; by default the plan's smallest_effect
    grids: dict[str, int] = Field(default_factory=dict)  # rival -> the smallest side of the grid at which it counts

    def rivals_at(self, side: int) -> tuple[str, ...]:
        """Return the rivals that count on an encoder's grid of this side."""
        return tuple(rival for rival in self.rivals if side >= self.grids.get(rival, 1))


class Falls(_Claim):
    """The emphasis that `system` learned falls with depth, by `margin` in the paper."""

    kind: Literal["falls"]
    margin: float = Field(gt=0)  # of alpha, first layer minus last


class Construction(_Claim):
    """The claim holds because our model was built that way."""

    kind: Literal["construction"]
    value: float
    unit: str


Claim = Better | Falls | Construction


class Confirmatory(_Strict):
    """The primary tier: the seeds that decide the claims, in the order of training, and how many each look has."""

    seeds: tuple[int, ...]
    looks: tuple[int, int]

    @model_validator(mode="after")
    def _check(self) -> "Confirmatory":
        first, final = self.looks
        if not 2 <= first < final <= len(set(self.seeds)) == len(self.seeds):
            raise ValueError(
                "looks must be two growing numbers of at least 2 and at most as many as the distinct seeds"
            )
        return self


class Exploratory(_Strict):
    """The other tier: its seeds, its false discovery rate, and what makes the family."""

    seeds: tuple[int, ...]
    q: float = Field(gt=0, lt=1)
    studies: tuple[str, ...]
    variants: tuple[str, ...] = ()  # of no study, compared with full


class Plan(_Strict):
    """The whole file."""

    level: float = Field(gt=0, lt=1)  # the error of all claims together
    smallest_effect: float = Field(gt=0)  # points
    confirmatory: Confirmatory
    exploratory: Exploratory
    labels: dict[str, str] = Field(default_factory=dict)  # variant -> its name in sentences
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        names = [claim.name for claim in self.claims]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"claim {repeated[0]} occurs twice; rename or remove one")
        pairs = [(claim.metric, *sorted((claim.system, rival))) for claim in self.better for rival in claim.rivals]
        twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
        if twice:
            both = " and ".join(twice[1:])
            raise ValueError(f"{both} are compared by two claims; keep one, or they get two verdicts")
        shared = set(self.confirmatory.seeds) & set(self.exploratory.seeds)
        if shared:
            raise ValueError(f"seed {min(shared)} stands in both tiers; confirmatory seeds must be fresh")
        return self

    @property
    def better(self) -> list[Better]:
        """The claims that compare systems."""
        return [claim for claim in self.claims if isinstance(claim, Better)]

    @property
    def tested(self) -> int:
        """C: how many claims runs can test."""
        return sum(not isinstance(claim, Construction) for claim in self.claims)

    @property
    def alpha(self) -> float:
        """The error of one claim (Bonferroni)."""
        return self.level / self.tested

    def label(self, variant: str) -> str:
        """Return the name of a variant in sentences."""
        return self.labels.get(variant, variant)

    def margin(self, claim: Claim) -> float:
        """Return the margin of a claim: a fraction of its metric, or of alpha."""
        if isinstance(claim, Falls):
            return claim.margin
        return ((claim.margin if isinstance(claim, Better) else None) or self.smallest_effect) / 100

    def systems_of(self, claim: Claim, side: int) -> list[str]:
        """Return the variants whose runs test a claim on an encoder's grid of this side."""
        rivals = claim.rivals_at(side) if isinstance(claim, Better) else ()
        return [] if isinstance(claim, Construction) else [claim.system, *rivals]

    def content(self) -> dict[str, Any]:
        """Return what decides verdicts: key -> value, keys joined by dots.

        The default metric is left out: plans that were registered before the key existed do not hold it.
        """
        rows = self.model_dump(mode="json", exclude={"labels"})
        claims = {
            row["name"]: {k: v for k, v in row.items() if k not in _WORDS and (k, v) != ("metric", METRIC)}
            for row in rows.pop("claims")
        }
        return dict(_flat(rows | {"claims": claims}))

    @property
    def hash(self) -> str:
        """The first 12 digits of the SHA-256 of `content`."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:12]


def read_plan(path: Path = CLAIMS) -> Plan:
    """Read the plan. Raises `UserError` that names the invalid claim and key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or restore it with git") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path}: not a YAML file; restore it with git") from None
    try:
        return TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("better", "falls", "construction")]
        if len(place) > 1 and place[0] == "claims" and place[1].isdigit():
            row = content["claims"][int(place[1])]
            place = [f"claim {row.get('name', place[1]) if isinstance(row, dict) else place[1]}", *place[2:]]
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {': '.join([*place, message])}; correct it") from None


# --- registration -----------------------------------------------------------------------------------------------------


def register(plan: Plan, path: Path = REGISTRATION) -> bool:
    """Write down the plan if it is not yet, and return whether it was written."""
    if path.is_file():
        return False
    commit, date = code_revision()["commit"], datetime.now(UTC).date().isoformat()
    head = f"# Written by `wimfris settle --run` before the first confirmatory run; {CLAIMS} at that time.\n"
    content = {"hash": plan.hash, "date": date, "commit": commit, "plan": plan.content()}
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
    return True


def registration_lines(plan: Plan, path: Path = REGISTRATION) -> list[str]:
    """Return what the report says of the plan: its hash, when it was registered, and each deviation, as Markdown."""
    if not path.is_file():
        return [f"Plan `{plan.hash}`, not registered yet: no confirmatory run has begun."]
    known = yaml.safe_load(path.read_text(encoding="utf-8"))
    head = f"Plan `{plan.hash}`; registered as `{known['hash']}` on {known['date']} at commit {known['commit'][:7]}"
    before, now = known["plan"], plan.content()
    changes = [
        f"- {key}: {before.get(key, 'absent')} at the registration, now {now.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if not changes:
        return [f"{head}. No deviation since."]
    return [f"{head}. Deviations since:", "", *changes]


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
