"""Claims: planted effects give the right verdicts on confirmatory seeds, and other seeds and rows decide nothing."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from wimfris.errors import UserError
from wimfris.results.claims import Verdict, judge
from wimfris.results.comparisons import Comparisons, read_comparisons, write_comparisons
from wimfris.results.evidence import Evidence
from wimfris.results.formats import level_text
from wimfris.results.plan import CLAIMS, Better, Construction, Plan, read_plan, register, registration_lines
from wimfris.results.published import PUBLISHED
from wimfris.results.report.claims_tables import (
    NOTHING,
    by_decision,
    details,
    footer,
    over_scales,
    own_rows,
    summary,
    write_claims,
)
from wimfris.results.settle import cheapest, needs, without_estimate
from wimfris.results.tiers import compute_comparisons, moved
from wimfris.results.verdicts import Ends, decide
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / PUBLISHED
PLAN = read_plan(ROOT / CLAIMS)
FIRST, FINAL = PLAN.confirmatory.looks
SEEDS = (*PLAN.exploratory.seeds, *PLAN.confirmatory.seeds[:FIRST])
SIDE = 16


def simulate(shifts: dict[str, float], seeds: Sequence[int] = SEEDS, images: int = 60) -> pd.DataFrame:
    """Simulate records, variant -> planted shift in mIoU, with random effects of image and seed."""
    rng = np.random.default_rng(0)
    counts = 1 + rng.poisson(2, images)
    image = np.repeat(np.arange(images), counts)
    base = np.clip(0.5 + 0.15 * rng.normal(size=images)[image], 0.2, 0.8)
    parts = []
    for variant, shift in shifts.items():
        for seed in seeds:
            iou = np.clip(base + shift + 0.003 * rng.normal() + 0.02 * rng.normal(size=image.size), 0, 1)
            frame = pd.DataFrame(
                {"ref_id": image, "sent_id": np.arange(image.size), "image_id": image, "intersection": iou * 10000}
            ).astype(int)
            parts.append(
                frame.assign(
                    run=f"{variant}-{seed}",
                    variant=variant,
                    seed=seed,
                    dataset="scenes",
                    scale="tiny",
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


def emphasis(slope: float, seeds: Sequence[int] = SEEDS, noise: float = 0.01) -> pd.DataFrame:
    """Simulate alpha of three layers over two epochs: 0.5 after the first, the planted slope after the last."""
    rng = np.random.default_rng(1)
    rows = [
        {"run": f"full-{seed}", "variant": "full", "seed": seed, "epoch": epoch, "layer": layer}
        | {"alpha": 0.5 + (epoch - 1) * (slope * (layer - 3) + noise * rng.normal())}
        for seed in seeds
        for epoch in (1, 2)
        for layer in (1, 3, 5)
    ]
    return pd.DataFrame(rows)


def compared(
    records: pd.DataFrame, alphas: pd.DataFrame | None = None, pairs: dict[tuple[str, str], bool] | None = None
) -> Comparisons:
    alphas = emphasis(-0.1) if alphas is None else alphas
    return compute_comparisons(Evidence(records, pd.DataFrame(), alphas), PLAN, pairs or {}, SIDE)


def verdicts(records: pd.DataFrame, alphas: pd.DataFrame | None = None) -> dict[str, Verdict]:
    judged = judge(PLAN, compared(records, alphas), "scenes", "tiny", SIDE, figures=FIGURES)
    return {verdict.claim.name: verdict for verdict in judged}


def everything() -> dict[str, float]:
    """Return every variant that a claim names, with a shift of 0."""
    return {name: 0.0 for claim in PLAN.claims for name in (claim.system, *getattr(claim, "rivals", ()))}


def test_the_file_names_variants_that_exist_and_holds_the_papers_claims() -> None:
    params = read_params(ROOT / "params.yaml")
    declared = params.variants.keys() | params.extended.keys()
    assert set(everything()) <= declared
    assert set(PLAN.labels) <= declared  # the answer on the window also names variants without a claim
    assert len(PLAN.claims) == 12 and PLAN.tested == 11


def test_the_margins_are_the_papers_smallest_gains_where_it_states_them() -> None:
    for verdict in verdicts(simulate({"full": 0.0}, images=4)).values():
        claim = verdict.claim
        if isinstance(claim, Better):
            ours = verdict.figures[claim.system].value
            gains = [ours - verdict.figures[rival].value for rival in claim.rivals if rival in verdict.figures]
            assert 100 * verdict.margin == pytest.approx(min(gains, default=PLAN.smallest_effect)), claim.name


def test_planted_effects_give_the_right_verdicts() -> None:
    shifts = everything() | {"no_neck": -0.1, "msa": 0.1, "kernels_333": -0.1, "placement_late": 0.1, "window_2": -0.1}
    shifts |= {"window_8": -0.1, "placement_early": -0.1, "msa_emphasis": 0.1, "no_window": -0.0}
    judged = verdicts(simulate(shifts, seeds=PLAN.confirmatory.seeds))
    assert {name: verdict.decision for name, verdict in judged.items()} == {
        "window_best": "reproduced",
        "window_helps": "no effect of the paper's size",
        "msa_helps": "reproduced",
        "emphasis_helps": "no effect of the paper's size",
        "mta_helps": "contradicted",
        "kernels_best": "no effect of the paper's size",  # one rival is as good
        "spread_best": "contradicted",  # one rival is enough
        "hmf_helps_etris": "no effect of the paper's size",
        "hmf_helps_detris": "no effect of the paper's size",
        "neck_matters": "reproduced",
        "emphasis_falls": "reproduced",
        "parameters": "true by construction",
    }


def test_a_small_gain_is_reproduced_but_smaller() -> None:
    judged = verdicts(simulate(everything() | {"no_window": -0.008}, seeds=PLAN.confirmatory.seeds))
    assert judged["window_helps"].decision == "reproduced, but smaller than the paper's"


def test_seeds_that_suggested_a_claim_decide_nothing() -> None:
    judged = verdicts(simulate(everything() | {"no_neck": -0.3}, seeds=(0, 1, 2)), emphasis(-0.2, seeds=(0, 1, 2)))
    tested = [one for one in judged.values() if not isinstance(one.claim, Construction)]
    assert {one.decision for one in tested} == {"undecided"}
    assert judged["neck_matters"].rows[0]["low"] > 0, "its interval is shown"
    assert judged["neck_matters"].reason == (
        "not tested yet: its systems share 0 of the 6 confirmatory seeds that the first look needs"
    )


@pytest.mark.slow
def test_a_look_waits_for_all_systems_of_the_claim() -> None:
    records = simulate(everything() | {"kernels_333": -0.3})
    fewer = records[(records["variant"] != "kernels_579") | (records["seed"] != PLAN.confirmatory.seeds[2])]
    verdict = verdicts(fewer)["kernels_best"]
    assert verdict.look == 0 and verdict.rows[0]["ready"] == 2 and verdict.decision == "undecided"


@pytest.mark.slow
def test_missing_runs_are_named() -> None:
    shifts = everything()
    for name in ("kernels_555", "no_neck"):
        del shifts[name]
    judged = verdicts(simulate(shifts), emphasis(-0.1).iloc[:0])
    assert judged["kernels_best"].reason == "not run: kernels 5-5-5"
    assert judged["neck_matters"].at_scale == "at scale tiny: undecided (not run)"
    assert judged["emphasis_falls"].at_scale == "at scale tiny: undecided (not run)"


@pytest.mark.parametrize(
    ("slope", "decision", "reason"),
    [
        (-0.2, "reproduced", r"its fall is \+0\.\d\d \[.*\]"),
        (0.2, "contradicted", r"its fall is -\d\.\d\d \[.*\]"),
        (0.0, "no effect of the paper's size", r"its fall is [+-]0\.\d\d \[.*\], within 0\.4 of 0"),
    ],
)
def test_emphasis_falls_or_rises(slope: float, decision: str, reason: str) -> None:
    verdict = verdicts(simulate({"full": 0.0}), emphasis(slope))["emphasis_falls"]
    assert verdict.decision == decision and re.fullmatch(reason, verdict.reason)
    (line,) = by_decision([verdict], reasons=True)[decision]
    assert line == f"The learned emphasis falls with depth ({verdict.reason})"


def test_a_level_close_to_one_is_not_rounded_to_it() -> None:
    assert [level_text(error) for error in (0.05, 0.05 / 11, 0.0000433)] == ["95.00%", "99.55%", "99.9957%"]


@pytest.mark.slow
def test_a_row_of_ones_own_changes_no_primary_row_and_the_report_says_what_it_changes() -> None:
    records = simulate(everything() | {"mine": 0.0, "other": 0.02, "third": -0.3}, images=20)
    declared = {("other", "full"): False, ("third", "full"): False}
    before = compared(records, pairs=declared)
    own = {("mine", "full"): True} | {("mine", name): True for name in everything() if name not in ("mine", "full")}
    after = compared(records, pairs=declared | own)
    pd.testing.assert_frame_equal(before.primary, after.primary)
    row = after.quote("other", "full")
    assert row and row["verdict_without_own"] == before.quote("other", "full")["verdict"]  # type: ignore[index]
    assert row["error"] != before.quote("other", "full")["error"]  # type: ignore[index]
    assert f"{len(own)} comparisons of your own studies" in own_rows(after) and own_rows(before) == ""


@pytest.mark.slow
def test_controls_have_no_verdict_and_count_in_no_family() -> None:
    """A comparison with a control, even one as large as this, changes no row of another."""
    records = simulate(everything() | {"other": 0.02, "third": -0.3, "control": 0.3}, images=20)
    declared = {("other", "full"): False, ("third", "full"): False}
    own = {("control", "full"): False, ("third", "control"): True}
    evidence = Evidence(records, pd.DataFrame(), emphasis(-0.1))
    before = compute_comparisons(evidence, PLAN, declared, SIDE)
    after = compute_comparisons(evidence, PLAN, declared | own, SIDE, controls=("control",))
    pd.testing.assert_frame_equal(before.frame, after.frame[: len(before.frame)])
    rows = after.frame[len(before.frame) :]
    marked = rows[rows["tier"] == "control"]
    assert list(zip(marked["system"], marked["rival"], strict=True)) == list(own)
    assert (rows["verdict"] == "").all() and (marked["low"].abs() > 0).all()
    assert len(over_scales({"a": after, "b": after}, PLAN)) == len(over_scales({"a": before, "b": before}, PLAN))


def with_objects(records: pd.DataFrame, wrong: dict[str, int]) -> pd.DataFrame:
    """Say that every `wrong[variant]`-th sentence of a variant's runs is about the wrong object; by default none."""
    every = records["variant"].map(wrong).fillna(10**9).astype(int)
    right = (records["sent_id"] + records["seed"]) % every != 0
    return records.assign(best_object=0, best_iou=0.5, distractors=1, right_object=right)


