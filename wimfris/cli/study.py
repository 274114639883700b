"""`python studies/<name>.py`: train what a study lacks, make its tables and its pictures.

A study's runs are those of params.yaml: core and extended variants with their seeds, shared with every other study.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.comparison import Study
from wimfris.results.comparison_figure import draw
from wimfris.results.comparison_tables import markdown_intro, sections
from wimfris.results.evidence import changed, evidence_path, read_emphasis, read_evidence
from wimfris.results.figures import read_log
from wimfris.results.formats import Section, csv_text, latex_text, markdown_text, print_section
from wimfris.results.published import read_published
from wimfris.runs.records import read_records, read_runs
from wimfris.settings.params import Params, read_params

REPORTS = Path("reports")
PARAMS = Path("params.yaml")
LEFT_TO_THE_FILES = ("seeds", "n", "SD", "P@50", "P@70", "P@90", "better in")

Picture = Callable[["Found", Path], None]
"""A further picture: from what was found of the study, to a PNG."""


def _records_here(params: Params, runs: Sequence[str]) -> dict[str, Path]:
    """Those of the runs that left records under runs/, and the folder of their outs."""
    outs = {run: params.settings_of(run).outs for run in runs}
    return {run: folder for run, folder in outs.items() if (folder / "records" / f"{run}.parquet").is_file()}


def _current(params: Params, runs: Sequence[str]) -> list[str]:
    """The runs without those that were trained with other settings than params.yaml has now, which are told."""
    stale = [run for run in runs if changed(params, run)]
    if stale:
        told = ", ".join(stale)
        print(f"wimfris: left out, trained with other settings than params.yaml has now: {told}", file=sys.stderr)
    return [run for run in runs if run not in stale]


def found_records(params: Params, runs: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The records of these runs, of one that left none under runs/ from the committed evidence; and the runs that
    neither has, or only of other settings.
    """
    wanted = _current(params, runs)
    here = _records_here(params, wanted)
    parts = [read_runs(folder, [run]) for run, folder in here.items()]
    rest = set(wanted) - here.keys()
    name = params.settings().folder.name
    if rest and evidence_path(name, False, REPORTS).is_file():
        evidence = read_evidence(name, REPORTS)
        parts.append(evidence[evidence["run"].isin(rest)])
        rest -= set(evidence["run"].unique())
    records = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return records, [run for run in runs if run in rest or run not in wanted]


class Found:
    """What there is of a study at one data set and scale: its runs' records and logs, its tables."""

    def __init__(self, study: Study, params: Params, seeds: Sequence[int] | None, gaps: bool = False) -> None:
        self.params, self.settings = params, params.settings()
        self.study = study.at_grid(self.settings.grid)
        self.variants = self.study.variants
        if gaps:
            self.variants = [name for name in self.variants if name in params.variants or name in params.extended]
        for variant in self.variants:
            params.settings(variant)  # refuses, in one line, what cannot be at this scale
        self.runs = [
            run
            for variant in self.variants
            for run in params.runs_of(variant)
            if not seeds or int(run.rpartition("-")[2]) in seeds
        ]
        self.records = pd.DataFrame()
        self.missing: list[str] = []

    def finished(self) -> list[str]:
        """The runs whose records lie under runs/."""
        return list(_records_here(self.params, self.runs))

    def read(self) -> None:
        """Read the records; note the runs that have none."""
        self.records, self.missing = found_records(self.params, self.runs)

    def emphasis(self, variant: str) -> dict[str, list[dict[str, Any]]]:
        """Run -> its epochs with the emphasis learned, as in its log, or as gathered where the log is not here."""
        here, found = set(self.finished()), {}
        for run in (run for run in self.runs if run.rpartition("-")[0] == variant and run not in self.missing):
            if run in here:
                found[run] = read_log(self.params.settings_of(run).outs / "logs" / f"{run}.jsonl")
                continue
            gathered = read_emphasis(self.settings.folder.name, REPORTS)
            epochs = gathered[gathered["run"] == run].groupby("epoch")
            found[run] = [
                {"event": "epoch", "epoch": epoch, "emphasis": dict(zip(of["layer"], of["alpha"], strict=True))}
                for epoch, of in epochs
            ]
        return found


