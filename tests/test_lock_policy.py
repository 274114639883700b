"""The policy of docs/provenance.md, held for the history: dvc.lock changes with the evidence or with attestations."""

import fnmatch
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
POLICY = "docs/provenance.md"
LOCKS = ("dvc.lock", "studies/dvc.lock")
EVIDENCE, ATTESTATIONS = "reports/records/*-runs.csv", "reports/attestations.csv"


def git(folder: Path, *arguments: str) -> str:
    """Return what git printed; nothing where it failed, as for a file that a commit does not have."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=False
    ).stdout.strip()


def training(folder: Path, commit: str, lock: str) -> dict[str, Any]:
    """Return the entries of stage `train` in a commit's lock file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(git(folder, "show", f"{commit}:{lock}"), loader) or {}
    return {name: entry for name, entry in content.get("stages", {}).items() if name.startswith("train")}


def violations(folder: Path) -> list[str]:
    """Return the commits since the policy that change an entry of `train` without new evidence or an attestation.

    The policy begins with the commit that added its document. In a shallow clone that is the oldest commit there is.
    """
    [*_, first] = git(folder, "log", "--diff-filter=A", "--format=%H", "--", POLICY).split() or [""]
    bad = []
    for commit in git(folder, "log", "--no-merges", "--format=%H", f"{first}..HEAD", "--", *LOCKS).split():
        added = {
            path: int(lines)
            for lines, _, path in (
                line.split("\t") for line in git(folder, "show", "--format=", "--numstat", commit).splitlines()
            )
            if lines.isdigit()
        }
        if fnmatch.filter(added, EVIDENCE) or added.get(ATTESTATIONS):
            continue
        for lock in LOCKS:
            before = training(folder, f"{commit}^", lock)
            entries = training(folder, commit, lock)
            changed = [name for name, entry in entries.items() if before.get(name) != entry]
            bad += [f"{commit[:9]}: {lock}: {name}" for name in changed]
    return bad


def test_every_commit_since_the_policy_keeps_it() -> None:
    if not git(ROOT, "log", "--format=%H", "-1", "--", POLICY):
        pytest.skip(f"no git history of {POLICY} here")
    assert violations(ROOT) == []


def test_what_the_policy_allows_and_what_not(tmp_path: Path) -> None:
    def commit(subject: str, **files: str) -> str:
        for name, text in files.items():
            path = tmp_path / {"lock": "dvc.lock", "attestations": ATTESTATIONS}.get(name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message", subject)
        return git(tmp_path, "rev-parse", "HEAD")[:9]

    def lock(train: str, tables: str = "a") -> str:
        return yaml.safe_dump({"stages": {"train@full-0": {"deps": train}, "tables": {"deps": tables}}})

    runs = EVIDENCE.replace("*", "scenes-tiny")
    git(tmp_path, "init", "--quiet")
    commit("before the policy", lock=lock("a"))
    commit("signed before the policy", lock=lock("b"))
    commit("the policy", **{POLICY: "# Provenance\n"})
    commit("retrained", lock=lock("c"), **{runs: "run\nfull-0\n"})
    commit("attested", lock=lock("d"), attestations="run\nfull-0\n")
    commit("other stages", lock=lock("d", tables="b"))
    assert violations(tmp_path) == []
    signed = commit("signed", lock=lock("e"))
    emptied = commit("rows removed", lock=lock("f"), attestations="")
    assert violations(tmp_path) == [f"{emptied}: dvc.lock: train@full-0", f"{signed}: dvc.lock: train@full-0"]
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "2", f"file://{tmp_path}", str(shallow))
    assert violations(shallow) == [f"{emptied}: dvc.lock: train@full-0"]
