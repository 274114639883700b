"""`python studies/search.py`: search, and report what there is of the space."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from wimfris.cli.study import found_records, scale_set
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.matrix.costs import default_jobs, duration
from wimfris.matrix.processes import interruptible
from wimfris.matrix.repro import PARENTS, outdated, reproduce_parents
from wimfris.search.loop import AGAINST, SAMPLERS, Plan, evidence, run_search
from wimfris.search.promote import promoted
from wimfris.search.report import (
    confirmed_sections,
    draw,
    evidence_path,
    load_evidence,
    read_searches,
    report_sections,
    trials_frame,
)
from wimfris.search.space import Search, Space, read_search
from wimfris.settings.params import Params, read_params

QUESTION = "Which settings does a search pick, and do they hold where it did not choose by them?"
PAPER = "Window, kernels, widths, placement and loss weights are picked by hand; no search."
LEFT_TO_THE_FILES = ("P@70", "P@90", "seconds")


def main(write: Callable[..., None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Search from the command line, report with `write` (`cli.study.write_report`), and exit: 0 all is well, 2 the
    input or the storage is wrong (told in one line).
    """
    try:
        _run(write, _options(arguments))
        code = 0
    except UserError as error:
        print(f"wimfris: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=QUESTION, epilog=PAPER)
    parser.add_argument("--space", help="of params.yaml's search.spaces; by default search.space")
    parser.add_argument("--trials", type=int, help="in all, those finished before counted; by default search.trials")
    parser.add_argument("--jobs", type=int, help="trials at once; by default as many as the machine has room for")
    parser.add_argument("--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="tpe, or random to measure it by")
    parser.add_argument("--against", choices=AGAINST, help="a second objective; nothing is pruned then")
    parser.add_argument("--storage", help="URL of a database that several machines share; by default a journal file")
    parser.add_argument("--scale", help="another scale than params.yaml's, whose line is set while the search runs")
    parser.add_argument("--dry-run", action="store_true", help="say what would be searched, and where")
    parser.add_argument("--no-train", action="store_true", help="the report of what has been searched")
    return parser.parse_args(arguments)


def _run(write: Callable[..., None], options: argparse.Namespace) -> None:
    params = read_params()
    in_file = params.scale
    params = params.at_scale(options.scale)
    search = read_search(params)
    space = Space(options.space or search.space, params, search)
    jobs = options.jobs if options.jobs is not None else 1 if options.against == "latency" else default_jobs(params)
    trials = search.trials if options.trials is None else options.trials
    if options.dry_run:
        _tell_plan(space, search, options, trials, jobs)
        return
    if not options.no_train:
        with scale_set(params.scale, in_file):
            if "DVC_STAGE" not in os.environ:  # DVC has done them before it runs a stage
                with interruptible() as stop:
                    if outdated(PARENTS):
                        reproduce_parents(stop)
            plan = Plan(space, options.sampler, options.against, options.storage)
            try:
                run_search(plan, trials, jobs)
            finally:
                _write_evidence(plan)
    report(params, space.name, write)


def _write_evidence(plan: Plan) -> None:
    """What has been found so far; nothing where no trial has finished."""
    try:
        found = evidence(plan)
    except (UserError, OSError):
        return  # the reference has not been trained, or the storage is gone: the error on its way tells of it
    if found["trials"]:
        path = evidence_path(plan.space.params.settings().folder.name, plan.label)
        write_text(path, json.dumps(found, indent=1) + "\n")


def report(params: Params, space: str, write: Callable[..., None]) -> None:
    """Tables and picture of all searches of a space at the set and scale in use."""
    folder = params.settings().folder.name
    searches = read_searches(folder, space)
    named = promoted(params, searches)
    compared = [str(run) for variant in ("full", *named) for run in params.runs_of(variant)] if named else []
    records, _ = found_records(params, compared)
    shown = report_sections(searches, confirmed_sections(searches, named, records))
    intro = f"**Question.** {QUESTION}\n\n**The paper.** {PAPER}"
    write(
        folder,
        f"search-{space}",
        f"Search: {space}",
        shown,
        trials_frame(searches),
        lambda path: draw(searches, path),
        intro,
        LEFT_TO_THE_FILES,
    )


def _tell_plan(space: Space, search: Search, options: argparse.Namespace, trials: int, jobs: int) -> None:
    settings = space.settings("trial", {}, "")
    print(f"space {space.name} at {settings.folder.name}, by {options.sampler}, {trials} trials, {jobs} at once:")
    for path, distribution in space.distributions.items():
        told = ", ".join(f"{key} {value}" for key, value in distribution.model_dump(exclude={"kind", "of"}).items())
        print(f"  {path}: {distribution.kind}, {told or ' '.join(map(str, distribution.ends()))}")
    length = f"{settings.train.epochs} epochs of {settings.train.epoch_steps or 'all'} steps"
    print(f"a trial: {length}, seed {search.seed}")
    folder = Path("reports/search") / settings.folder.name
    measured = [
        trial["seconds"]
        for path in sorted(folder.glob("*.json"))
        for trial in load_evidence(path)["trials"]
        if trial["state"] == "complete" and not trial["same_as"]
    ]
    if measured:
        each = sum(measured) / len(measured)
        print(f"about {duration(each * -(-trials // jobs))} by the trials measured so far, {each:.0f} s each")
    else:
        print("no estimate: no trial has been measured at this data set and scale")
