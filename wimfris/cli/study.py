"""`python studies/<name>.py` and `wimfris study <name>`: train what a study lacks, show its tables, write its report.

Only the study's stage in dvc.yaml writes its report. With another scale or with some of the seeds a study only prints,
so it never overwrites a committed table.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pandas as pd

from wimfris.cli.entry import run_command
from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.comparison import Study
from wimfris.results.comparisons import Comparisons, comparisons_path, read_comparisons
from wimfris.results.evidence import REPORTS, Evidence, evidence_names, gather, read_evidence
from wimfris.results.formats import Section, csv_text, latex_text, markdown_text, print_section
from wimfris.results.ingested import read_ingested
from wimfris.results.measured import Inputs, Measured, Report, origin_note, read_measure
from wimfris.results.plan import read_plan
from wimfris.results.published import read_published
from wimfris.results.refresh import refresh_comparisons
from wimfris.results.releases import origin_of, release_of
from wimfris.results.report.comparison_figure import draw
from wimfris.results.report.comparison_tables import sections
from wimfris.results.studies import load_study, variants_of
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

# columns that the terminal does not show
LEFT_OUT = ("seeds", "n", "SD", "Pr@0.5", "Pr@0.7", "Pr@0.9", "P(improvement)")


def main(study: Study | Measured, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a study from the command line and exit: 0 success, 1 a run failed, 2 bad input, in one line."""
    run_command(lambda: _run(study, _options(study, arguments)))


def _options(study: Study | Measured, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=study.question, epilog=study.paper)
    parser.add_argument("--scale", help="the scale; by default params.yaml's. The study then only prints its table")
    parser.add_argument("--seeds", help="only these seeds, separated by commas. The study then only prints its table")
    parser.add_argument("--jobs", type=int, help="runs at once; by default as many as fit on the machine")
    parser.add_argument("--dry-run", action="store_true", help="list the runs that would be trained, and their time")
    parser.add_argument("--no-train", action="store_true", help="print the tables of the present evidence; gaps stay")
    return parser.parse_args(arguments)


def _run(study: Study | Measured, options: argparse.Namespace) -> int:
    params = read_params().at_scale(options.scale)
    study = _here(study, params)
    runs = _select(study, params, options.seeds, declared_only=options.no_train)
    missing = _missing(params, runs)
    if options.no_train and runs and len(missing) == len(runs):
        raise UserError(
            f"{study.name}: no current evidence of any of its {len(runs)} runs; train them, without --no-train"
        )
    if runs:
        print(f"{study.name}: the evidence holds {len(runs) - len(missing)} of its {len(runs)} runs")
    if options.dry_run:
        _train(params, missing, options.jobs, dry_run=True)
        return 0
    failed = 0 if options.no_train else _train(params, missing, options.jobs)
    if missing and options.scale and not options.no_train:  # the study prints comparisons, and no stage computes these
        print(*refresh_comparisons(read_params()), sep="\n")
    if failed:
        print(f"wimfris: {failed} runs of {study.name} failed; the same command tries them again", file=sys.stderr)
        return 1
    if not (options.scale or options.seeds or options.no_train):
        return _reproduce(study)
    _print(_report(study, params, runs, alone=options.seeds is not None))
    return 0


def _here(study: Study | Measured, params: Params) -> Study | Measured:
    """Return the study with the rows of this scale. Raises UserError where the scale has none of its variants."""
    if isinstance(study, Measured):
        return study
    if not study.is_at(params.scale):
        scales = " or ".join(study.scales)
        raise UserError(f"study {study.name} must run at scale {scales}, which has its variants; add --scale {scales}")
    return study.at(params)


def _select(study: Study | Measured, params: Params, seeds: str | None, declared_only: bool) -> list[Run]:
    """Return the runs of the study, each once. Raises UserError where a variant is impossible or no run is left."""
    wanted = variants_of(study, params)
    variants = [name for name in wanted if not declared_only or name in params.all_variants]
    for variant in variants:
        params.settings(variant)
    runs = [run for variant in variants for run in params.runs_of(variant)]
    if seeds is None:
        return runs
    try:
        numbers = {int(number) for number in seeds.split(",")}
    except ValueError:
        raise UserError(f"--seeds must be whole numbers separated by commas, for example 0,1; got {seeds}") from None
    known = {run.seed for run in runs}
    if not numbers <= known:
        unknown = ", ".join(map(str, sorted(numbers - known)))
        raise UserError(f"--seeds {unknown}: {study.name} has the seeds {', '.join(map(str, sorted(known)))}")
    return [run for run in runs if run.seed in numbers]


