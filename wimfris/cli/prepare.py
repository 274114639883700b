"""The verbs that prepare data and frozen encoders: `wimfris data ...` and `wimfris encoders ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from wimfris.cli.options import DataOption, ScaleOption, names, params_at
from wimfris.errors import UserError
from wimfris.settings.params import read_params

data_app = typer.Typer(help="The data set: make or locate it, index it, audit it.", no_args_is_help=True)
encoders_app = typer.Typer(help="The frozen encoders: fetch, record, pretrain.", no_args_is_help=True)


@data_app.command("make")
def data_make(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Draw the built-in set, or note where the official files of the data set lie."""
    from wimfris.data.source import make_source

    print(f"{make_source(params_at(scale, data).settings())}: the data set in the official layout")


@data_app.command("prepare")
def data_prepare(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Check every annotation and image, and write the index, one row per referred object, and its audit."""
    from wimfris.data.prepare import prepare_index

    settings = params_at(scale, data).settings()
    index, note = prepare_index(settings)
    if note:
        print(f"{settings.data.name}: {note}")
    sentences = int(index["sentences"].map(len).sum())
    print(f"{settings.folder / 'index'}: {len(index)} referred objects, {sentences} sentences")


@data_app.command("check")
def data_check(
    sets: Annotated[
        str | None, typer.Option("--data", help="These sets, separated by commas, or `all`; by default that in use.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of the official files; by default data.root.")] = None,
) -> None:
    """Say which official file is missing, which count is wrong, and what to do about it; exit code 1 then."""
    from wimfris.checks.official_files import PUBLISHED, check

    data = read_params().settings().data
    wanted = list(PUBLISHED) if sets == "all" else names(sets) if sets else [n for n in data.sets if n in PUBLISHED]
    if not wanted:
        print(f"data set {data.name} is drawn by `dvc repro data`: nothing to check; name others with --data")
        return
    report = check(root or Path(data.root), wanted)
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
    print(f"{len(report.problems)} problems" if report.problems else "all there, all counts right")
    raise typer.Exit(1 if report.problems else 0)


@data_app.command("audit")
def data_audit(
    indexes: Annotated[
        list[Path] | None, typer.Argument(help="Index files; by default that of the data set in use.")
    ] = None,
) -> None:
    """Print counts, sentence lengths, mask areas, the random guesser's mIoU, and images that splits or sets share."""
    from wimfris.checks.audit import audit
    from wimfris.data.index import read_index

    paths = indexes or [read_params().settings().folder / "index" / "index.parquet"]
    print(audit({str(name): part for path in paths for name, part in read_index(path).groupby("dataset", sort=False)}))


@encoders_app.command("record")
def encoders_record(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Load the frozen encoders and write what identifies them."""
    from wimfris.encoders.load import describe_encoders
    from wimfris.files import write_text

    settings = params_at(scale, data).settings()
    write_text(settings.folder / "encoders.json", json.dumps(describe_encoders(settings), indent=2) + "\n")


@encoders_app.command("fetch")
def encoders_fetch(scale: ScaleOption = None) -> None:
    """Download the encoders of a scale from the hub, at their pinned revisions, into its local cache."""
    from wimfris.encoders.fetch import fetch_encoders

    folders = fetch_encoders(params_at(scale).settings())
    print("\n".join(map(str, folders)) or "the encoders of this scale are built in or files: nothing to fetch")


@encoders_app.command("pretrain")
def encoders_pretrain(scale: ScaleOption = None) -> None:
    """Train the built-in encoders again (about an hour), or scale small's vision encoder, and write their card."""
    from wimfris.encoders.pretrain import pretrain_builtin

    params = read_params()
    sections = {section.scale: section for section in (params.pretrain, params.pretrain_small)}
    wanted = scale or params.pretrain.scale
    if wanted not in sections:
        raise UserError(
            f"--scale must be one of {', '.join(sections)}, whose encoders are pretrained here; got {wanted}"
        )
    pretrain_builtin(params, sections[wanted])
