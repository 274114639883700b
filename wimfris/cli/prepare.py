"""The verbs that prepare data and frozen encoders: `wimfris data ...` and `wimfris encoders ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from wimfris.cli.options import DataOption, ScaleOption, VariantOption, names, params_at
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.sections import SCENES, Files, Mixture

data_app = typer.Typer(help="The data set: make or locate it, check it, index it, audit it.", no_args_is_help=True)
encoders_app = typer.Typer(help="The frozen encoders: fetch, record, pretrain.", no_args_is_help=True)


@data_app.command("make")
def data_make(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Draw the built-in data set, or record where the files of a declared one lie."""
    from wimfris.data.source import make_source

    settings = params_at(scale, data).settings()
    what = "the data set in REFER's layout" if settings.data.name == SCENES else f"where {settings.data.name} lies"
    print(f"{make_source(settings)}: {what}")


@data_app.command("prepare")
def data_prepare(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Check every annotation and image. Write the index (one row per referred object) and the audit."""
    from wimfris.data.prepare import prepare_index

    settings = params_at(scale, data).settings()
    index, notes = prepare_index(settings)
    for note in notes:
        print(f"{settings.data.name}: {note}")
    sentences = int(index["sentences"].map(len).sum())
    print(f"{settings.folder / 'index'}: {len(index)} referred objects, {sentences} sentences")


@data_app.command("check")
def data_check(
    sets: Annotated[
        str | None,
        typer.Option("--data", help="The data sets, separated by commas, or `all`; by default params.yaml's."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of the declared files; by default data.root.")] = None,
) -> None:
    """Print missing files and wrong counts, and what to do. The exit code is 1 if there are any."""
    from wimfris.checks.official_files import check

    params = read_params()
    declared = {name: files for name, files in params.datasets.items() if isinstance(files, Files)}
    in_use = params.datasets.get(params.data["name"])
    used = in_use.mix if isinstance(in_use, Mixture) else (params.data["name"],)
    wanted = list(declared) if sets == "all" else names(sets) if sets else [name for name in used if name != SCENES]
    if not wanted:
        print(f"data set {SCENES} is drawn by `dvc repro data`: nothing to check; name others with --data")
        return
    for name in wanted:
        if name not in declared:
            raise UserError(
                f"--data must be one of {', '.join(declared)}, got {name}; declare it in datasets of params.yaml: "
                f"{{{name}: {{refs: ..., instances: ..., images: ..., splits: [val], tokens: 17}}}}"
            )
    report = check(root or Path(params.data["root"]), {name: declared[name] for name in wanted})
    table = Table("data set", "split", "objects", "sentences", "images")
    for name, counts in report.counts.items():
        for split, (objects, sentences, images) in counts.items():
            table.add_row(name, split, f"{objects:,}", f"{sentences:,}", f"{images:,}")
    if report.counts:
        Console().print(table)
    for line in report.notes:
        print(line)
    for line in report.problems:
        print(f"wrong: {line}")
    summary = f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)}"
    print(summary if report.problems else "all there, all counts right")
    raise typer.Exit(1 if report.problems else 0)


@data_app.command("audit")
def data_audit(
    indexes: Annotated[
        list[Path] | None, typer.Argument(help="Index files; by default that of params.yaml's data set.")
    ] = None,
) -> None:
    """Print counts, sentence lengths, mask areas, the mIoU of a random guess, and images that splits or sets share."""
    from wimfris.data.audit import audit, by_dataset
    from wimfris.data.index import read_index

    paths = indexes or [read_params().settings().folder / "index" / "index.parquet"]
    print(audit({name: part for path in paths for name, part in by_dataset(read_index(path)).items()}))


@encoders_app.command("record")
def encoders_record(variant: VariantOption = "full", scale: ScaleOption = None, data: DataOption = None) -> None:
    """Load the frozen encoders, and write their hashes."""
    from wimfris.encoders.load import describe_encoders
    from wimfris.files import write_text

    settings = params_at(scale, data).settings(variant)
    write_text(settings.encoders_record, json.dumps(describe_encoders(settings), indent=2) + "\n")


@encoders_app.command("fetch")
def encoders_fetch(variant: VariantOption = "full", scale: ScaleOption = None) -> None:
    """Download the encoders of a scale from the Hugging Face hub, at their pinned revisions."""
    from wimfris.encoders.fetch import fetch_encoders

    folders = fetch_encoders(params_at(scale).settings(variant))
    print("\n".join(map(str, folders)) or "these encoders are built in or files: nothing to fetch")


@encoders_app.command("pretrain")
def encoders_pretrain(scale: ScaleOption = None) -> None:
    """Pretrain the built-in encoders again (about an hour), or scale small's vision encoder, and write their card."""
    from wimfris.encoders.pretrain import pretrain_builtin

    params = read_params()
    sections = {section.scale: section for section in (params.pretrain, params.pretrain_small)}
    wanted = scale or params.pretrain.scale
    if wanted not in sections:
        raise UserError(
            f"--scale must be one of {', '.join(sections)}, whose encoders are pretrained here; got {wanted}"
        )
    pretrain_builtin(params, sections[wanted])
