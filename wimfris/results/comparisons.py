"""Every comparison of the report, computed once: reports/comparisons/<set>-<scale>.csv.

`wimfris compare` writes the file, and every table, figure, page and text quotes it. A row is a pair of systems in one
metric on one split. Val mIoU, or the metric that a claim names, has a tier and a verdict; other splits and metrics have
95% intervals and none:

* *primary*, the comparisons that the claims of reports/claims.yaml are made of. Their level is 1 - level / C for C
  claims, spent over two looks at confirmatory seeds (`wimfris.results.looks`). Before the first look the row shows the
  exploratory seeds at the same level, and decides nothing;
* *exploratory*, every other comparison of the studies: one family, on the exploratory seeds. Benjamini and Hochberg's
  procedure selects, and the intervals are adjusted to it, so that the interval in the row is the one that decides;
* *control*, a comparison with a control of params.yaml, which is no finding: it counts in no family, and its 95%
  interval has no verdict (studies/controls.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.csv_files import read_csv
from wimfris.results.differences import Difference, Pair, compare
from wimfris.results.evidence import REPORTS
from wimfris.results.plan import METRIC, SPLIT
from wimfris.results.scores import run_scores
from wimfris.runs.records import SPLITS

PRIMARY, EXPLORATORY, CONTROL, NO_TIER = "primary", "exploratory", "control", ""
ALPHA, DEPTH = "alpha", "last layer"  # metric and rival of the claim on the learned emphasis
COLUMNS = (
    *("tier", "claim", "split", "metric", "system", "rival", "seeds", "rival_seeds", "images", "sentences"),
    *("value", "rival_value", "difference", "these_low", "these_high"),  # 95% for these seeds
    *("low", "high", "error"),  # the interval for any seed, of level 1 - error: the one that decides, and is shown
    *("low_any", "high_any", "error_any"),  # that for what any one of a claim's several rivals can cause
    *("seed_variance", "image_variance", "p", "detectable", "improvement"),
    "margin",  # of the claim
    "look",  # 0: no look yet, exploratory seeds; 1 or 2
    "ready",  # confirmatory seeds that all systems of the claim have
    "verdict",  # higher, lower or undecided; empty without a tier or an interval
    "verdict_without_own",  # the same if one's own studies, which claims.yaml does not list, were not there
)
_WORDS = ("tier", "claim", "split", "metric", "system", "rival", "verdict", "verdict_without_own")
_FLIPPED = {"higher": "lower", "lower": "higher"}
UNADJUSTED = 0.05
"""One minus the level of an interval without a tier."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparisons:
    """The rows of a file, see `COLUMNS`."""

    frame: pd.DataFrame

    def quote(self, system: str, rival: str, split: str = SPLIT, metric: str = METRIC) -> Row | None:
        """Return the row of a comparison as system minus rival, whichever way it stands in the file; None without."""
        if (row := self._rows.get((system, rival, split, metric))) is not None:
            return row
        row = self._rows.get((rival, system, split, metric))
        return None if row is None else _flipped(row)

    @property
    def primary(self) -> pd.DataFrame:
        """The rows that decide claims."""
        return self.frame[self.frame["tier"] == PRIMARY]

    @property
    def exploratory(self) -> pd.DataFrame:
        """The rows of the exploratory family."""
        return self.frame[self.frame["tier"] == EXPLORATORY]

    @classmethod
    def of_pairs(cls, records: pd.DataFrame, pairs: Iterable[Pair]) -> "Comparisons":
        """Return the comparisons of these pairs alone, without a tier."""
        return cls(rows_frame([])).with_pairs(records, pairs)

    def with_pairs(self, records: pd.DataFrame, pairs: Iterable[Pair]) -> "Comparisons":
        """Return these comparisons and those of further pairs, computed from the records and without a tier."""
        systems = set(records["variant"].unique())
        new = [
            pair
            for pair in dict.fromkeys(pairs)
            if systems.issuperset(pair) and pair[0] != pair[1] and self.quote(*pair) is None
        ]
        rows = [
            comparison_row(difference, NO_TIER, UNADJUSTED)
            for split in splits_of(records)
            for difference in compare(records, new, split)
        ]
        return Comparisons(pd.concat([self.frame, rows_frame(rows)], ignore_index=True)) if rows else self

    def for_study(self, records: pd.DataFrame, pairs: Sequence[Pair], seeds: Sequence[int]) -> "Comparisons":
        """Return `with_pairs`. Raises `UserError` where a comparison of the file rests on other runs than the records.

        seeds: those of the exploratory tier. Comparisons after a look rest on confirmatory seeds and are not checked.
        """
        scores = run_scores(records[records["seed"].isin(seeds)], SPLIT)
        for pair in pairs:
            row = self.quote(*pair)
            if row is None or row["look"] > 0:
                continue
            for variant, names in zip(pair, (("seeds", "value"), ("rival_seeds", "rival_value")), strict=True):
                own = scores[scores.index.get_level_values("variant") == variant].droplevel("variant")
                same = " ".join(map(str, own.index)) == row[names[0]]
                if not same or not np.isclose(own.mean(), row[names[1]], atol=1e-5, rtol=0):
                    raise UserError(
                        f"comparison of {' and '.join(pair)}: computed from other runs of {variant} than the evidence "
                        "holds now; run `wimfris compare`"
                    )
        return self.with_pairs(records, pairs)

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], Row]:
        rows: list[Any] = self.frame.to_dict("records")
        return {tuple(row[name] for name in ("system", "rival", "split", "metric")): row for row in rows}


