"""The verbs that make the evidence and the report from finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from wimfris.cli.options import DataOption, ScaleOption, names, params_at
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

REPORTS = Path("reports")


def evidence() -> None:
    """Collect the records, learned emphasis and provenance of the core's runs in reports/records."""
    from wimfris.results.evidence import write_core

    params = read_params()
    files = write_core(params)
    print(f"{files.records}: {len(params.runs())} runs, {files.records.stat().st_size / 1e6:.1f} MB")


def gather(
    variants: Annotated[str | None, typer.Option(help="Only these variants, separated by commas.")] = None,
    scale: ScaleOption = None,
    data: DataOption = None,
) -> None:
    """Add finished runs beyond the core, or of other scales, to reports/records."""
    from wimfris.results.evidence import gather as merge

    params = params_at(scale, data)
    wanted = None if variants is None else names(variants)
    files, runs = merge(params, [run for run in params.all_runs() if wanted is None or run.variant in wanted])
    print(f"{files.records}: {len(runs)} runs merged ({', '.join(map(str, runs))})")


def ingest(
    name: Annotated[str, typer.Argument(help="The system's name in tables, of letters, digits and _.")],
    masks: Annotated[Path, typer.Option(help="Its masks: a JSON or JSON Lines file, or a folder of PNGs.")],
    split: Annotated[str | None, typer.Option(help="The splits, separated by commas; by default all.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace its records of these splits.")] = False,
    scale: ScaleOption = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "--data", help="The data set; by default params.yaml's.")
    ] = None,
) -> None:
    """Evaluate the masks of any system, and add its records to the evidence in reports/records."""
    from wimfris.measure.ingest import ingest as take_in
    from wimfris.results.formats import print_section
    from wimfris.results.ingested import beside_ours, ingested_section

    files, records = take_in(params_at(scale, dataset), name, masks, names(split) if split else (), replace=replace)
    print_section(ingested_section(beside_ours(records)))
    print(f"{files.records}: {name}, {len(records)} sentences; `wimfris tables` and `wimfris page` show it beside ours")


def study(name: Annotated[str, typer.Argument(help="A file of studies/, for example window_size.")]) -> None:
    """Write the tables and the picture of a study from the evidence. Rows without evidence stay empty."""
    from wimfris.cli.study import write_study

    print(f"{name}: {', '.join(map(str, write_study(name, read_params())))}")


def compare() -> None:
    """Compute all comparisons of the claims and the studies, for every data set and scale (reports/comparisons)."""
    from wimfris.results.refresh import refresh_comparisons

    print(*refresh_comparisons(read_params()), sep="\n")


def tables() -> None:
    """Write the main table (main.{csv,md,tex}): the core, and the systems that `ingest` added."""
    import pandas as pd

    from wimfris.results.evidence import read_evidence
    from wimfris.results.ingested import beside_ours, ingested_section, read_ingested
    from wimfris.results.report.tables import main_table, write_table

    params = read_params()
    core = read_evidence(params).require([str(run) for run in params.runs()])
    others = read_ingested(params)
    everything = pd.concat([core.records, others], ignore_index=True) if len(others) else core.records
    further = [ingested_section(beside_ours(everything))] if len(others) else []
    write_table(main_table(everything), REPORTS / "tables" / params.settings().folder.name / "main", further)


def figures() -> None:
    """Draw the learning curves, a gallery of predictions and the learned emphasis of `full`."""
    from wimfris.data.index import read_index
    from wimfris.data.source import source_images
    from wimfris.measure.gallery import gallery_examples
    from wimfris.results.evidence import read_evidence
    from wimfris.results.figures import emphasis, gallery, learning_curves
    from wimfris.runs.log import read_log
    from wimfris.runs.records import read_records
    from wimfris.training.outs import own_files

    params = read_params()
    settings = params.settings()
    folder = REPORTS / "figures" / settings.folder.name
    runs = [str(run) for run in params.runs_of("full")]
    files = {run: own_files(settings, Run.parse(run)) for run in runs}
    evidence = read_evidence(params)
    evidence.require(runs)
    learned = evidence.emphasis.query("variant == 'full'")  # of the seeds that decide a claim, too
    emphasis(learned, folder / "learned-emphasis.png", settings.scale)
    learning_curves(
        {run: read_log(files[run].log) for run in runs}, folder / "curves.png", settings.train.validation_images
    )
    index = read_index(settings.folder / "index" / "index.parquet")
    records = read_records(files[runs[0]].records)
    examples = gallery_examples(settings, runs[0], records, index, source_images(settings), "val", count=4)
    gallery(examples, folder / "gallery.png")


