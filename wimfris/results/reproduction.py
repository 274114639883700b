"""This machine's results of the core beside the committed ones: what `make repro` ends with."""

import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from wimfris.errors import UserError
from wimfris.results.comparison import Study
from wimfris.results.comparisons import Comparisons, read_comparisons
from wimfris.results.evidence import REPORTS, Evidence, evidence_names, read_evidence
from wimfris.results.formats import Section
from wimfris.results.releases import release_of
from wimfris.results.scores import by_seed
from wimfris.settings.params import Params

LEVEL = 0.95  # that all systems together lie within their bounds, if only seeds scatter
SPLIT = "val"
COMMITTED = ("comparisons", "records", "releases.csv")


@dataclass(frozen=True)
class Reproduction:
    """The core's results of this machine (`here`) beside those of a commit.

    systems: a row per system, with its mIoU in both, their difference and the bound that seeds explain, as fractions.
    verdicts: a row per comparison of the study `core`, with both verdicts.
    """

    release: str
    commits: tuple[str, ...]  # at which the committed runs were trained
    runs: int
    changed: int  # runs whose fingerprint is another one: their code, settings, data or encoders have changed
    equal: int  # runs with the same records, bit for bit
    systems: pd.DataFrame  # system, committed, here, difference, bound
    verdicts: pd.DataFrame  # split, system, committed, here

    @property
    def outside(self) -> list[str]:
        """The systems that differ by more than seeds scatter."""
        return list(self.systems.loc[self.systems["difference"].abs() > self.systems["bound"], "system"])

    @property
    def moved(self) -> pd.DataFrame:
        """The comparisons whose verdict is another one here."""
        return self.verdicts[self.verdicts["committed"] != self.verdicts["here"]]

    @property
    def summary(self) -> str:
        """One sentence: reproduced or not, and how many verdicts are the same."""
        total, same = len(self.verdicts), len(self.verdicts) - len(self.moved)
        verdicts = f"{same} of {total} verdicts the same"
        if self.equal == self.runs:
            return f"reproduced: all {self.runs} runs are bit for bit the same; {verdicts}"
        if not self.outside:
            return f"reproduced: all {len(self.systems)} systems lie within what seeds scatter; {verdicts}"
        return f"not reproduced: {', '.join(self.outside)} differ by more than seeds scatter; {verdicts}"

    def notes(self) -> list[str]:
        """Return what a reader must know before the table."""
        notes = []
        if self.changed:
            notes.append(
                f"The code, settings or data of {self.changed} of {self.runs} runs have changed since release "
                f"{self.release} (trained at {', '.join(self.commits)}). A difference may come from that."
            )
        notes.append(f"{self.equal} of {self.runs} runs have the same records, bit for bit.")
        return notes

    def section(self) -> Section:
        """Return the table of systems."""
        cells = pd.DataFrame(
            {
                "system": self.systems["system"],
                "committed": [f"{100 * value:.1f}" for value in self.systems["committed"]],
                "here": [f"{100 * value:.1f}" for value in self.systems["here"]],
                "difference": [f"{100 * value:+.1f}" for value in self.systems["difference"]],
                "seeds scatter": [f"±{100 * value:.1f}" for value in self.systems["bound"]],
            }
        )
        return Section(
            f"mIoU on {SPLIT} in percent: release {self.release} and this machine",
            f"Seeds scatter: {LEVEL:.0%} of the time no system differs by more, if both columns are means over fresh "
            "seeds of one distribution.",
            cells,
            left=("system",),
        )

    def verdict_lines(self) -> list[str]:
        """Return one line per verdict that moved."""
        return [f"{row.split}, {row.system}: {row.committed}, here {row.here}" for row in self.moved.itertuples()]


