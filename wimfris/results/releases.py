"""Named releases of the evidence, and where the rows of a table came from.

A release names the committed runs.csv files by their hashes (reports/releases.csv). Evidence that is none of them is
called unreleased: runs have been trained since.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from wimfris.errors import UserError
from wimfris.files import file_hash, write_text
from wimfris.results.csv_files import read_csv
from wimfris.results.evidence import REPORTS, EvidenceFiles, evidence_names
from wimfris.runs.manifest import code_revision

COLUMNS = ("release", "date", "commit", "file", "sha256")
UNRELEASED = "unreleased"


@dataclass(frozen=True)
class Origin:
    """Where the runs of a table came from: the release, and the place (commit and machine) of each variant's runs."""

    release: str = ""
    places: Mapping[str, frozenset[str]] = field(default_factory=dict)
    usual: str = ""  # the place of most runs

    def note(self, labels: Mapping[str, str]) -> str:
        """Return where the rows were trained; labels: variant -> its name in the table."""
        elsewhere: dict[str, list[str]] = {}
        for variant, label in labels.items():
            for place in sorted(self.places.get(variant, frozenset()) - {self.usual}):
                elsewhere.setdefault(place, []).append(label)
        if not elsewhere:
            return f"All rows were trained at commit {self.usual}." if "+" in self.usual else ""
        others = "; ".join(f"at {place}: {'; '.join(names)}" for place, names in elsewhere.items())
        return f"Most rows were trained at commit {self.usual}. Exceptions, {others}."


def origin_of(name: str, runs: pd.DataFrame, reports: Path = REPORTS) -> Origin:
    """Return the origin of these rows of runs.csv, of a data set and scale (`name`)."""
    if runs.empty:
        return Origin(release_of(name, reports))
    places = (short_commits(runs["commit"]) + " " + processors(runs)).str.strip()
    by_variant: dict[str, frozenset[str]] = {}
    for variant, place in zip(runs["variant"], places, strict=True):
        by_variant[variant] = by_variant.get(variant, frozenset()) | {place}
    return Origin(release_of(name, reports), by_variant, Counter(places).most_common(1)[0][0])


def processors(runs: pd.DataFrame) -> pd.Series:
    """Return the device of each row of runs.csv, with the instruction set of a CPU."""
    return (runs["device"] + " " + runs["cpu_capability"]).str.strip()


def short_commits(commits: pd.Series) -> pd.Series:
    """Return the first digits of commits, with a + where the run had uncommitted changes."""
    return commits.str[:7] + np.where(commits.str.endswith("+"), "+", "")


def release_of(name: str, reports: Path = REPORTS) -> str:
    """Return the release that the evidence of a data set and scale belongs to, or `UNRELEASED`."""
    path = reports / "releases.csv"
    known = read_csv(path, COLUMNS) if path.is_file() else pd.DataFrame(columns=list(COLUMNS))
    releases = []
    for added in (False, True):
        file = EvidenceFiles(name, added, reports).runs
        if file.is_file():
            rows = known[(known["file"] == file.name) & (known["sha256"] == file_hash(file))]
            releases.append(rows["release"].iloc[-1] if len(rows) else UNRELEASED)
    return releases[0] if len(set(releases)) == 1 else " and ".join(dict.fromkeys(releases)) or UNRELEASED


def write_release(release: str, reports: Path = REPORTS) -> Path:
    """Name the present evidence: add it to releases.csv, and write evidence.md. Raises `UserError` for a used name."""
    path = reports / "releases.csv"
    known = read_csv(path, COLUMNS) if path.is_file() else pd.DataFrame(columns=list(COLUMNS))
    if release in set(known["release"]):
        raise UserError(f"release {release}: this name is used; choose another one")
    files = [EvidenceFiles(name, added, reports).runs for name in evidence_names(reports) for added in (False, True)]
    date, commit = datetime.now(UTC).date().isoformat(), code_revision()["commit"]
    rows = [(release, date, commit, file.name, file_hash(file)) for file in files if file.is_file()]
    table = pd.concat([known, pd.DataFrame(rows, columns=list(COLUMNS))], ignore_index=True)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    lines = [f"# Evidence: release {release}", "", f"Named on {date} at commit {commit}. Its runs:", ""]
    lines += ["| file | runs | commits | machines |", "|:--|--:|:--|:--|"]
    for file in files:
        if file.is_file():
            runs = read_csv(file, keep_default_na=False)
            machines = processors(runs)
            commits = ", ".join(sorted(set(short_commits(runs["commit"]))))
            lines.append(f"| [{file.name}](records/{file.name}) | {len(runs)} | {commits} | {_listed(machines)} |")
    lines += ["", "What a release is, and how it is renewed: [docs/provenance.md](../docs/provenance.md).", ""]
    lines += ["All releases: [releases.csv](releases.csv)."]
    write_text(reports / "evidence.md", "\n".join(lines) + "\n")
    return path


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted(set(values)))
