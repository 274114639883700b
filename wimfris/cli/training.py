"""The verbs that train and evaluate."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from wimfris.cli.options import DataOption, ScaleOption, names, numbers, params_at
from wimfris.errors import UserError
from wimfris.files import check_writable
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

NO_TRAINING = "WIMFRIS_NO_TRAINING"  # set in CI, for example: a run that is not finished is an error


def code(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Write the settings and the code that decide the result of each variant, one file per variant."""
    import json

    from wimfris.files import write_text
    from wimfris.runs.fingerprint import variant_content

    params = params_at(scale, data)
    for variant in params.all_variants:
        settings = params.settings(variant)
        text = json.dumps(variant_content(settings), indent=1, sort_keys=True)
        write_text(settings.folder / "code" / f"{variant}.json", text + "\n")


def train(
    run: Annotated[str | None, typer.Option(help="The run, <variant>-<seed>.")] = None,
    extra: Annotated[
        bool, typer.Option("--extra", help="Instead of --run: all runs of `extra_seeds`, one by one.")
    ] = False,
    scale: ScaleOption = None,
    data: DataOption = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train even if the store of finished runs has the run.")
    ] = False,
) -> None:
    """Train and evaluate one run. If it was interrupted, the same command continues from its last checkpoint."""
    from wimfris.runs.files import RunFiles
    from wimfris.runs.key import run_key
    from wimfris.runs.store import fetch, run_entry

    if (run is None) != extra:
        raise UserError("train: give either --run <variant>-<seed> or --extra")
    params = params_at(scale, data)
    for one in [Run.parse(run)] if run else params.extra_runs():
        settings = params.settings_of(one)
        key = run_key(settings, one.seed)
        entry, files = run_entry(settings.folder.name, str(one), key), RunFiles(settings.outs / str(one))
        # Importing torch takes seconds; taking a finished run from the store does not need it. Under torchrun, only the
        # leader of the processes may do so, see `train_run`.
        if not retrain and "WORLD_SIZE" not in os.environ and fetch(entry, files):
            print(f"{one}: taken from the store of finished runs ({key})")
            continue
        if os.environ.get(NO_TRAINING):
            raise UserError(f"{one}: not finished ({key}), and {NO_TRAINING} is set; unset it to train the run")
        from wimfris.training.run import train_run

        train_run(settings, one.seed, retrain=retrain)


def matrix(
    jobs: Annotated[int | None, typer.Option(help="Runs at once; by default as many as fit on the machine.")] = None,
    variants: Annotated[str | None, typer.Option(help="Only these variants, separated by commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, separated by commas.")] = None,
    extended: Annotated[bool, typer.Option("--extended", help="Also train the runs beyond the core.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs that would be trained, and their time.")
    ] = False,
    launcher: Annotated[
        str, typer.Option(help="local: on this machine. slurm: on a Slurm cluster, all runs at once by default.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of Slurm, for example partition=gpu; may be repeated."),
    ] = None,
) -> None:
    """Train the missing runs of params.yaml, several at once. After a kill, the same command continues."""
    from wimfris.matrix.costs import default_jobs
    from wimfris.matrix.local import run_matrix, select_runs

    if launcher not in ("local", "slurm"):
        raise UserError(f"--launcher must be local or slurm, got {launcher}")
    if slurm and launcher != "slurm":
        raise UserError(f"--slurm {slurm[0]} needs --launcher slurm")
    params = read_params()

    def show_full() -> None:
        from wimfris.results.report.tables import main_table, print_table
        from wimfris.runs.records import read_runs

        with contextlib.suppress(UserError):  # where not all runs of `full` were asked for, or one failed
            print_table(main_table(read_runs(params.settings().outs, params.runs_of("full"))))

    wanted = None if variants is None else names(variants)
    runs = select_runs(params, wanted, None if seeds is None else numbers("--seeds", seeds), extended)
    if launcher == "slurm":
        from wimfris.matrix.slurm import run_on_slurm

        failures = run_on_slurm(params, runs, jobs, slurm or [], dry_run=dry_run, show_full=show_full)
    else:
        jobs = default_jobs(params) if jobs is None else jobs
        failures = run_matrix(params, runs, jobs, dry_run=dry_run, show_full=show_full)
    raise typer.Exit(1 if failures else 0)


