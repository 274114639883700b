"""`python studies/tuning.py`: tune every family with the same budget, or compare candidates for the recipe."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from wimfris.cli.entry import run_command
from wimfris.cli.options import names
from wimfris.cli.study import write_report
from wimfris.errors import UserError
from wimfris.matrix.local import train_runs
from wimfris.results.analyses.tuning import (
    add_rows,
    draw_tuning,
    families_section,
    measured_row,
    read_tuning,
    recipe_runs,
    recipe_section,
    trial_runs,
    tuning_file,
    whole_runs,
)
from wimfris.results.evidence import REPORTS
from wimfris.results.formats import print_section
from wimfris.results.measured import Report
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

QUESTION = (
    "Which learning rate and which factor of its own suit each family, and which recipe needs the least training for a "
    "verdict?"
)
PAPER = "The rivals' settings are those of their papers; no tuning on a split of its own is reported."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Tune from the command line and exit: 0 success, 1 a run failed, 2 bad input, in one line."""
    run_command(lambda: _run(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=QUESTION, epilog=PAPER)
    parser.add_argument("--families", help="only these, separated by commas; default: all of params.yaml's tuning")
    parser.add_argument("--recipe", action="store_true", help="run the candidates for the recipe instead")
    parser.add_argument("--jobs", type=int, help="runs at once; by default as many as fit on the machine")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long it would take")
    parser.add_argument("--no-train", action="store_true", help="print the tables of what was measured")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    params = read_params()
    tuning, file = params.tuning, tuning_file(params, REPORTS)
    families = names(options.families) if options.families else list(tuning.families)
    for family in families:
        if family not in tuning.families:
            raise UserError(f"--families {family}: params.yaml tunes {', '.join(tuning.families)}")
    failed = 0
    if not options.no_train:
        if options.recipe:
            failed = _train(params, recipe_runs(tuning), options)
        else:
            failed = _train(params, trial_runs(tuning, families), options)
            failed += _train(params, whole_runs(params, families, read_tuning(params, file)), options)
    if options.dry_run:
        if not options.recipe:
            print(f"then the {tuning.best} best trials of each family are trained at full length, seeds {tuning.seeds}")
        return 0
    frame = read_tuning(params, file)
    if frame.empty:
        raise UserError(f"{file}: no tuning run was measured; run `python studies/tuning.py`")
    sections = [families_section(params, frame), recipe_section(params, frame)]
    for section in sections:
        print_section(section)
    if not options.no_train:
        intro = f"**Question.** {QUESTION}\n\n**The paper.** {PAPER}"
        report = Report(sections, frame, lambda path: draw_tuning(params, frame, path), intro)
        paths = write_report("tuning", "Tuning", params.settings().folder.name, report)
        print(f"tuning: {', '.join(map(str, (file, *paths)))}")
    return 1 if failed else 0


def _train(params: Params, runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Train those of the runs that are not measured yet, add their rows, and return how many failed."""
    file = tuning_file(params, REPORTS)
    measured = set(read_tuning(params, file)["run"])
    missing = [run for run in runs if str(run) not in measured]
    if not missing:
        return 0
    trained, failures = train_runs(params, missing, options.jobs, dry_run=options.dry_run)
    if trained:
        add_rows(file, [measured_row(params, run, params.settings_of(run).outs / str(run)) for run in trained])
    return len(failures)