def plan_of(*claims: dict[str, object]) -> Plan:
    published = {"table": "T3a", "rows": {}}
    return PLAN.model_copy(
        update={"claims": tuple(Better.model_validate({"kind": "better", "published": published} | c) for c in claims)}
    )


OF_OBJECTS = (
    {"name": "iou", "claim": "Is better.", "system": "full", "rivals": ["none"]},
    {"name": "objects", "claim": "Names it.", "system": "full", "rivals": ["none"], "metric": "right", "margin": 5},
    {"name": "masks", "claim": "Draws it.", "system": "none", "rivals": ["full"], "metric": "iou_right"},
)


@pytest.mark.slow
def test_claims_on_right_objects_and_on_their_masks() -> None:
    """`none` has a wrong object in one sentence of four, whose masks are as good: two claims on one pair, and a third
    the other way round, each with its own verdict.
    """
    records = with_objects(simulate({"full": 0.0, "none": 0.0}, seeds=PLAN.confirmatory.seeds), {"none": 4})
    plan = plan_of(*OF_OBJECTS)
    comparisons = compute_comparisons(Evidence(records, pd.DataFrame(), emphasis(0.0)), plan, {}, SIDE)
    judged = {one.claim.name: one for one in judge(plan, comparisons, "scenes", "tiny", SIDE, figures=FIGURES)}
    assert {name: one.decision for name, one in judged.items()} == {
        "iou": "no effect of the paper's size",
        "objects": "reproduced",
        "masks": "no effect of the paper's size",
    }
    assert judged["objects"].rows[0]["difference"] == pytest.approx(0.25, abs=0.01)
    assert abs(judged["masks"].rows[0]["difference"]) < 0.005
    keys = comparisons.frame[["split", "metric"]].assign(pair=comparisons.frame["system"] + comparisons.frame["rival"])
    assert len(keys.drop_duplicates(["split", "metric"])) == len(keys), "each comparison stands once"
    (row,) = details(judged["objects"], plan, comparisons).to_dict("records")
    assert row["Δright object"].startswith("+25.") or row["Δright object"].startswith("+24.")
    assert "ΔmIoU" in row and row["paper's gain"] == "none known"
    assert "5.0 points of right object" in footer(judged["objects"], plan)


