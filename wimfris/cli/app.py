"""`wimfris <verb>`: the project's commands. DVC's stages call the same ones."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wimfris.errors import UserError
from wimfris.settings.params import Params, Settings, read_params

app = typer.Typer(
    help="WIMFRIS, a research harness: `dvc repro` runs it all, these are its steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The data set: make or find it, index it, audit it.", no_args_is_help=True)
encoders_app = typer.Typer(help="The frozen encoders: fetch, record, pretrain.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(encoders_app, name="encoders")

REPORTS = Path("reports")
RunOption = Annotated[str, typer.Option(help="The run, <variant>-<seed>.")]
ScaleOption = Annotated[str | None, typer.Option(help="Another scale than params.yaml's.")]
DataOption = Annotated[str | None, typer.Option(help="Another data set than params.yaml's.")]


def _params(scale: str | None = None, data: str | None = None) -> Params:
    params = read_params()
    if data is not None:
        params = params.model_copy(update={"data": params.data | {"name": data}})
    return params.at_scale(scale)


def _split_run(run: str) -> tuple[str, int]:
    variant, _, seed = run.rpartition("-")
    if not variant or not seed.isdigit():
        raise UserError(f"--run {run}: a run is named <variant>-<seed>, for example full-0")
    return variant, int(seed)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: whole numbers, separated by commas, for example 0,1,2") from None


def _settings_of(run: str) -> Settings:
    return read_params().settings(_split_run(run)[0])


@data_app.command("make")
def data_make() -> None:
    """Draw the built-in set, or note where the official files of the data set lie."""
    from wimfris.data.source import make_source

    print(f"{make_source(read_params().settings())}: the official layout of the data set in use")


@data_app.command("prepare")
def data_prepare() -> None:
    """Check every annotation and image, and write the index: one row per referred object; and its audit."""
    import pandas as pd

    from wimfris.checks.audit import audit, shared_images
    from wimfris.data.index import prepare
    from wimfris.data.mixed import COUNTS, prepare_mixed, told
    from wimfris.data.source import source_root

    settings = read_params().settings()
    data, folder, notes = settings.data, settings.folder / "index", ""
    if data.is_mixed:
        strict = data.name == "mixed_strict"
        index = prepare_mixed(source_root(settings), data.sets, folder, strict=strict)
        notes = told(pd.read_csv(folder / COUNTS), strict=strict)
        print(f"{data.name}: {notes}")
    else:
        index = prepare(source_root(settings), data.name, folder)
        if notes := shared_images(index):
            print(f"{data.name}: {notes}")
    frames = {str(name): part for name, part in index.groupby("dataset", sort=False)}
    (folder / "audit.md").write_text(audit(frames, notes))
    sentences = int(index["sentences"].map(len).sum())
    print(f"{folder}: {len(index)} referred objects, {sentences} sentences")


@data_app.command("check")
def data_check(
    sets: Annotated[
        str | None, typer.Option("--data", help="These sets, separated by commas, or `all`; by default that in use.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of the official files; by default data.root.")] = None,
) -> None:
    """Say which official file is missing and which count is wrong, and what to do about it; exit code 1 then."""
    from wimfris.checks.official_files import PUBLISHED, check

    data = read_params().settings().data
    chosen = list(PUBLISHED) if sets == "all" else _names(sets) if sets else [n for n in data.sets if n in PUBLISHED]
    if not chosen:
        print(f"data set {data.name} is drawn by `dvc repro data`: nothing to check; name others with --data")
        return
    report = check(root or Path(data.root), chosen)
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
    """Print counts, sentence lengths, mask areas, the guesser's mIoU, and images that splits or sets share."""
    from wimfris.checks.audit import audit
    from wimfris.data.index import read_index

    paths = indexes or [read_params().settings().folder / "index" / "index.parquet"]
    print(audit({str(name): part for path in paths for name, part in read_index(path).groupby("dataset", sort=False)}))