def clean(
    everything: Annotated[bool, typer.Option("--all", help="Also remove finished runs that are current.")] = False,
) -> None:
    """Remove finished runs that are no longer current from the store. runs/ and DVC's cache stay."""
    from wimfris.runs.key import run_key
    from wimfris.runs.store import STORE, prune, run_entry

    params = read_params()
    current = set()
    for run in params.all_runs() if not everything else ():
        settings = params.settings_of(run)
        try:
            current.add(run_entry(settings.folder.name, str(run), run_key(settings, run.seed)))
        except UserError as error:
            if kept := set(STORE.glob(f"{settings.folder.name}-{run}-*")):
                print(f"{run}: kept, because whether it is current is unknown ({error})")
                current |= kept
    removed = prune(f"{params.settings().folder.name}-", current)
    kept_entries = sum(entry.is_dir() for entry in current)
    print(f"finished runs in the store: {len(removed)} removed, {kept_entries} kept")


def verify(
    run: Annotated[list[str] | None, typer.Option(help="A run to train; may be repeated. By default full-0.")] = None,
) -> None:
    """Train runs again, without the store, and compare them with the evidence. Write the result to
    reports/attestations.csv.
    """
    from wimfris.checks.verify import verify_runs

    runs = [Run.parse(name) for name in run or ["full-0"]]
    for line in verify_runs(read_params(), runs):
        print(line)


def evaluate(
    out: Annotated[Path, typer.Option(help="The Parquet file to write the records to.")],
    run: Annotated[str | None, typer.Option(help="A trained run, <variant>-<seed>.")] = None,
    detris: Annotated[Path | None, typer.Option(help="Instead of --run: a released DETRIS checkpoint (.pth).")] = None,
    protocol: Annotated[str | None, typer.Option(help="cris, lavt or remamber; by default params.yaml's.")] = None,
    export_masks: Annotated[
        Path | None, typer.Option(help="Also write the predicted masks, as JSON Lines that `wimfris ingest` reads.")
    ] = None,
) -> None:
    """Evaluate a trained run, or a released DETRIS model, on all sentences of all splits, and with both controls on
    `evaluate.control_images` of each split. Under torchrun the processes share the batches.
    """
    import torch

    from wimfris.data.index import read_index
    from wimfris.data.masks import write_masks
    from wimfris.data.objects import read_objects
    from wimfris.data.source import source_images
    from wimfris.encoders.load import load_tokenizer
    from wimfris.inference.predict import Predictor
    from wimfris.results.report.tables import main_table, print_table
    from wimfris.runs.records import write_records
    from wimfris.training.build import build_device
    from wimfris.training.distributed import processes
    from wimfris.training.evaluate import Evaluator
    from wimfris.training.progress import make_progress

    if (run is None) == (detris is None):
        raise UserError("evaluate: give either --run or --detris")
    check_writable(out)
    if export_masks is not None:
        check_writable(export_masks)
    params = read_params().with_protocol(protocol)
    if run is not None:
        one = Run.parse(run)
        settings = params.settings_of(one)
        predictor = Predictor.load(read_params().settings_of(one), run)  # another protocol judges the same weights
        segmenter, tokenizer = predictor.segmenter, predictor.tokenizer
    else:
        from wimfris.measure.released_detris import released_detris
        from wimfris.rivals.detris_weights import read_detris

        assert detris is not None
        state = read_detris(detris)
        tokenizer = load_tokenizer(params.settings())
        settings, segmenter = released_detris(params, state, tokenizer)
        one = Run(settings.variant, 0)
    torch.set_num_threads(settings.train.threads)
    index, objects = read_index(settings.folder / "index" / "index.parquet"), read_objects(settings.folder / "index")
    with processes(settings.train.device) as group:
        device = build_device(settings)
        keep, images = export_masks is not None, source_images(settings)
        evaluator = Evaluator(settings, index, images, tokenizer, device, group, objects, keep_masks=keep)
        segmenter.to(device)
        with make_progress(group) as progress:
            bar = progress.add_task(f"{one} evaluation", total=evaluator.report_cases())
            records = evaluator.report(segmenter, str(one), one.seed, lambda: progress.advance(bar))
    if group.leads:
        if export_masks is not None:
            write_masks(records[records["condition"] == "sentence"], export_masks)
        write_records(records.drop(columns="mask", errors="ignore"), out)
        print_table(main_table(records))


VERBS = (code, train, matrix, clean, verify, evaluate)
