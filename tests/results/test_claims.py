"""Claims: planted effects give the right verdicts, missing runs are named, and tiny never speaks for the paper."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from wimfris.errors import UserError
from wimfris.results.claims import CLAIMS, Better, Construction, Verdict, judge, read_claims
from wimfris.results.claims_tables import details, write_claims
from wimfris.results.comparison import Study
from wimfris.results.differences import compare
from wimfris.results.published import PUBLISHED
from wimfris.results.statistics import holm
from wimfris.results.studies import load_studies
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / PUBLISHED
ALL = read_claims(ROOT / CLAIMS)


def simulate(
    shifts: dict[str, float], seeds: int = 3, images: int = 60, scale: str = "tiny", dataset: str = "scenes"
) -> pd.DataFrame:
    """Simulate records, variant -> planted shift in mIoU, with random effects of image and seed."""
    rng = np.random.default_rng(0)
    counts = 1 + rng.poisson(2, images)
    image = np.repeat(np.arange(images), counts)
    base = np.clip(0.5 + 0.15 * rng.normal(size=images)[image], 0.2, 0.8)
    parts = []
    for variant, shift in shifts.items():
        for seed in range(seeds):
            iou = np.clip(base + shift + 0.003 * rng.normal() + 0.02 * rng.normal(size=image.size), 0, 1)
            frame = pd.DataFrame(
                {"ref_id": image, "sent_id": np.arange(image.size), "image_id": image, "intersection": iou * 10000}
            ).astype(int)
            parts.append(
                frame.assign(
                    run=f"{variant}-{seed}",
                    variant=variant,
                    seed=seed,
                    dataset=dataset,
                    scale=scale,
                    protocol="cris",
                    split="val",
                    condition="sentence",
                    sentence="thing",
                    kind="",
                    target_area=100,
                    union=10000,
                )
            )
    return pd.concat(parts, ignore_index=True)


def emphasis(slope: float, seeds: int = 3, noise: float = 0.01) -> pd.DataFrame:
    """Simulate alpha of three layers over two epochs: 0.5 after the first, the planted slope after the last."""
    rng = np.random.default_rng(1)
    rows = [
        {"run": f"full-{seed}", "variant": "full", "seed": seed, "epoch": epoch, "layer": layer}
        | {"alpha": 0.5 + (epoch - 1) * (slope * (layer - 3) + noise * rng.normal())}
        for seed in range(seeds)
        for epoch in (1, 2)
        for layer in (1, 3, 5)
    ]
    return pd.DataFrame(rows)


def verdicts(records: pd.DataFrame, alphas: pd.DataFrame | None = None) -> dict[str, Verdict]:
    alphas = emphasis(-0.05) if alphas is None else alphas
    return {v.claim.name: v for v in judge(ALL, records, alphas, resamples=200, figures=FIGURES)}


def everything() -> dict[str, float]:
    """Return every variant that a claim names, with a shift of 0."""
    return {name: 0.0 for claim in ALL for name in (claim.system, *(claim.rivals if isinstance(claim, Better) else ()))}


def test_the_file_names_variants_that_exist_and_holds_the_papers_claims() -> None:
    params = read_params(ROOT / "params.yaml")
    assert set(everything()) <= params.variants.keys() | params.extended.keys()
    assert len(ALL) == 12 and all(len(verdict.figures) for verdict in verdicts(simulate(everything())).values())


def test_planted_effects_give_the_right_verdicts() -> None:
    shifts = everything() | {"no_neck": -0.1, "msa": 0.1, "kernels_333": -0.1, "placement_late": 0.1, "window_2": -0.1}
    shifts |= {"window_8": -0.1, "placement_early": -0.1}
    assert {name: verdict.decision for name, verdict in verdicts(simulate(shifts)).items()} == {
        "window_best": "reproduced",
        "window_helps": "undecided",
        "msa_helps": "reproduced",
        "emphasis_helps": "contradicted",
        "mta_helps": "undecided",
        "kernels_best": "undecided",  # better than one of four rivals, and "best" needs all
        "spread_best": "contradicted",  # one rival is enough
        "hmf_helps_etris": "undecided",
        "hmf_helps_detris": "undecided",
        "neck_matters": "reproduced",
        "emphasis_falls": "reproduced",
        "parameters": "true by construction",
    }


def test_effect_and_intervals_are_the_systems_over_its_rival() -> None:
    rows = verdicts(simulate(everything() | {"no_neck": -0.1}))["neck_matters"].comparisons
    row = rows[rows["metric"] == "miou"].iloc[0]
    assert row["difference"] == pytest.approx(0.1, abs=0.01)
    assert row["value"] - row["rival_value"] == pytest.approx(row["difference"])
    for interval in ("these", "any"):
        assert row[f"{interval}_low"] < row["difference"] < row[f"{interval}_high"]
    assert row["improvement"] > 0.7


def test_the_correction_is_over_the_comparisons_of_all_claims() -> None:
    judged = verdicts(simulate(everything()))
    rows = pd.concat([verdict.comparisons for verdict in judged.values()])
    decisive = rows[rows["p_holm"].notna()]
    assert set(decisive["metric"].dropna()) == {"miou"}
    assert len(decisive) == sum(len(claim.rivals) if isinstance(claim, Better) else 1 for claim in ALL) - 1
    assert list(decisive["p_holm"]) == list(holm(decisive["p"]))


def test_seeds_are_pooled_over_the_table_of_a_study() -> None:
    """A claim's interval equals that of its study's table and does not depend on other systems."""
    studies = [study for study in load_studies(ROOT / "studies") if isinstance(study, Study)]
    tables = [set(study.variants) for study in studies]
    records = simulate(everything() | {name: 0.0 for claim in ALL if isinstance(claim, Better) for name in claim.pool})
    judged = verdicts(records)
    for claim in ALL:
        if isinstance(claim, Better):
            systems = {claim.system, *claim.rivals, *claim.pool}
            assert systems in tables, claim.name
            rivals = [name for name in sorted(systems) if name != claim.system]
            table = compare(records, rivals, claim.system, split="val", resamples=20).set_index(["variant", "metric"])
            for _, row in judged[claim.name].comparisons.iterrows():
                assert row["any_low"] == pytest.approx(-table.loc[(row["rival"], row["metric"]), "any_high"])


def test_the_papers_gain_stands_beside_ours_with_the_lower_trust() -> None:
    judged = verdicts(simulate(everything()))
    helps = details(judged["mta_helps"]).iloc[0]
    assert (helps["paper's gain"], helps["trust"]) == ("+0.7", "low")
    kernels = details(judged["kernels_best"])
    assert list(kernels["paper's gain"]) == ["+0.9", "none known", "none known", "none known"]


def test_claims_without_their_runs_are_undecided_and_name_them() -> None:
    shifts = everything()
    for name in ("window_8", "no_neck", "msa"):
        del shifts[name]
    judged = verdicts(simulate(shifts | {"window_2": -0.1}), emphasis(-0.05).iloc[:0])
    assert judged["window_best"].decision == "undecided" and "not run: window_8" in judged["window_best"].reason
    assert judged["neck_matters"].at_scale == "at scale tiny: undecided (not run)"
    assert judged["msa_helps"].reason == "not run: msa"
    assert judged["emphasis_falls"].at_scale == "at scale tiny: undecided (not run)"


def test_one_rival_that_wins_contradicts_a_best_though_others_were_not_run() -> None:
    shifts = everything() | {"window_2": 0.1}
    del shifts["window_8"]
    assert verdicts(simulate(shifts))["window_best"].decision == "contradicted"


def test_one_seed_decides_nothing() -> None:
    judged = verdicts(simulate(everything() | {"no_neck": -0.3}, seeds=1), emphasis(-0.05, seeds=1))
    assert {v.decision for v in judged.values() if not isinstance(v.claim, Construction)} == {"undecided"}


@pytest.mark.parametrize(
    ("slope", "noise", "decision"),
    [(-0.05, 0.01, "reproduced"), (0.05, 0.01, "contradicted"), (0.0, 0.05, "undecided")],
)
def test_emphasis_falls_rises_or_neither(slope: float, noise: float, decision: str) -> None:
    verdict = verdicts(simulate({"full": 0.0}), emphasis(slope, noise=noise))["emphasis_falls"]
    assert verdict.decision == decision
    assert verdict.comparisons["difference"].iloc[0] == pytest.approx(4 * slope, abs=0.06)


def test_tiny_never_speaks_for_the_paper() -> None:
    tiny = verdicts(simulate(everything() | {"no_neck": -0.1}))["neck_matters"]
    assert (tiny.at_scale, tiny.at_paper_scale) == ("at scale tiny: reproduced", "not tested")
    base = verdicts(simulate(everything() | {"no_neck": -0.1}, scale="base", dataset="refcoco"))["neck_matters"]
    assert (base.at_scale, base.at_paper_scale) == ("at scale base: reproduced", "reproduced")
    assert verdicts(simulate(everything(), scale="base"))["neck_matters"].at_paper_scale == "not tested"


def test_the_file_is_the_same_bytes_each_time_and_states_its_scope(tmp_path: Path) -> None:
    records = simulate({"full": 0.0, "no_neck": -0.1, "window_2": 0.0})
    paths = [tmp_path / name for name in ("one.md", "two.md")]
    for path, frame in zip(paths, (records, records.sample(frac=1, random_state=0)), strict=True):
        write_claims(frame, emphasis(-0.05), path, claims=ROOT / CLAIMS, figures=FIGURES)
    text = paths[0].read_text()
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "at scale tiny: reproduced" in text and "not tested" in text and "by construction" in text
    assert "They say nothing about the paper" in text and "Holm's family: all 3 comparisons" in text
    assert "[docs/statistics.md](../docs/statistics.md)" in text


def test_records_of_two_scales_are_refused() -> None:
    both = pd.concat([simulate({"full": 0.0}), simulate({"full": 0.0}, scale="small")])
    with pytest.raises(UserError, match="must be of one data set and scale, got 2"):
        judge(ALL, both, emphasis(0.0), figures=FIGURES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rivals": []}, "claim neck_matters: rivals"),
        ({"kind": "best"}, "claim neck_matters"),
        ({"sytem": "full"}, "claim neck_matters: sytem"),
        ({"name": "mta_helps"}, "claim mta_helps occurs twice"),
        ({"published": {"table": "T1", "rows": {"full": "no such"}}}, "claim neck_matters: .*has no row"),
    ],
)
def test_an_invalid_claim_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = yaml.safe_load((ROOT / CLAIMS).read_text())
    next(claim for claim in content if claim["name"] == "neck_matters").update(change)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as raised:
        judge(read_claims(path), simulate({"full": 0.0}), emphasis(0.0), figures=FIGURES)
    assert "\n" not in str(raised.value)


def test_the_parameters_are_those_of_the_model_at_scale_base() -> None:
    profile = pytest.importorskip("wimfris.measure.parameters")
    claim = next(claim for claim in ALL if isinstance(claim, Construction))
    params = read_params(ROOT / "params.yaml").model_copy(update={"scale": "base"})
    counted = profile.trained_parameters(params.settings(claim.system))["adapters"]
    assert claim.value == pytest.approx(counted / 1e6, abs=0.0005)