@pytest.mark.slow
def test_a_metric_that_runs_lack_is_not_measured() -> None:
    records = simulate({"full": 0.0, "none": -0.1})
    recent = with_objects(records[records["variant"] == "full"], {})
    plan = plan_of(*OF_OBJECTS)
    for part in (records, pd.concat([recent, records[records["variant"] == "none"]], ignore_index=True)):
        comparisons = compute_comparisons(Evidence(part, pd.DataFrame(), emphasis(0.0)), plan, {}, SIDE)
        judged = judge(plan, comparisons, "scenes", "tiny", SIDE, figures=FIGURES)
        assert [one.decision for one in judged] == ["reproduced", "undecided", "undecided"]
        assert judged[1].at_scale == "at scale tiny: undecided (not measured)"
        assert judged[1].reason == "not measured: these runs lack the column right_object; train them again"
        assert len(summary(judged)) == 3 and details(judged[1], plan, comparisons).empty
        assert needs(plan, judged, SIDE) == []
        assert list(without_estimate(plan, judged, SIDE)) == ["objects", "masks"]


def test_the_metric_is_part_of_the_plan() -> None:
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "statistics.md").read_text(), re.DOTALL)
    assert example and Better.model_validate(yaml.safe_load(example[1])[0]).metric == "right"
    plain, named = plan_of(OF_OBJECTS[0]), plan_of(OF_OBJECTS[0] | {"metric": "right"})
    assert "claims.iou.metric" not in plain.content() and named.content()["claims.iou.metric"] == "right"


