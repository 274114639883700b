"""`wimfris settle`: what the open claims need, what that costs, and the runs that settle them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from wimfris.errors import UserError, suggestion
from wimfris.files import write_text
from wimfris.matrix.costs import recorded_seconds
from wimfris.results.evidence import Evidence
from wimfris.results.plan import Plan
from wimfris.results.settle import Need, SettlePlan, cheapest, needs, smallest_budget, without_estimate
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

PARAMS = Path("params.yaml")
_UNITS = {"m": 1, "h": 60, "d": 1440}


def settle(
    claim: Annotated[str | None, typer.Argument(help="A claim of reports/claims.yaml; by default all.")] = None,
    claims: Annotated[list[str] | None, typer.Option("--claim", help="A further claim; may be repeated.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Core time from now on, for example 6h: plan for most decisions in it.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Train the runs of the plan, look by look.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs that --run would train.")] = False,
    base: Annotated[bool, typer.Option("--base", help="Also time a run at scale base: takes minutes.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Runs at once; by default as many as fit on the machine.")] = None,
) -> None:
    """Print how many seeds or images each undecided claim needs for an 80% chance of a verdict, and the cheapest plan
    for all of them, with its cost by the times of past runs. After a kill, `--run` continues.
    """
    from wimfris.results.plan import read_plan

    params, plan = read_params(), read_plan()
    wanted = [*([claim] if claim else []), *(claims or [])]
    names = [one.name for one in plan.claims]
    for name in wanted:
        if name not in names:
            raise UserError(f"settle {name}: no such claim; {suggestion(name, names, 'claims')}")
    minutes = None if budget is None else parse_budget(budget)
    state = _state(params, plan, wanted)
    best = state.cheapest(minutes)
    _print(state, best, minutes, _base_hours(params) if base else None)
    if not (run or dry_run) or not best.looks:
        return
    if dry_run:
        declared = with_extra_seeds(params, plan, best.seeds)
        _train(declared, _runs(plan, best, plan.confirmatory.looks[-1]), jobs, dry_run=True)
        return
    _run(plan, wanted, best, jobs)


def parse_budget(text: str) -> float:
    """Return a time such as 90m, 6h or 2d in minutes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if match is None:
        raise UserError(f"--budget must be a number with m, h or d, for example 6h; got {text}")
    return float(match[1]) * _UNITS[match[2]]


def declare_extra_seeds(seeds: Mapping[str, Sequence[int]], path: Path = PARAMS) -> Params:
    """Add seeds to `extra_seeds` of params.yaml; every other byte stays. Return the new parameters."""
    text = path.read_text(encoding="utf-8")
    known = read_params(path).extra_seeds
    merged = {name: sorted({*known.get(name, ()), *seeds.get(name, ())}) for name in dict.fromkeys([*known, *seeds])}
    block = re.search(r"(?m)^extra_seeds:.*\n(?:[ \t]+.*\n)*", text)
    if block is None:
        raise UserError(f"{path}: no key `extra_seeds`; add the line `extra_seeds: {{}}`")
    lines = "".join(f"  {name}: {list(numbers)}\n" for name, numbers in merged.items())
    write_text(path, f"{text[: block.start()]}extra_seeds:\n{lines}{text[block.end() :]}")
    try:
        return read_params(path)
    except UserError:
        write_text(path, text)
        raise


def with_extra_seeds(params: Params, plan: Plan, seeds: Mapping[str, int]) -> Params:
    """Return params with the plan's confirmatory seeds declared, without writing them."""
    extra = {name: list(numbers) for name, numbers in params.extra_seeds.items()}
    for name, number in seeds.items():
        extra[name] = sorted({*extra.get(name, ()), *plan.confirmatory.seeds[:number]})
    return params.model_copy(update={"extra_seeds": extra})


@dataclass(frozen=True)
class _State:
    """What the wanted claims need, and what runs cost."""

    plan: Plan
    every: bool  # whether all claims are wanted
    open_claims: list[Need]
    left_out: dict[str, str]  # open claims without an estimate -> what they lack
    closed: dict[str, str]  # the other wanted claims -> the verdict and its reason
    minutes: Mapping[str, float]  # of one core or GPU, by system
    unit: str  # of the costs: core hours or GPU hours
    ready: dict[str, int]  # confirmatory seeds, by system

    def cheapest(self, budget: float | None) -> SettlePlan:
        """Return the cheapest plan, within a budget in minutes of one core."""
        return cheapest(self.plan, self.open_claims, self.minutes, self.ready, budget)


def _state(params: Params, plan: Plan, wanted: Sequence[str]) -> _State:
    """Return the state of the wanted claims, by default of all. The scatter over seeds is that of all claims."""
    from wimfris.results.claims import judge_place
    from wimfris.results.comparisons import read_comparisons
    from wimfris.results.evidence import read_evidence

    settings = params.settings()
    verdicts = judge_place(params, plan, read_comparisons(settings.folder.name))
    names = wanted or [one.claim.name for one in verdicts]
    open_claims = [need for need in needs(plan, verdicts, settings.grid) if need.verdict.claim.name in names]
    left_out = without_estimate(plan, verdicts, settings.grid)
    left_out = {name: reason for name, reason in left_out.items() if name in names}
    others = {*names} - {need.verdict.claim.name for need in open_claims} - left_out.keys()
    closed = {one.claim.name: f"{one.decision}: {one.reason}" for one in verdicts if one.claim.name in others}
    ready = _ready(plan, read_evidence(params))
    unit = "core hours" if settings.train.device == "cpu" else "GPU hours"
    return _State(plan, not wanted, open_claims, left_out, closed, _minutes(params), unit, ready)


