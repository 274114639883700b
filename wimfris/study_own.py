"""The command line of the studies that make tables of their own: runs, options and messages as `wimfris.study` has
them, and a report that is the study's own affair.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pandas as pd

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.params import read_params
from wimfris.results.study import Study
from wimfris.results.tables import Section, csv_text, latex_text, markdown_text, print_section
from wimfris.study import PARAMS, REPORTS, Found, _options, _seeds, _tell_plan, _train


def main(study: Study, report: Callable[[Found], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Train what the study lacks, then report; exit 0 all is well, 1 a run failed, 2 the input is wrong (told in one
    line).
    """
    try:
        code = _run(study, report, arguments)
    except UserError as error:
        print(f"wimfris: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _run(study: Study, report: Callable[[Found], None], arguments: Sequence[str] | None) -> int:
    options = _options(study, arguments)
    params = read_params(PARAMS)
    in_file = params.scale
    if options.scale:
        params = params.model_copy(update={"scale": options.scale})
    found = Found(study, params, _seeds(params, options.seeds))
    if not found.runs:
        raise UserError(f"--seeds {options.seeds}: study {study.name} has no run of these")
    if options.dry_run:
        _tell_plan(found, in_file, options.jobs)
        return 0
    failed = 0 if options.no_train else _train(found, in_file, options.jobs)
    if failed:
        print(f"wimfris: {failed} runs of {study.name} failed; the same command tries them again", file=sys.stderr)
        return 1
    report(found)
    return 0


def write_report(
    folder: str,
    name: str,
    heading: str,
    sections: Sequence[Section],
    frame: pd.DataFrame,
    draw: Callable[[Path], None],
    intro: str,
    left_to_the_files: Sequence[str] = (),
) -> None:
    """Write reports/tables/<folder>/<name>.{md,csv,tex} and reports/figures/<folder>/<name>.png; print the tables
    without the columns `left_to_the_files`.
    """
    stem, picture = REPORTS / "tables" / folder / name, REPORTS / "figures" / folder / f"{name}.png"
    draw(picture)
    intro = f"{intro}\n\n![{heading}](../../figures/{folder}/{name}.png)\n"
    write_text(stem.with_suffix(".md"), markdown_text(heading, sections, intro))
    write_text(stem.with_suffix(".csv"), csv_text(frame))
    write_text(stem.with_suffix(".tex"), latex_text(sections))
    for section in sections:
        print_section(section, left_to_the_files)
    print(f"{name}: {', '.join(str(stem.with_suffix(f'.{s}')) for s in ('md', 'csv', 'tex'))}, {picture}")