def page() -> None:
    """Write the verdicts (reports/claims.md), the report (reports/index.html) and reports/paper.tex."""
    from wimfris.results.claims import judge_place
    from wimfris.results.comparisons import read_comparisons
    from wimfris.results.evidence import evidence_names
    from wimfris.results.plan import read_plan
    from wimfris.results.report.claims_tables import write_claims
    from wimfris.results.report.page import write_page
    from wimfris.results.report.tables import write_paper_tables

    params, plan = read_params(), read_plan()
    own = params.settings().folder.name
    files = {name: read_comparisons(name) for name in (own, *(name for name in evidence_names() if name != own))}
    verdicts = judge_place(params, plan, files[own])
    write_claims(verdicts, plan, files, REPORTS / "claims.md", protocol=params.settings().evaluate.protocol)
    write_paper_tables(own)
    write_page()


def explore(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Write the page that compares two systems sentence by sentence (reports/explorer.html, or one under runs/)."""
    from wimfris.measure.explorer import write_explorer

    path = write_explorer(params_at(scale, data), report=scale is None and data is None)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def report(
    variants: Annotated[
        str | None, typer.Option(help="Only these variants, separated by commas; by default the core.")
    ] = None,
    scale: ScaleOption = None,
) -> None:
    """Print the results table from the evidence."""
    from wimfris.results.evidence import read_evidence
    from wimfris.results.report.tables import main_table, print_table

    params = params_at(scale)
    wanted = names(variants) if variants else list(params.variants)
    evidence = read_evidence(params).declared(params)
    if variants:
        evidence.require([str(run) for name in wanted for run in params.runs_of(name)])
    records = evidence.records[evidence.records["variant"].isin(wanted)]
    missing = [name for name in wanted if name not in set(records["variant"])]
    if records.empty:
        evidence.require([str(run) for run in params.runs()])
    print_table(main_table(records))
    if missing:
        print(f"no evidence with the present settings: {', '.join(missing)}; train with `wimfris matrix`")


def reproduction() -> None:
    """Compare this machine's results of the core with the committed ones (runs/<set>-<scale>/reproduction.md)."""
    from wimfris.files import write_text
    from wimfris.results.comparison import Study
    from wimfris.results.formats import markdown_text, print_section
    from wimfris.results.reproduction import reproduction as compare
    from wimfris.results.studies import load_study

    params = read_params()
    study = load_study("core")
    assert isinstance(study, Study)
    result = compare(params, study.at(params))
    if isinstance(result, str):
        print(result)
        return
    moved = result.verdict_lines() or ["none"]
    for line in result.notes():
        print(line)
    print_section(result.section())
    print("Verdicts that moved:", *moved, sep="\n  ")
    print(f"\n{result.summary}")
    path = params.settings().folder / "reproduction.md"
    intro = "\n\n".join([result.summary.capitalize() + ".", *result.notes()])
    text = markdown_text("This machine beside the committed evidence", [result.section()], intro + "\n")
    write_text(path, text + "\n## Verdicts that moved\n\n" + "".join(f"- {line}\n" for line in moved))
    print(
        f"In a file: {path}. The tracked files in reports/ now hold this machine's results; "
        "`git checkout reports` brings the committed ones back."
    )


def release(name: Annotated[str, typer.Argument(help="The release's name, for example results-2.")]) -> None:
    """Make a named release of the present evidence (reports/releases.csv, reports/evidence.md)."""
    from wimfris.results.releases import write_release

    print(f"{write_release(name)}: {name}")


def promote(
    trial: Annotated[str, typer.Argument(help="A finished trial of a search, for example all_tpe_parameters_0004.")],
    name: Annotated[str, typer.Option("--as", help="The variant's name.")],
) -> None:
    """Add the settings of a trial to params.yaml as a variant of its scale, to train it from other seeds."""
    from wimfris.search.promote import promote as add

    params = add(trial, name)
    runs = ", ".join(map(str, params.runs_of(name)))
    print(f"params.yaml: scales.{params.scale}.variants.{name}, {runs}")
    print(f"confirm it with `wimfris matrix --variants full,{name}`")


def docs() -> None:
    """Write the generated blocks of README.md and docs/ from the committed evidence."""
    from wimfris.results.report.blocks import PAGES, write_blocks

    changed = write_blocks()
    print(f"{len(PAGES)} pages, changed: {', '.join(map(str, changed)) or 'none'}")


VERBS = (
    evidence,
    gather,
    ingest,
    compare,
    study,
    tables,
    figures,
    page,
    explore,
    report,
    reproduction,
    release,
    promote,
    docs,
)