@encoders_app.command("record")
def encoders_record() -> None:
    """Load the frozen encoders of the scale in use and write what identifies them."""
    from wimfris.encoders.load import describe_encoders

    settings = read_params().settings()
    path = settings.folder / "encoders.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(describe_encoders(settings), indent=2) + "\n")


@encoders_app.command("fetch")
def encoders_fetch(scale: ScaleOption = None) -> None:
    """Download the encoders of a scale from the hub, at their pinned revisions, into its local cache."""
    from wimfris.encoders.fetch import fetch_encoders

    folders = fetch_encoders(_params(scale).settings())
    print("\n".join(map(str, folders)) or "the encoders of this scale are built in or files: nothing to fetch")


@encoders_app.command("pretrain")
def encoders_pretrain(scale: ScaleOption = None) -> None:
    """Train the built-in encoders anew (about an hour), or scale small's vision encoder, and write their card."""
    from wimfris.encoders.pretrain import pretrain_builtin

    params = read_params()
    sections = {section.scale: section for section in (params.pretrain, params.pretrain_small)}
    wanted = scale or params.pretrain.scale
    if wanted not in sections:
        raise UserError(f"--scale {wanted}: its encoders are not pretrained here; there are: {', '.join(sections)}")
    pretrain_builtin(params, sections[wanted])