def _minutes(params: Params) -> dict[str, float]:
    """Return the minutes of a run by system: of one core, or of a GPU."""
    train = params.settings().train
    threads = train.threads if train.device == "cpu" else 1
    return {name: threads * seconds / 60 for name, seconds in recorded_seconds(params, []).items()}


def _ready(plan: Plan, evidence: Evidence) -> dict[str, int]:
    known = evidence.runs.groupby("variant")["seed"].agg(set)
    return {str(name): len(seeds & set(plan.confirmatory.seeds)) for name, seeds in known.items()}


def _runs(plan: Plan, best: SettlePlan, most: int) -> list[Run]:
    """Return the runs of the plan, at most `most` seeds of each system, those of the first seeds first."""
    seeds = plan.confirmatory.seeds[:most]
    return [Run(name, seed) for k, seed in enumerate(seeds) for name, n in best.seeds.items() if k < n]


def _train(params: Params, runs: Sequence[Run], jobs: int | None, *, dry_run: bool = False) -> None:
    from wimfris.matrix.local import train_runs
    from wimfris.results.evidence import gather, read_evidence

    present = set(read_evidence(params).runs["run"])
    missing = [run for run in runs if str(run) not in present]
    if not missing:
        print("the evidence holds every run of this plan")
        return
    trained, failures = train_runs(params, missing, jobs, dry_run=dry_run)
    if trained:
        gather(params, trained)
    if failures:
        failed = sorted({str(failure.run) for failure in failures})
        raise UserError(f"{len(failed)} runs failed ({', '.join(failed)}); try again")


def _run(plan: Plan, wanted: Sequence[str], best: SettlePlan, jobs: int | None) -> None:
    """Train to the first look, judge, and take what is still open to the second look."""
    from wimfris.results.plan import register
    from wimfris.results.refresh import refresh_comparisons

    if register(plan):
        print("reports/registration.yaml: the plan is registered; commit it before the runs end")
    for look in plan.confirmatory.looks:
        numbers = {name: min(n, look) for name, n in best.seeds.items()}
        params = declare_extra_seeds({name: plan.confirmatory.seeds[:n] for name, n in numbers.items()})
        _train(params, _runs(plan, best, look), jobs)
        print(*refresh_comparisons(read_params()), sep="\n")
        still = _state(params, plan, wanted).open_claims
        left = [need for need in still if best.looks.get(need.verdict.claim.name, 0) > look]
        if not left:
            break
        seeds = {name: best.seeds[name] for need in left for name in need.systems}
        best = SettlePlan({need.verdict.claim.name: plan.confirmatory.looks[-1] for need in left}, seeds, 0.0, 0.0)
    print("write the report with `dvc repro`, and commit reports/ and params.yaml")


def _base_hours(params: Params) -> float:
    """Return the hours of one run at scale base, as `wimfris estimate` times them on this device."""
    from wimfris.measure import run_cost

    settings = params.at_scale("base").settings()
    timed = run_cost.time_apart(settings)
    return run_cost.cost(settings, timed, run_cost.volume(settings)).seconds / 3600


def _print(state: _State, best: SettlePlan, budget: float | None, base_hours: float | None) -> None:
    for name, reason in state.left_out.items():
        print(f"{name}: no estimate yet; {reason}")
    for name, verdict in state.closed.items():
        print(f"{name}: {verdict}")
    if not state.open_claims:
        if state.every:
            print(f"no {'other ' if state.left_out else ''}claim is open: each one is decided, or at its last look")
        return
    first, final = state.plan.confirmatory.looks
    columns = ("claim", f"chance by {first} seeds", f"by {final}", "for an 80% chance", "in the plan")
    title = f"Open claims, plan {state.plan.hash}: the chance of a verdict"
    table = Table(*columns, box=None, title=title)
    for need in state.open_claims:
        wanted = "more than 192 seeds"
        if need.seeds is not None:
            wanted = f"{need.seeds} seeds"
        elif need.images:
            wanted = f"{need.images[0]} seeds, {need.images[1]} images"
        looks = enumerate((first, final), start=1)
        chances = ["taken" if need.verdict.look >= k else f"{100 * need.chances[n]:.0f}%" for k, n in looks]
        taken = best.looks.get(need.verdict.claim.name)
        table.add_row(need.verdict.claim.name, *chances, wanted, f"{taken} seeds" if taken else "-")
    Console().print(table)
    print(f"The last look is at {final} seeds. Costs are those of recorded runs on one processor.")
    print(_summary(state, best, budget))
    if base_hours is not None:
        runs = sum(best.seeds.values())
        print(f"at scale base: {runs * base_hours:.0f} hours of this device ({base_hours:.1f} a run)")


def _summary(state: _State, best: SettlePlan, budget: float | None) -> str:
    """Return the plan in a sentence, or why it is empty."""
    number = len(state.open_claims)
    if best.looks:
        return (
            f"the plan: {sum(best.seeds.values())} confirmatory runs of {len(best.seeds)} systems, "
            f"{best.minutes / 60:.1f} {state.unit} for those that are missing; it decides {best.decided:.1f} of "
            f"{number} open claims on average"
        )
    if budget is not None:
        smallest = smallest_budget(state.plan, state.open_claims, state.minutes, state.ready)
        if smallest is None:
            return "no plan: no look has a chance of 5% to decide an open claim"
        name, minutes = smallest
        return f"no plan fits the budget: the cheapest look, of {name}, costs {minutes / 60:.1f} {state.unit}"
    whole = state.cheapest(float("inf"))
    return (
        f"no plan: no look gives an open claim an 80% chance. All looks together would cost {whole.minutes / 60:.1f} "
        f"{state.unit} and decide {whole.decided:.1f} of {number} claims on average; --budget 6h plans a part of them"
    )


VERBS = (settle,)