def _missing(params: Params, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that the evidence does not hold with their present settings."""
    if params.settings().folder.name not in evidence_names():
        return list(runs)
    present = set(read_evidence(params).runs["run"])
    return [run for run in runs if str(run) not in present]


def _train(params: Params, missing: Sequence[Run], jobs: int | None, *, dry_run: bool = False) -> int:
    """Train the missing runs and add them to the evidence. Return how many failed."""
    from wimfris.matrix.local import train_runs

    if not missing:
        return 0
    trained, failures = train_runs(params, missing, jobs, dry_run=dry_run)
    if trained:
        files, runs = gather(params, trained)
        print(f"{files.records}: {len(runs)} runs added to the evidence")
    return len(failures)


def _reproduce(study: Study | Measured) -> int:
    """Let DVC write the study's report, if anything has changed, and print its tables."""
    measured = isinstance(study, Measured) and not study.controls
    if measured or (isinstance(study, Study) and study.scales):  # no stage of dvc.yaml's matrix writes it
        write_study(study.name, read_params())
    else:
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", "compare", f"study@{study.name}"]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"`{' '.join(command[2:])}` failed, see above")
    params = read_params()
    _print(_report(study, params, _select(study, params, None, declared_only=True)))
    print(f"{study.name}: {', '.join(map(str, paths_of(study.name, params.settings().folder.name)))}")
    return 0


def _print(shown: "_Shown") -> None:
    for section in shown.sections_shown:
        print_section(section, shown.report.columns_left_out or LEFT_OUT)


# --- the report of a study --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A report, and which of its sections the terminal shows."""

    report: Report
    sections_shown: list[Section]


def paths_of(name: str, folder: str, reports: Path = REPORTS) -> list[Path]:
    """Return the files of a study's report: Markdown, CSV, LaTeX, picture."""
    tables = [reports / "tables" / folder / f"{name}.{ending}" for ending in ("md", "csv", "tex")]
    return [*tables, reports / "figures" / folder / f"{name}.png"]


def write_study(name: str, params: Params) -> list[Path]:
    """Write the report of a study from the evidence; rows without evidence stay empty. Return its files."""
    study = _here(load_study(name), params)
    report = _report(study, params, _select(study, params, None, declared_only=True)).report
    further = study.pictures if isinstance(study, Study) else ()
    folder = params.settings().folder.name
    paths = write_report(name, study.title, folder, report, further)
    for part, own in report.parts.items():
        paths += write_report(f"{name}-{part}", f"{study.title}: {part}", folder, own)
    return paths


def write_report(name: str, title: str, folder: str, report: Report, further: Sequence[str] = ()) -> list[Path]:
    """Write a report as Markdown, CSV, LaTeX and a picture, and return their paths.

    further: names of more pictures that the Markdown shows.
    """
    markdown, csv, latex, picture = paths = paths_of(name, folder)
    report.draw(picture)
    links = "".join(f"\n\n![{title}](../../figures/{folder}/{file}.png)" for file in (name, *further))
    write_text(markdown, markdown_text(title, report.sections, f"{report.intro}{links}\n"))
    write_text(csv, csv_text(report.frame))
    write_text(latex, latex_text(report.sections))
    return paths


def _report(study: Study | Measured, params: Params, runs: Sequence[Run], *, alone: bool = False) -> _Shown:
    """Return the report on these runs; alone: compare them by themselves, without the committed comparisons."""
    everything = read_evidence(params)
    evidence = everything.select([str(run) for run in runs])
    if isinstance(study, Measured):
        report = study.report(_inputs(study, params, everything if study.controls else evidence))
        measured = origin_note(params.settings(), study.measures) if study.measures else ""
        reads = study.variants or study.controls
        records = f"Records: evidence {release_of(params.settings().folder.name)}." if reads else ""
        intro = "\n\n".join(filter(None, [_intro(study), f"{measured} {records}".strip(), report.intro]))
        return _Shown(replace(report, intro=intro), report.sections)
    published = read_published(REPORTS / "published.csv")
    tables = study.tables(evidence.records, _comparisons(study, params, evidence, alone), published)
    if study.parameters:
        counts = evidence.runs.drop_duplicates("variant").set_index("variant")["trained_parameters"]
        tables = [table.assign(parameters=table["variant"].map(counts).astype("Int64")) for table in tables]
    if study.costs:
        costs = evidence.runs.groupby("variant")[["minutes", "memory_gib"]].mean()
        tables = [
            table.assign(**{name: table["variant"].map(costs[name]) for name in ("minutes", "memory_gib")})
            for table in tables
        ]
    origin = origin_of(params.settings().folder.name, evidence.runs)
    shown = sections(study, tables, origin)
    if study.extra:
        shown.append(study.extra(_everything(params, study.variants), published))
    first = tables[0]["split"].iloc[0]
    terminal = sections(study, [table for table in tables if table["split"].iloc[0] == first], origin)

    def picture(path: Path) -> None:
        draw(tables[0], evidence.records, path)

    frame = pd.concat(tables, ignore_index=True)
    return _Shown(Report(shown, frame, picture, _intro(study)), terminal)


def _comparisons(study: Study, params: Params, evidence: Evidence, alone: bool) -> Comparisons:
    """Return the committed comparisons, and without a verdict those pairs of the study that they lack."""
    name = params.settings().folder.name
    if alone or not comparisons_path(name).is_file():
        return Comparisons.of_pairs(evidence.records, study.pairs)
    return read_comparisons(name).for_study(evidence.records, study.pairs, read_plan().exploratory.seeds)


def _intro(study: Study | Measured) -> str:
    return f"**Question.** {study.question}\n\n**The paper.** {study.paper}"


def _inputs(study: Measured, params: Params, evidence: Evidence) -> Inputs:
    name = params.settings().folder.name
    measures = {file: read_measure(params.settings(), file) for file in study.measures}
    comparisons = read_comparisons(name) if study.controls else None
    return Inputs(params, params.settings(), evidence.records, measures, read_ingested(params), comparisons)


def _everything(params: Params, variants: Sequence[str]) -> pd.DataFrame:
    """Return the current records of these variants at every data set and scale that has evidence."""
    parts = []
    for name in evidence_names():
        here = params.at_name(name)
        records = read_evidence(here).declared(here).records
        parts.append(records[records["variant"].isin(variants)])
    return pd.concat(parts, ignore_index=True)