def main(
    study: Study,
    pictures: dict[str, Picture] | None = None,
    arguments: Sequence[str] | None = None,
    report: Callable[[Found], None] | None = None,
) -> NoReturn:
    """Run a study from the command line and exit: 0 all is well, 1 a run failed, 2 the input is wrong (told in one
    line). `report` takes the place of the tables of records, for a study that is made of more than those.
    """
    try:
        code = _run(study, pictures or {}, _options(study, arguments), report)
    except UserError as error:
        print(f"wimfris: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _options(study: Study, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=study.question, epilog=study.paper)
    parser.add_argument("--scale", help="another scale than params.yaml's, whose line is set while the study trains")
    parser.add_argument("--seeds", help="these alone, separated by commas")
    parser.add_argument("--jobs", type=int, help="runs at once; by default as many as the machine has room for")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and how long it would take")
    parser.add_argument(
        "--no-train", action="store_true", help="the tables of what is there; refused if runs are missing"
    )
    parser.add_argument("--gaps", action="store_true", help="with --no-train: rows without runs stay open instead")
    return parser.parse_args(arguments)


def _run(
    study: Study,
    pictures: dict[str, Picture],
    options: argparse.Namespace,
    report: Callable[[Found], None] | None,
) -> int:
    params = read_params(PARAMS)
    in_file = params.scale
    params = params.at_scale(options.scale)
    if options.gaps and not options.no_train:
        raise UserError("--gaps: goes with --no-train; without it the missing runs are trained")
    found = Found(study, params, _seeds(params, options.seeds), options.gaps)
    if not found.runs:
        raise UserError(f"--seeds {options.seeds}: study {study.name} has no run of these")
    if options.dry_run:
        _tell_plan(found, in_file, options.jobs)
        return 0
    failed = 0 if options.no_train else _train(found, in_file, options.jobs)
    if report is not None and not failed:
        report(found)
        return 0
    found.read()
    if found.missing and options.gaps:
        print(f"{study.name}: left open, without records: {', '.join(found.missing)}", file=sys.stderr)
    elif found.missing and not failed:
        raise UserError(f"{study.name}: no records of {', '.join(found.missing)}; train them, without --no-train")
    try:
        _report(found, pictures)
    except UserError as error:
        if not failed:
            raise
        print(f"wimfris: no table: {error}", file=sys.stderr)
    if failed:
        print(f"wimfris: {failed} runs of {study.name} failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _seeds(params: Params, text: str | None) -> list[int] | None:
    if text is None:
        return None
    known = sorted({*params.seeds, *params.extended_seeds})
    try:
        seeds = [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: whole numbers, separated by commas, for example 0,1") from None
    for seed in seeds:
        if seed not in known:
            raise UserError(f"--seeds {seed}: not in params.yaml; there are: {', '.join(map(str, known))}")
    return seeds


# --- training ---------------------------------------------------------------------------------------------------------


def _train(found: Found, in_file: str, jobs: int | None) -> int:
    """Train what is missing or out of date; how many runs failed."""
    from wimfris.matrix.costs import default_jobs
    from wimfris.matrix.local import run_matrix

    with scale_set(found.params.scale, in_file):
        return len(run_matrix(found.params, found.runs, default_jobs(found.params) if jobs is None else jobs))


@contextmanager
def scale_set(scale: str, in_file: str, path: Path = PARAMS) -> Iterator[None]:
    """Within it params.yaml's line `scale:` names this scale: DVC's stages read it there. Restored however it ends."""
    if scale == in_file:
        yield
        return
    print(f"{path}: scale {in_file} -> {scale} while the study trains; put back after it", file=sys.stderr, flush=True)
    _write_scale(path, in_file, scale)
    try:
        yield
    finally:
        _write_scale(path, scale, in_file)


def _write_scale(path: Path, old: str, new: str) -> None:
    text, number = re.subn(rf"(?m)^(scale:\s*){re.escape(old)}\b", rf"\g<1>{new}", path.read_text(encoding="utf-8"))
    if number != 1:
        raise UserError(f"{path}: no line 'scale: {old}' to set to {new}; edit it by hand")
    write_text(path, text)


def _tell_plan(found: Found, in_file: str, jobs: int | None) -> None:
    """What would run and what it costs. At another scale than params.yaml's, DVC cannot tell what is out of date:
    there it is the runs without records.
    """
    from wimfris.matrix.costs import default_jobs, duration, estimate
    from wimfris.matrix.local import run_matrix

    params, here = found.params, set(found.finished())
    jobs = default_jobs(params) if jobs is None else jobs
    if params.scale == in_file:
        run_matrix(params, found.runs, jobs, dry_run=True)
        return
    todo = [run for run in found.runs if run not in here]
    print(
        f"{len(todo)} of {len(found.runs)} runs are missing at scale {params.scale}:"
        + "".join(f"\n  {r}" for r in todo)
    )
    cost = estimate(params, todo, jobs) if todo else None
    if cost:
        wall = duration(60 * cost.wall_minutes)
        print(f"about {cost.core_minutes:.0f} core-minutes, {wall} with {jobs} at once, by the runs measured so far")
    elif todo:
        print("no estimate: no run has been measured at this data set and scale")


# --- the report -------------------------------------------------------------------------------------------------------


def _report(found: Found, pictures: dict[str, Picture]) -> None:
    """Print the tables; write them as Markdown, CSV and LaTeX, draw the pictures, and say where."""
    study, folder = found.study, found.settings.folder.name
    stem = REPORTS / "tables" / folder / study.name
    drawn = REPORTS / "figures" / folder
    published = read_published(REPORTS / "published.csv")
    tables = study.tables(found.records, published)
    if study.parameters:
        from wimfris.measure.parameters import trained_parameters

        counts = {name: trained_parameters(found.params.settings(name))["total"] for name in found.variants}
        tables = [table.assign(parameters=table["variant"].map(counts).astype("Int64")) for table in tables]
    shown = sections(study, tables)
    if study.extra:
        shown.append(study.extra(everything(study.variants), published))
    files = [drawn / f"{study.name}.png"]
    draw(tables[0], found.records, files[0])
    for name, picture in pictures.items():
        files.append(drawn / f"{study.name}-{name}.png")
        picture(found, files[-1])
    links = [f"../../figures/{folder}/{path.name}" for path in files]
    frame = pd.concat(tables, ignore_index=True)
    written = _write_tables(stem, study.title, shown, frame, markdown_intro(study, links))
    for section in sections(study, [table for table in tables if table["split"].iloc[0] == tables[0]["split"].iloc[0]]):
        print_section(section, LEFT_TO_THE_FILES)
    print(f"{study.name}: {', '.join(map(str, [*written, *files]))}")


def _write_tables(stem: Path, heading: str, shown: Sequence[Section], frame: pd.DataFrame, intro: str) -> list[Path]:
    """Write `stem`.md, .csv and .tex; their paths."""
    texts = {"md": markdown_text(heading, shown, intro), "csv": csv_text(frame), "tex": latex_text(shown)}
    for suffix, text in texts.items():
        write_text(stem.with_suffix(f".{suffix}"), text)
    return [stem.with_suffix(f".{suffix}") for suffix in texts]


def everything(variants: Sequence[str]) -> pd.DataFrame:
    """The records of these variants at all data sets and scales: committed evidence, and over it what lies under
    runs/.
    """
    paths = [*sorted((REPORTS / "records").glob("*.parquet")), *sorted(Path("runs").glob("**/records/*.parquet"))]
    parts = [records[records["variant"].isin(variants)] for records in map(read_records, paths)]
    case = ["dataset", "scale", "run", "split", "condition", "ref_id", "sent_id"]
    return pd.concat(parts, ignore_index=True).drop_duplicates(case, keep="last", ignore_index=True)


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
    written = _write_tables(stem, heading, sections, frame, intro)
    for section in sections:
        print_section(section, left_to_the_files)
    print(f"{name}: {', '.join(map(str, [*written, picture]))}")