def comparisons_path(name: str, reports: Path = REPORTS) -> Path:
    """Return the path of the file of a data set and scale (`name`, for example scenes-tiny)."""
    return reports / "comparisons" / f"{name}.csv"


def read_comparisons(name: str, reports: Path = REPORTS) -> Comparisons:
    """Read the comparisons of a data set and scale. Raises `UserError` where the file is missing or damaged."""
    path = comparisons_path(name, reports)
    if not path.is_file():
        raise UserError(f"{path}: no such comparisons; write them with `wimfris compare`")
    frame = read_csv(path, COLUMNS, dtype=dict.fromkeys((*_WORDS, "seeds", "rival_seeds"), str))
    return Comparisons(frame.fillna(dict.fromkeys([*_WORDS, "seeds", "rival_seeds"], "")))


def write_comparisons(comparisons: Comparisons, name: str, reports: Path = REPORTS) -> Path:
    """Write the file of a data set and scale. Its bytes depend on the comparisons alone."""
    path = comparisons_path(name, reports)
    write_text(path, comparisons.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return path


def comparison_row(difference: Difference, tier: str, error: float, error_any: float | None = None) -> Row:
    """Return a row, without what its claim adds; see `COLUMNS`.

    error_any: of the interval for what any one of several rivals can cause. A difference that is not above 0 can only
    cause such things, so it is shown with that interval.
    """
    one = difference.any_seed
    error_any = error if error_any is None else error_any
    error = error if one.difference > 0 else error_any
    half, half_any = one.half_width(error), one.half_width(error_any)
    most = 1.0  # no difference of fractions is larger, and two seeds give intervals that are
    row: Row = {
        "tier": tier,
        "claim": "",
        "split": difference.split,
        "metric": difference.metric,
        "system": difference.pair[0],
        "rival": difference.pair[1],
        "seeds": difference.seeds,
        "rival_seeds": difference.rival_seeds,
        "images": difference.images,
        "sentences": difference.sentences,
        "value": difference.value,
        "rival_value": difference.rival_value,
        "difference": one.difference,
        "these_low": difference.these_low,
        "these_high": difference.these_high,
        "low": max(one.difference - half, -most),
        "high": min(one.difference + half, most),
        "error": error,
        "low_any": max(one.difference - half_any, -most),
        "high_any": min(one.difference + half_any, most),
        "error_any": error_any,
        "seed_variance": one.seed_variance,
        "image_variance": one.image_variance,
        "p": one.p(),
        "detectable": one.detectable(error),
        "improvement": difference.improvement,
        "verdict": "",
        "verdict_without_own": "",
    }
    if tier and not np.isnan(half):
        row["verdict"] = "higher" if row["low"] > 0 else "lower" if row["high_any"] < 0 else "undecided"
    return row


def rows_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a frame of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS))


def splits_of(records: pd.DataFrame) -> list[str]:
    """Return the splits of evaluation in the records, val first."""
    return [split for split in SPLITS[1:] if (records["split"] == split).any()]


def _flipped(row: Row) -> Row:
    """Return the row of the same comparison with system and rival exchanged."""
    ends = {name: -row[other] for name, other in _mirrored(("these_low", "these_high"), ("low", "high"),
                                                             ("low_any", "high_any"))}  # fmt: skip
    swapped = {name: row[other] for name, other in _mirrored(("system", "rival"), ("seeds", "rival_seeds"),
                                                              ("value", "rival_value"))}  # fmt: skip
    words = {name: _FLIPPED.get(row[name], row[name]) for name in ("verdict", "verdict_without_own")}
    numbers = {"difference": -row["difference"], "improvement": 1 - row["improvement"]}
    return row | ends | swapped | words | numbers


def _mirrored(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return [names for pair in pairs for names in (pair, pair[::-1])]
