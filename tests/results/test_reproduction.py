"""This machine's results beside the committed ones: equal bits, what seeds scatter, systems and verdicts that moved."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.comparison import Study
from wimfris.results.reproduction import Reproduction, reproduction
from wimfris.results.studies import load_study
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow

CORE = "scenes-tiny"


@pytest.fixture
def checkout(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the committed evidence as its only commit, as the working directory."""
    for name in ("params.yaml", "reports", "studies"):
        copy = shutil.copytree if (committed / name).is_dir() else shutil.copy
        copy(committed / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "evidence")):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def compare() -> Reproduction | str:
    study = load_study("core")
    assert isinstance(study, Study)
    return reproduction(read_params(), study)


def retrain(folder: Path, scale: dict[str, float], fingerprint: str | None = None) -> None:
    """Rewrite the working tree's evidence as another machine would: intersections times a factor by variant."""
    records = folder / "reports" / "records"
    frame = pd.read_parquet(records / f"{CORE}.parquet")
    factor = frame["variant"].astype(str).map(scale).fillna(1.0).astype(float)
    frame["intersection"] = np.floor(frame["intersection"] * factor).astype(frame["intersection"].dtype)
    frame.to_parquet(records / f"{CORE}.parquet", index=False)
    runs = pd.read_csv(records / f"{CORE}-runs.csv", keep_default_na=False)
    runs["minutes"] = runs["minutes"] + 1
    runs.loc[runs["variant"].isin(list(scale)), "records"] = "sha256:other"
    if fingerprint:
        runs["fingerprint"] = fingerprint
    runs.to_csv(records / f"{CORE}-runs.csv", index=False)


def test_a_clone_is_no_reproduction(checkout: Path) -> None:
    assert "the committed evidence itself" in str(compare())


def test_without_committed_evidence_there_is_nothing_to_compare(checkout: Path) -> None:
    """As at a scale or data set of one's own, at the end of `make repro`."""
    subprocess.run(["git", "rm", "-r", "-q", "--cached", "reports/records"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "none"], check=True)
    assert compare() == f"the last commit has no evidence of {CORE} to compare with"


def test_the_same_bits_from_another_training_are_a_reproduction(checkout: Path) -> None:
    retrain(checkout, {})
    result = compare()
    assert result is not None
    params = read_params()
    runs, others = len(params.runs()), len(params.variants) - 1
    assert result.equal == result.runs == runs
    assert f"all {runs} runs are bit for bit the same; {others} of {others} verdicts the same" in result.summary


def test_a_difference_as_small_as_between_seeds_is_a_reproduction(checkout: Path) -> None:
    retrain(checkout, {"full": 0.995}, fingerprint="new")
    result = compare()
    assert result is not None
    row = result.systems.set_index("system").loc["full"]
    assert -0.01 < row["difference"] < 0 and result.outside == []
    runs = len(read_params().runs())
    assert result.equal == runs - 3 and "within what seeds scatter" in result.summary
    assert f"code, settings or data of {runs} of {runs} runs" in result.notes()[0], "said first"


def test_a_system_beyond_the_scatter_of_seeds_is_named(checkout: Path) -> None:
    retrain(checkout, {"no_window": 0.5})
    result = compare()
    assert result is not None
    assert result.outside == ["no window"]
    assert result.summary.startswith("not reproduced: no window ")
    assert result.moved.empty, "the comparisons of this machine are those of reports/comparisons"


def test_the_bound_is_that_of_two_means_over_seeds(checkout: Path) -> None:
    """Two sets of fresh seeds of one distribution lie within all bounds about 95% of the time."""
    from scipy import stats

    systems, seeds, level = len(read_params().variants), 3, 0.95
    draws = np.random.default_rng(0).normal(size=(4000, 2, systems, seeds))
    deviation = np.sqrt(draws.var(axis=3, ddof=1).mean(axis=(1, 2)))
    quantile = stats.t.ppf(1 - (1 - level) / 2 / systems, 2 * systems * (seeds - 1))
    difference = np.abs(draws.mean(axis=3)[:, 0] - draws.mean(axis=3)[:, 1])
    within = (difference <= quantile * deviation[:, None] * np.sqrt(2 / seeds)).all(axis=1).mean()
    assert 0.94 < within < 0.965
    retrain(checkout, {})
    result = compare()
    assert result is not None
    before = pd.read_parquet(checkout / "reports" / "records" / f"{CORE}.parquet")
    own = before[(before["split"] == "val") & (before["condition"] == "sentence")]
    runs = own.assign(iou=own["intersection"] / own["union"].clip(lower=1)).groupby(["variant", "seed"], observed=True)
    pooled = np.sqrt(runs["iou"].mean().groupby("variant", observed=True).var(ddof=1).mean())
    assert result.systems["bound"].iloc[0] == pytest.approx(quantile * pooled * np.sqrt(2 / seeds), rel=0.01)


def test_outside_a_repository_the_message_says_what_to_do(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(committed)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(committed.parent))
    with pytest.raises(UserError, match="clone the repository with git"):
        compare()