def reproduction(params: Params, study: Study, reports: Path = REPORTS) -> Reproduction | str:
    """Compare the core's evidence in `reports` with that of the last commit, or say why there is nothing to compare:
    nothing is committed, or it is the same evidence, so that no clone passes for a reproduction.

    Raises UserError where `reports` has no evidence, or outside a git repository.
    """
    name, names = params.settings().folder.name, [str(run) for run in params.runs()]
    here = read_evidence(params, reports).select(names)
    with committed_reports() as folder:
        if name not in evidence_names(folder):
            return f"the last commit has no evidence of {name} to compare with"
        before = read_evidence(params, folder).select(names)
        quoted = read_comparisons(name, folder)
        release = release_of(name, folder)
    shared = sorted(set(before.runs["run"]) & set(here.runs["run"]))
    if not shared:
        return f"no run of the core of {name} is both in reports/ and, with these settings, in the last commit"
    before, here = before.select(shared), here.select(shared)
    if before.runs.equals(here.runs):  # a run that was trained again has another commit or time
        return "reports/ holds the committed evidence itself: no result of this machine to compare; run `make repro`"
    merged = before.runs.merge(here.runs, on="run", suffixes=("_committed", "_here"))
    return Reproduction(
        release,
        tuple(sorted(set(before.runs["commit"].str[:7]))),
        runs=len(shared),
        changed=int((merged["fingerprint_committed"] != merged["fingerprint_here"]).sum()),
        equal=int((merged["records_committed"] == merged["records_here"]).sum()),
        systems=_systems(before, here, study),
        verdicts=_verdicts(quoted, read_comparisons(name, reports), study),
    )


@contextmanager
def committed_reports() -> Iterator[Path]:
    """Yield a folder with reports/ as committed. Raises UserError outside a git repository."""
    paths = _git("ls-tree", "--name-only", "HEAD", *(str(REPORTS / name) for name in COMMITTED)).decode().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        if paths:
            with tarfile.open(fileobj=BytesIO(_git("archive", "HEAD", *paths))) as archive:
                archive.extractall(folder, filter="data")
        yield Path(folder) / REPORTS


def _git(*command: str) -> bytes:
    result = subprocess.run(["git", *command], capture_output=True, check=False)
    if result.returncode:
        reason = result.stderr.decode("utf-8", "replace").strip()
        raise UserError(f"the committed evidence cannot be read ({reason}); clone the repository with git")
    return result.stdout


def _systems(before: Evidence, here: Evidence, study: Study) -> pd.DataFrame:
    """Return mIoU of both, their difference and its simultaneous bound.

    Two means over n seeds differ with a standard deviation of s sqrt(2 / n), where s is the seeds' standard deviation,
    pooled over all systems and both sets of runs. The bound is Bonferroni's over the systems, with Student's t.
    """
    labels = {row.variant: row.label for row in study.rows}
    rows, squares, freedom = [], 0.0, 0
    for variant, label in labels.items():
        seeds = [_by_seed(evidence, variant) for evidence in (before, here)]
        if any(part.empty for part in seeds):
            continue
        for part in seeds:
            squares, freedom = squares + (len(part) - 1) * np.nan_to_num(part.var(ddof=1)), freedom + len(part) - 1
        rows.append({"system": label, "committed": seeds[0].mean(), "here": seeds[1].mean(), "n": len(seeds[0])})
    frame = pd.DataFrame(rows)
    quantile = stats.t.ppf(1 - (1 - LEVEL) / 2 / len(frame), freedom) if freedom else np.inf
    deviation = np.sqrt(squares / freedom) if freedom else np.inf
    frame["difference"] = frame["here"] - frame["committed"]
    frame["bound"] = quantile * deviation * np.sqrt(2 / frame["n"])
    return frame.drop(columns="n")


def _by_seed(evidence: Evidence, variant: str) -> pd.Series:
    records = evidence.records
    part = records[(records["variant"] == variant) & (records["split"] == SPLIT)]
    return pd.Series(dtype=float) if part.empty else by_seed(part)["miou"]


def _verdicts(before: Comparisons, here: Comparisons, study: Study) -> pd.DataFrame:
    """Return both verdicts of every comparison of the study."""
    rows = []
    for row in study.rows:
        quoted = [one.quote(row.variant, study.baseline) for one in (before, here)]
        if all(one and one["verdict"] for one in quoted):
            verdicts = [one["verdict"] for one in quoted if one]
            rows.append({"split": SPLIT, "system": row.label, "committed": verdicts[0], "here": verdicts[1]})
    return pd.DataFrame(rows, columns=["split", "system", "committed", "here"])