@pytest.mark.slow
def test_a_comparison_reads_the_same_from_both_sides(tmp_path: Path) -> None:
    comparisons = compared(simulate(everything() | {"no_neck": -0.1}, images=20))
    path = write_comparisons(comparisons, "scenes-tiny", tmp_path)
    again = read_comparisons("scenes-tiny", tmp_path)
    assert path.read_bytes() == write_comparisons(again, "scenes-tiny", tmp_path).read_bytes()
    assert moved(comparisons, again) == []
    one, other = again.quote("full", "no_neck"), again.quote("no_neck", "full")
    assert one and other and (one["verdict"], other["verdict"]) == ("higher", "lower")
    assert (one["low"], one["these_high"]) == (-other["high"], -other["these_low"])


def test_exactly_one_verdict_holds() -> None:
    """The rule against the definitions, for random intervals of one and of several rivals."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(3000):
        margin = rng.uniform(0.5, 2)
        centre = rng.normal(0, 2, rng.integers(1, 4))
        half = rng.uniform(0.1, 2, centre.size)
        wide = half * rng.uniform(1, 1.5)
        ends = [Ends(c - h, c + h, c - w, c + w) for c, h, w in zip(centre, half, wide, strict=True)]
        below, above = (centre + wide < 0).any(), (centre - half > 0).all()
        small = (centre + wide < margin).any()
        flat = ((centre - wide > -margin) & (centre + wide < margin)).any()
        holds = {
            "reproduced": above and not small,
            "reproduced, but smaller than the paper's": above and small,
            "contradicted": below,
            "no effect of the paper's size": flat and not above and not below,
            "undecided": not (above or below or flat),
        }
        assert sum(map(bool, holds.values())) == 1
        decision = decide(ends, margin)
        assert holds[decision]
        seen.add(decision)
    assert len(seen) == 5
    nothing = Ends(np.nan, np.nan, np.nan, np.nan)
    assert decide([nothing], 1.0) == decide([], 1.0) == "undecided"


def test_the_same_comparisons_at_two_scales_and_their_change() -> None:
    files = {name: compared(simulate({"full": 0.0, "no_neck": shift})) for name, shift in (("a", -0.1), ("b", -0.15))}
    row = over_scales(files, PLAN).set_index("comparison").loc["full - no_neck"]
    assert row["a"].startswith("+10.") or row["a"].startswith("+9.")
    assert float(row["b - a"].split()[0]) == pytest.approx(5, abs=0.5)


def test_the_page_is_the_same_bytes_each_time_and_states_its_scope(tmp_path: Path) -> None:
    records = simulate({"full": 0.0, "no_neck": -0.1, "no_window": 0.0})
    for name, frame in (("one.md", records), ("two.md", records.sample(frac=1, random_state=0))):
        comparisons = compared(frame)
        judged = judge(PLAN, comparisons, "scenes", "tiny", SIDE, figures=FIGURES)
        write_claims(judged, PLAN, {"scenes-tiny": comparisons}, tmp_path / name)
    text = (tmp_path / "one.md").read_text()
    assert text == (tmp_path / "two.md").read_text()
    assert "at scale tiny: reproduced" in text and "not tested" in text and "by construction" in text
    assert NOTHING in text and f"Plan `{PLAN.hash}`, not registered yet" in text


def test_changes_after_the_registration_are_deviations(tmp_path: Path) -> None:
    path = tmp_path / "registration.yaml"
    assert register(PLAN, path) and not register(PLAN, path)
    assert "No deviation" in registration_lines(PLAN, path)[0]
    claims = [
        one.model_copy(update={"margin": 9.0, "note": "x"}) if one.name == "mta_helps" else one for one in PLAN.claims
    ]
    changed = PLAN.model_copy(update={"claims": tuple(claims)})
    assert registration_lines(changed, path)[2:] == ["- claims.mta_helps.margin: 0.7 at the registration, now 9.0"]
    assert changed.hash != PLAN.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rivals": []}, "claim neck_matters: rivals"),
        ({"kind": "best"}, "claim neck_matters"),
        ({"sytem": "full"}, "claim neck_matters: sytem"),
        ({"name": "mta_helps"}, "claim mta_helps occurs twice"),
        ({"rivals": ["no_window"]}, "full and no_window are compared by two claims"),
        ({"published": {"table": "T1", "rows": {"full": "no such"}}}, "claim neck_matters: .*has no row"),
    ],
)
def test_an_invalid_claim_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = yaml.safe_load((ROOT / CLAIMS).read_text())
    next(claim for claim in content["claims"] if claim["name"] == "neck_matters").update(change)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as raised:
        judge(read_plan(path), compared(simulate({"full": 0.0}, images=4)), "scenes", "tiny", SIDE, figures=FIGURES)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_more_seeds_settle_more_and_a_budget_is_kept() -> None:
    records = simulate(everything() | {"no_neck": -0.02}, seeds=(0, 1, 2))
    judged = judge(PLAN, compared(records, emphasis(0.0, (0, 1, 2))), "scenes", "tiny", SIDE, figures=FIGURES)
    open_claims = needs(PLAN, judged, SIDE)
    assert {need.verdict.claim.name for need in open_claims} == {one.claim.name for one in judged} - {"parameters"}
    assert all(need.chances[FIRST] <= need.chances[FINAL] for need in open_claims)
    minutes = dict.fromkeys(everything(), 2.0)
    plans = [cheapest(PLAN, open_claims, minutes, {}, budget) for budget in (0.0, 60.0, 120.0, 1e6)]
    for budget, plan in zip((0.0, 60.0, 120.0, 1e6), plans, strict=True):
        assert plan.minutes <= budget and plan.minutes == 2 * sum(plan.seeds.values())
        for name, seeds in plan.looks.items():
            need = next(need for need in open_claims if need.verdict.claim.name == name)
            assert all(plan.seeds[system] >= seeds for system in need.systems)
    assert all(few.decided <= many.decided for few, many in pairwise(plans))
    for budget in (None, 60.0):
        assert cheapest(PLAN, [], minutes, {}, budget).looks == {}, "nothing is open"
    again = cheapest(PLAN, open_claims, minutes, plans[3].seeds, 1e6)
    assert again.minutes == 0, "trained runs cost nothing"


@pytest.mark.slow
def test_one_seed_of_each_system_is_enough_for_a_plan() -> None:
    """The scatter over seeds of the other claims stands in; without any scatter there is no plan."""
    records = simulate(everything() | {"no_neck": -0.02}, seeds=(0, 1, 2))
    single = records["variant"].isin(["msa_emphasis", "kernels_333"]) & (records["seed"] > 0)
    absent = records["variant"] == "placement_late"
    compared_once = compared(records[~single & ~absent], emphasis(0.0, (0, 1, 2)))
    judged = judge(PLAN, compared_once, "scenes", "tiny", SIDE, figures=FIGURES)
    planned = {need.verdict.claim.name for need in needs(PLAN, judged, SIDE)}
    assert {"mta_helps", "kernels_best"} <= planned
    assert without_estimate(PLAN, judged, SIDE) == {"spread_best": "not run: the last layers"}
    lone = compared(records[records["seed"] == 0], emphasis(0.0, (0, 1, 2)))
    judged = judge(PLAN, lone, "scenes", "tiny", SIDE, figures=FIGURES)
    assert {need.verdict.claim.name for need in needs(PLAN, judged, SIDE)} == {"emphasis_falls"}
    assert without_estimate(PLAN, judged, SIDE)["mta_helps"] == "no claim has a system with two seeds"


@pytest.mark.slow
def test_a_look_that_left_a_claim_open_is_not_planned_again() -> None:
    """After the first look a claim is taken to the second one or left; the first one cannot settle it any more."""
    shifts = everything() | {"no_neck": -0.003}
    records = simulate(shifts, seeds=SEEDS)
    judged = judge(PLAN, compared(records, emphasis(0.0)), "scenes", "tiny", SIDE, figures=FIGURES)
    open_claims = {need.verdict.claim.name: need for need in needs(PLAN, judged, SIDE)}
    looked = [need for need in open_claims.values() if need.verdict.look == 1]
    assert looked and all(need.chances[FIRST] == 0 for need in looked)
    best = cheapest(PLAN, looked, dict.fromkeys(everything(), 1.0), dict.fromkeys(everything(), FIRST), 1e6)
    assert set(best.looks.values()) <= {FINAL}


def test_the_parameters_are_those_of_the_model_at_scale_base() -> None:
    profile = pytest.importorskip("wimfris.measure.parameters")
    claim = next(claim for claim in PLAN.claims if isinstance(claim, Construction))
    params = read_params(ROOT / "params.yaml").model_copy(update={"scale": "base"})
    counted = profile.trained_parameters(params.settings(claim.system))["adapters"]
    assert claim.value == pytest.approx(counted / 1e6, abs=0.0005)
