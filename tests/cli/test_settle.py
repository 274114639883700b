"""`wimfris settle`: budgets, and the seeds that it declares in params.yaml."""

from pathlib import Path

import pytest

from wimfris.cli.settle import declare_extra_seeds, parse_budget, with_extra_seeds
from wimfris.errors import UserError
from wimfris.results.plan import CLAIMS, read_plan

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("text", "minutes"), [("90m", 90), ("6h", 360), ("0.5d", 720)])
def test_a_budget_is_a_time_of_one_core(text: str, minutes: float) -> None:
    assert parse_budget(text) == minutes


def test_an_unreadable_budget_is_refused() -> None:
    with pytest.raises(UserError, match="--budget must be a number with m, h or d, for example 6h; got six"):
        parse_budget("six")


def test_seeds_are_declared_again_and_again_without_another_change(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    params = declare_extra_seeds({"full": [10, 11]}, path)
    again = declare_extra_seeds({"full": [11, 12], "kernels_333": [10]}, path)
    assert params.extra_seeds == {"full": [10, 11]}
    assert again.extra_seeds == {"full": [10, 11, 12], "kernels_333": [10]}
    after = path.read_text(encoding="utf-8")
    declare_extra_seeds({"full": [10]}, path)
    assert path.read_text(encoding="utf-8") == after
    lines = [line for line in after.splitlines() if line not in before.splitlines()]
    assert lines == ["extra_seeds:", "  full: [10, 11, 12]", "  kernels_333: [10]"]
    plan = read_plan(ROOT / CLAIMS)
    planned = with_extra_seeds(again, plan, {"full": 6})
    assert planned.extra_seeds["full"] == list(plan.confirmatory.seeds[:6])
    assert [run.seed for run in planned.extra_runs() if run.variant == "full"] == list(plan.confirmatory.seeds[:6])


def test_a_refused_declaration_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(UserError, match="extra_seeds"):
        declare_extra_seeds({"no_such_variant": [10]}, path)
    assert path.read_bytes() == before
