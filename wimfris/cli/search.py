"""`python studies/search.py`: search a space, and report on all searches of it."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

import pandas as pd

from wimfris.cli.entry import run_command
from wimfris.cli.study import write_report
from wimfris.matrix.costs import default_jobs, duration
from wimfris.matrix.local import prepare
from wimfris.matrix.processes import interruptible
from wimfris.results.comparisons import comparisons_path, read_comparisons
from wimfris.results.evidence import read_evidence
from wimfris.results.formats import print_section
from wimfris.results.measured import Report
from wimfris.search.figure import draw
from wimfris.search.loop import run_search
from wimfris.search.plan import AGAINST, SAMPLERS, Plan
from wimfris.search.promote import promoted
from wimfris.search.report import (
    FOLDER,
    best,
    confirmed_sections,
    finished,
    load_evidence,
    method,
    read_searches,
    report_sections,
    trials_frame,
)
from wimfris.search.space import Space, read_search
from wimfris.settings.params import Params, read_params

QUESTION = "Which settings does a search pick, and do they hold on data that it did not select by?"
PAPER = "Window, kernels, widths, placement and loss weights are picked by hand; no search."
ONLY_IN_FILES = ("Pr@0.7", "Pr@0.9", "seconds")  # columns that the terminal does not show


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Search from the command line and exit: 0, success; 2, an invalid input or storage, explained in one line."""
    run_command(lambda: _run(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=QUESTION, epilog=PAPER)
    parser.add_argument("--space", help="a space of params.yaml's search.spaces; default: search.space")
    parser.add_argument("--trials", type=int, help="the total, earlier trials included; default: search.trials")
    parser.add_argument("--jobs", type=int, help="trials at a time; default: as many as the machine has room for")
    parser.add_argument(
        "--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="tpe, or random search as its baseline"
    )
    parser.add_argument("--against", choices=AGAINST, help="a second objective; then no trial is pruned")
    parser.add_argument("--storage", help="the URL of a database that several machines share; default: a journal file")
    parser.add_argument("--scale", help="the scale; default: params.yaml's")
    parser.add_argument("--dry-run", action="store_true", help="print the space and the expected time")
    parser.add_argument("--no-train", action="store_true", help="print the tables of the searches so far")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    params = read_params().at_scale(options.scale)
    search = read_search(params)
    space = Space(options.space or search.space, params, search)
    trials = search.trials if options.trials is None else options.trials
    jobs = options.jobs
    if jobs is None:
        jobs = 1 if options.against == "latency" else default_jobs(params)
    if options.dry_run:
        _print_plan(space, options.sampler, trials, jobs)
        return
    if not options.no_train:
        if "DVC_STAGE" not in os.environ:  # else DVC has made what training depends on
            with interruptible() as stop:
                prepare(params, stop)
        run_search(Plan(space, options.sampler, options.against, options.storage), trials, jobs)
    _report(params, space.name, write=not options.no_train)


def _report(params: Params, space: str, *, write: bool) -> None:
    """Print the tables of all searches of a space at the data set and scale in use, and write them with the figure."""
    folder = params.settings().folder.name
    searches = read_searches(folder, space)
    variants = promoted(params, searches)
    runs = [str(run) for variant in ("full", *variants) for run in params.runs_of(variant)] if variants else []
    records = read_evidence(params).select(runs).records if runs else pd.DataFrame()
    known = read_comparisons(folder) if comparisons_path(folder).is_file() else None
    report = Report(
        report_sections(searches, confirmed_sections(searches, variants, records, known)),
        trials_frame(searches),
        lambda path: draw(searches, path),
        f"**Question.** {QUESTION}\n\n**The paper.** {PAPER}",
    )
    for section in report.sections:
        print_section(section, ONLY_IN_FILES)
    declared = {trial: variant for variant, trial in variants.items()}
    for search in searches:
        if trial := best(search):
            name = trial["name"]
            advice = f"confirm it: `wimfris promote {name} --as NAME`"
            if name in declared:
                advice = f"it is the variant {declared[name]}"
            print(f"best by {method(search)}: {name}; {advice}")
    if write:
        paths = write_report(f"search-{space}", f"Search: {space}", folder, report)
        print(f"search-{space}: {', '.join(map(str, paths))}")


def _print_plan(space: Space, sampler: str, trials: int, jobs: int) -> None:
    settings = space.settings("trial", {}, "")
    print(f"space {space.name} at {settings.folder.name}, sampler {sampler}, {trials} trials, {jobs} at a time:")
    for path, distribution in space.distributions.items():
        bounds = distribution.model_dump(exclude={"kind", "values"})
        values = [f"{key} {value}" for key, value in bounds.items()] or map(str, distribution.extremes())
        print(f"  {path}: {distribution.kind}, {', '.join(values)}")
    if limits := space.limits:
        print(
            f"  limits: trained parameters within {limits.trained:.0%}, a step at most {limits.time} times that of full"
        )
    length = f"{settings.train.epochs} epochs of {settings.train.epoch_steps or 'all'} steps"
    print(f"a trial: {length}, seed {space.search.seed}")
    searches = map(load_evidence, sorted((FOLDER / settings.folder.name).glob("*.json")))
    seconds = [trial["seconds"] for search in searches for trial in finished(search) if not trial["same_as"]]
    if seconds:
        each = sum(seconds) / len(seconds)
        print(f"about {duration(each * -(-trials // jobs))}, at {each:.0f} s a trial so far")
    else:
        print("no estimate: no trial was measured at this data set and scale")