@app.command()
def doctor(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Say on one screen what is here and what works: versions, devices, scan backends, disk, encoders, data; what to
    install for what is missing. Exit code 1 where the scale in use lacks something.
    """
    from wimfris.checks.doctor import examine

    params = _params(scale, data)
    marks = {True: "[green]ok[/]", False: "[red]no[/]", None: "-"}
    table = Table(
        "", "part", "what", "", box=None, title=f"data set {params.settings().data.name} at scale {params.scale}"
    )
    findings = examine(params)
    for found in findings:
        table.add_row(marks[found.works], found.part, escape(found.name), escape(found.told))
    Console().print(table)
    raise typer.Exit(1 if any(found.works is False for found in findings) else 0)


@app.command()
def train(run: RunOption) -> None:
    """Train and evaluate one run. Interrupted, it goes on from its last checkpoint."""
    from wimfris.data.source import source_images
    from wimfris.training.trainer import train_run

    params = read_params()
    variant, seed = _split_run(run)
    settings = params.settings(variant)
    train_run(settings, seed, source_images(settings))


@app.command()
def matrix(
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once; by default as many as the machine has room for.")
    ] = None,
    variants: Annotated[str | None, typer.Option(help="These alone, separated by commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="These alone, separated by commas.")] = None,
    extended: Annotated[bool, typer.Option("--extended", help="The extended variants as well.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and how long it would take.")] = False,
    launcher: Annotated[
        str, typer.Option(help="local: on this machine. slurm: on a Slurm cluster, all runs at once by default.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of each task, for example partition=gpu; may be repeated."),
    ] = None,
) -> None:
    """Train what is missing or out of date of the runs of params.yaml, several at once; whatever is killed, the same
    command goes on.
    """
    from wimfris.matrix.costs import default_jobs
    from wimfris.matrix.local import run_matrix, select_runs

    if launcher not in ("local", "slurm"):
        raise UserError(f"--launcher {launcher}: there are: local, slurm")
    if slurm and launcher != "slurm":
        raise UserError(f"--slurm {slurm[0]}: needs --launcher slurm")
    params = read_params()
    chosen = None if variants is None else _names(variants)
    numbers = None if seeds is None else _numbers("--seeds", seeds)
    beyond = extended or any(name in params.extended for name in chosen or ())
    runs = select_runs(params, chosen, numbers, beyond)
    if launcher == "slurm":
        from wimfris.matrix.slurm import run_on_slurm

        failed = run_on_slurm(params, runs, jobs, slurm or [], dry_run=dry_run)
    else:
        failed = run_matrix(params, runs, default_jobs(params) if jobs is None else jobs, dry_run=dry_run)
    raise typer.Exit(1 if failed else 0)


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Where the records go (Parquet).")],
    run: Annotated[str | None, typer.Option(help="A trained run, <variant>-<seed>.")] = None,
    detris: Annotated[Path | None, typer.Option(help="Instead: a released DETRIS checkpoint (.pth).")] = None,
    protocol: Annotated[str | None, typer.Option(help="cris, lavt or remamber; by default params.yaml's.")] = None,
) -> None:
    """Evaluate a trained run again, or a released DETRIS model: all splits, all sentences, both controls. Under
    torchrun its processes share the batches.
    """
    import torch

    from wimfris.data.index import read_index
    from wimfris.data.source import source_images
    from wimfris.encoders.load import load_tokenizer
    from wimfris.inference.predict import Predictor
    from wimfris.results.tables import main_table, print_table
    from wimfris.runs.records import write_records
    from wimfris.training.build import build_device
    from wimfris.training.distributed import processes
    from wimfris.training.evaluate import Evaluator
    from wimfris.training.trainer import make_progress

    if (run is None) == (detris is None):
        raise UserError("evaluate: name either --run or --detris")
    if run is not None:
        settings, seed = read_params().with_protocol(protocol).settings(_split_run(run)[0]), _split_run(run)[1]
        predictor = Predictor.load(settings, run)
        segmenter, tokenizer, name = predictor.segmenter, predictor.tokenizer, run
    else:
        from wimfris.inference.released_detris import released_detris
        from wimfris.rivals.detris_weights import read_detris

        assert detris is not None
        params = read_params().with_protocol(protocol)
        state = read_detris(detris)
        tokenizer, seed = load_tokenizer(params.settings()), 0
        settings, segmenter = released_detris(params, state, tokenizer)
        name = f"{settings.variant}-{seed}"
    torch.set_num_threads(settings.train.threads)
    index = read_index(settings.folder / "index" / "index.parquet")
    with processes(settings.train.device) as group:
        device = build_device(settings)
        evaluator = Evaluator(settings, index, source_images(settings), tokenizer, device, group)
        segmenter.to(device)
        with make_progress(group) as progress:
            bar = progress.add_task(f"{name} evaluation", total=evaluator.cases())
            records = evaluator.report(segmenter, name, seed, lambda: progress.advance(bar))
    if group.leads:
        write_records(records, out)
        print_table(main_table(records))


@app.command()
def predict(
    run: RunOption,
    image: Annotated[Path, typer.Option(help="A picture.")],
    text: Annotated[str, typer.Option(help="What to find in it.")],
    out: Annotated[Path, typer.Option(help="Where mask and overlay go.")] = Path(),
) -> None:
    """Write the mask of what the sentence names, and the picture with it laid over."""
    from wimfris.data.dataset import read_image
    from wimfris.inference.predict import Predictor, write_prediction

    if not image.is_file():
        raise UserError(f"--image {image}: no such file")
    picture = read_image(image)
    mask = Predictor.load(_settings_of(run), run)(picture, text)
    paths = out / f"{image.stem}-mask.png", out / f"{image.stem}-overlay.png"
    write_prediction(picture, mask, *paths)
    print(f"{mask.mean():.1%} of the picture: {paths[0]}, {paths[1]}")


@app.command()
def profile(scale: ScaleOption = None, variant: str = "full") -> None:
    """Print the trained parameters of each part of the model."""
    from wimfris.measure.parameters import trained_parameters

    params = _params(scale)
    table = Table("part", "trained parameters", title=f"{variant} at scale {params.scale}")
    table.columns[1].justify = "right"
    for part, number in trained_parameters(params.settings(variant)).items():
        table.add_row(part, f"{number:,}")
    Console().print(table)


@app.command()
def estimate(
    scale: ScaleOption = None,
    data: DataOption = None,
    batch: Annotated[int | None, typer.Option(help="Another batch size, to see what fits.")] = None,
) -> None:
    """Say what a run and the studies take on this device in time, memory and disk, from a timed handful of steps."""
    from wimfris.matrix.costs import duration
    from wimfris.measure import run_cost as of
    from wimfris.results.notebook import load_studies

    params = _params(scale, data)
    settings = of.at_batch(params.settings(), batch)
    volume = of.volume(settings)
    timed = of.time_steps(settings)
    run, shared = of.cost(settings, timed, volume), of.shared_bytes(settings, volume)
    size = settings.train.batch_size
    table = Table("", "time", "disk", box=None, title=f"{settings.data.name} at scale {settings.scale}: {timed.device}")
    core, beyond = len(params.runs()), len(params.extended_runs())
    told = [("one run", 1), (f"the core, {core} runs", core), (f"beyond it, {beyond} runs", beyond)]
    for study in (found.study.at_grid(settings.grid) for found in load_studies() if found.study):
        runs = sum(len(params.runs_of(name)) for name in study.variants)
        told.append((f"studies/{study.name}.py, {runs} runs, some shared", runs))
    for name, runs in told:
        table.add_row(name, duration(runs * run.seconds), f"{runs * run.left / 1e9:.1f} GB")
    for name, held in shared.items():
        table.add_row(f"{name}, once", "", f"{held / 1e9:.1f} GB")
    table.add_row("checkpoints, while a run goes on", "", f"{run.running / 1e9:.1f} GB")
    Console().print(table)
    memory = "not told by this system" if run.memory is None else f"{run.memory / 1e9:.1f} GB"
    print(
        f"memory in training: {memory} at batch {size}; step {1000 * timed.step:.0f} ms, {size / timed.step:.1f} "
        f"images/s, {run.steps:,} steps by {volume.source}; the loader reads {run.loader:.0f} images/s; "
        f"evaluation takes {duration(run.evaluation)} of a run. One run after another, on one device."
    )


@app.command()
def ceiling() -> None:
    """Print the best score that a model can get on each split: that of the targets at the size of the logits."""
    import torch

    from wimfris.data.index import read_index
    from wimfris.measure.target_resolution import ceiling as score

    torch.set_num_threads(1)
    settings = read_params().settings()
    index = read_index(settings.folder / "index" / "index.parquet")
    table = Table(
        "split", "n", "mIoU", "oIoU", "P@50", "P@70", "P@90", title=f"{settings.folder.name}: ceiling, percent"
    )
    for split in settings.data.splits:
        found = score(settings, index[index["split"] == split])
        told = [f"{100 * found[name]:.1f}" for name in ("miou", "oiou", "pr50", "pr70", "pr90")]
        table.add_row(split, f"{found['n']:.0f}", *told)
    Console().print(table)


@app.command()
def gather(
    extended: Annotated[bool, typer.Option("--extended", help="The runs beyond the core instead.")] = False,
) -> None:
    """Write the records of the set and scale in use to reports/records, where they are committed.

    Of the core all runs; beyond it those that are there, and of the rest what was gathered before, where the run's
    settings are still the same.
    """
    from wimfris.results.evidence import evidence_path, finished, gathered, write_evidence

    params = read_params()
    settings = params.settings()
    path = evidence_path(settings.folder.name, extended)
    folder, runs, kept = settings.outs, params.runs(), list[str]()
    if extended:
        folder = settings.folder / "extended"
        runs = finished(folder, params.extended_runs())
        kept = [run for run in gathered(path) if run not in runs and _unchanged(params, run)]
        if not runs and not kept:
            raise UserError(f"{folder / 'records'}: no records; train with `wimfris matrix --extended`")
    write_evidence(folder, runs, path, kept)
    print(f"{path}: {len(runs)} runs, {len(kept)} kept from before, {path.stat().st_size / 1e6:.1f} MB")


def _unchanged(params: Params, run: str) -> bool:
    """Whether a run is declared, and its manifest is there and of the settings that params.yaml gives it now."""
    from wimfris.results.evidence import changed

    variant, _ = _split_run(run)
    if variant not in (*params.variants, *params.extended) or run not in params.runs_of(variant):
        return False
    return (params.settings(variant).outs / "manifests" / f"{run}.json").is_file() and not changed(params, run)


@app.command()
def studies() -> None:
    """Write tables and pictures of every study that is made of records alone; rows without runs stay open."""
    import runpy

    from wimfris.results.notebook import load_studies

    for found in load_studies():
        if found.study is None:
            continue
        path = f"studies/{found.name}.py"
        sys.argv = [path, "--no-train", "--gaps"]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise UserError(f"{path}: made no table, see above") from None


@app.command()
def page() -> None:
    """Hold the paper's claims against the evidence (reports/claims.md) and write the report (reports/index.html)."""
    from wimfris.results.claims_tables import write_claims
    from wimfris.results.evidence import current, read_emphasis, read_evidence
    from wimfris.results.page import write_page

    params = read_params()
    name = params.settings().folder.name
    records, emphasis = current(params, read_evidence(name)), read_emphasis(name)
    write_claims(records, emphasis[emphasis["run"].isin(records["run"])], REPORTS / "claims.md")
    write_page()


@app.command()
def promote(
    trial: Annotated[str, typer.Argument(help="A finished trial of a search, for example window_tpe_0003.")],
    name: Annotated[str, typer.Option("--as", help="The variant's name.")],
) -> None:
    """Make a trial's settings a variant of params.yaml's `extended`, to be confirmed with fresh seeds."""
    from wimfris.search.promote import promote as add

    params = add(trial, name)
    runs = params.runs_of(name)
    print(f"params.yaml: extended.{name}; confirm it with `wimfris matrix --variants full,{name}` ({', '.join(runs)})")


@app.command()
def tables() -> None:
    """Write main.{csv,md,tex} of the runs of params.yaml: to reports/tables, and beside the runs, where it stays."""
    from wimfris.results.tables import write_main_tables
    from wimfris.runs.records import read_runs

    params = read_params()
    folder = params.settings().folder
    write_main_tables(read_runs(folder, params.runs()), (REPORTS / "tables", folder / "tables"))


@app.command()
def figures() -> None:
    """Draw the gallery, the learning curves and the learned emphasis of the runs of the set and scale in use."""
    from wimfris.data.index import read_index
    from wimfris.data.source import source_images
    from wimfris.inference.predict import gallery_examples
    from wimfris.results import figures as draw
    from wimfris.runs.records import read_records

    params = read_params()
    settings = params.settings()
    folder = REPORTS / "figures" / settings.folder.name
    names = [f"full-{seed}" for seed in params.seeds]
    logs = {name: draw.read_log(settings.folder / "logs" / f"{name}.jsonl") for name in names}
    draw.learning_curves(logs, folder / "curves.png")
    draw.emphasis(logs, folder / "learned-emphasis.png", settings.scale)
    index = read_index(settings.folder / "index" / "index.parquet")
    records = read_records(settings.folder / "records" / f"{names[0]}.parquet")
    examples = gallery_examples(settings, names[0], records, index, source_images(settings), "val", count=4)
    draw.gallery(examples, folder / "gallery.png")


@app.command()
def report(
    variants: Annotated[str | None, typer.Option(help="These alone, separated by commas; by default the core.")] = None,
) -> None:
    """Print the results table of the data set and scale in use."""
    import pandas as pd

    from wimfris.results.tables import main_table, print_table
    from wimfris.runs.records import read_runs

    params = read_params()
    chosen = _names(variants) if variants else list(params.variants)
    tables = [read_runs(params.settings(variant).outs, params.runs_of(variant)) for variant in chosen]
    print_table(main_table(pd.concat(tables)))


def main() -> None:
    """The entry point: bad input is one line on stderr and exit code 2; a bug keeps its traceback."""
    try:
        app()
    except UserError as error:
        # one that a process of a data loader raised comes with that process's traceback before it
        print(f"wimfris: {str(error).rpartition('wimfris.errors.UserError: ')[2].strip()}", file=sys.stderr)
        sys.exit(2)
