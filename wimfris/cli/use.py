"""The verbs that use a trained model: demo, predict, export."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from wimfris.errors import UserError
from wimfris.files import check_writable
from wimfris.settings.params import read_params
from wimfris.settings.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from wimfris.inference.predict import Predictor
    from wimfris.settings.params import Params

PORT = 8000
COLUMNS = {"miou": "mIoU", "oiou": "oIoU", "pr50": "Pr@0.5", "pr70": "Pr@0.7", "pr90": "Pr@0.9"}

ImageOption = Annotated[Path | None, typer.Option(help="A picture of your own.")]
TextOption = Annotated[str | None, typer.Option(help="The sentence: what to segment in it.")]
OutOption = Annotated[Path, typer.Option(help="The folder to write the mask and the overlay to.")]


def demo(
    image: ImageOption = None,
    text: TextOption = None,
    out: OutOption = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Serve a local web page instead.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of the web page.")] = PORT,
) -> None:
    """Try the shipped model: segment three scenes, evaluate it on val, and estimate the time of `make repro`."""
    if (image is None) != (text is None):
        raise UserError("demo: give --image and --text together")
    print("Loading the shipped model (some seconds) ...", flush=True)
    from wimfris.inference.predict import SHIPPED, Predictor

    predictor = Predictor.from_pretrained()
    run, scale = predictor.facts["run"], predictor.settings.scale
    print(f"Model: run {run} at scale {scale}; its card: {_shown(SHIPPED / 'README.md')}")
    if serve:
        _serve(predictor, port)
        return
    if image is not None and text is not None:
        _predict(predictor, image, text, out)
        return
    _segment_scenes(predictor, out)
    _score_val(predictor)
    _next_steps(predictor)


def predict(
    image: Annotated[Path, typer.Option(help="The picture.")],
    text: Annotated[str, typer.Option(help="The sentence: what to segment in it.")],
    run: Annotated[str | None, typer.Option(help="A trained run, <variant>-<seed>.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead of --run: a folder that `export` wrote, or a hub id.")
    ] = None,
    out: OutOption = Path(),
) -> None:
    """Segment the object that the sentence names: write its mask, and the picture with the mask drawn on it.

    Without --run or --model it uses the shipped model.
    """
    from wimfris.inference.predict import Predictor

    if run is not None and model is not None:
        raise UserError("predict: give --run or --model, not both")
    if run is not None:
        predictor = Predictor.load(read_params().settings_of(Run.parse(run)), run)
    elif model is not None:
        predictor = Predictor.from_pretrained(model)
    else:
        predictor = Predictor.from_pretrained()
        print(f"no --run: the shipped model, {predictor.facts['run']} at scale {predictor.settings.scale}")
    _predict(predictor, image, text, out)


def export(
    run: Annotated[str, typer.Argument(help="A trained run, <variant>-<seed>.")],
    out: Annotated[Path, typer.Option(help="A new folder, or one that an export wrote.")],
    encoders: Annotated[bool, typer.Option("--encoders", help="Include the frozen encoders' weights.")] = False,
) -> None:
    """Write a trained run as a model folder to share: config.json, model.safetensors and a model card."""
    from wimfris.inference.predict import CONFIG, Predictor

    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / CONFIG).is_file()):
        raise UserError(f"--out {out}: exists and is not an exported model; name a new folder")
    Predictor.load(read_params().settings_of(Run.parse(run)), run).save_pretrained(out, encoders=encoders)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _predict(predictor: "Predictor", image: Path, text: str, out: Path) -> None:
    from wimfris.data.images import read_image
    from wimfris.inference.overlay import write_prediction

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: not a folder; name another one")
    check_writable(out / f"{image.stem}-mask.png")
    paths = out / f"{image.stem}-mask.png", out / f"{image.stem}-overlay.png"
    picture = read_image(image, orient=True)
    mask = predictor(picture, text)
    if unread := predictor.unread(text):
        print(f"the sentence is too long for the model; not read: {unread}", file=sys.stderr)
    write_prediction(picture, mask, *paths)
    print(f"{mask.mean():.1%} of the picture: {paths[0]}, {paths[1]} (the prediction is outlined)")
    if not mask.any():
        print(
            "the mask is empty: the model finds nothing that the sentence names; try another sentence", file=sys.stderr
        )


def _segment_scenes(predictor: "Predictor", out: Path) -> None:
    from wimfris.inference.demo import segment_scenes
    from wimfris.inference.overlay import enlarged, write_png

    print("\nThree scenes of the val split; the prediction is outlined:")
    for example, image, mask, iou in segment_scenes(predictor):
        path = out / f"{example.path.stem}-overlay.png"
        write_png(enlarged(image, mask)[..., ::-1], path)
        print(f"  {path}  IoU {100 * iou:3.0f}%  {example.sentence!r}")


def _score_val(predictor: "Predictor") -> None:
    from wimfris.inference.demo import score_val, val_evaluator
    from wimfris.training.progress import make_progress

    print("\nScoring the model on val, every sentence:")
    with tempfile.TemporaryDirectory() as folder, make_progress() as progress:
        evaluator = val_evaluator(predictor, Path(folder))
        bar = progress.add_task("val", total=evaluator.cases("val"))
        records = score_val(predictor, evaluator, lambda: progress.advance(bar))
    run, rows = predictor.facts["run"], [("shipped model, scored here", records)]
    released = ""
    if (core := _committed(predictor)) is not None:
        released, own = core
        rows += [(f"{run}, committed evidence", own[own["run"] == run]), ("full, committed, seeds of the core", own)]
    table = Table("", "seeds", "n", *COLUMNS.values(), box=None, title_justify="left")
    table.title = (
        f"scenes, scale {predictor.settings.scale}, protocol {predictor.settings.evaluate.protocol}, val, percent"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for label, part in rows:
        table.add_row(label, *_cells(part))
    Console().print(table)
    if released:
        print(
            f"Committed: evidence release {released}. A seed gives the same weights on one kind of processor. On "
            "another one the scores differ a little."
        )


def _cells(records: "pd.DataFrame") -> list[str]:
    """Return seeds, sentences and metrics in percent, averaged over the seeds."""
    from wimfris.results.scores import by_seed

    seeds = by_seed(records)
    return [str(len(seeds)), str(int(seeds["n"].iloc[0])), *(f"{100 * seeds[name].mean():.1f}" for name in COLUMNS)]


def _committed(predictor: "Predictor") -> "tuple[str, pd.DataFrame] | None":
    """Return the release and the val records of `full` in the evidence; None outside a checkout of the project."""
    from wimfris.results.evidence import read_evidence
    from wimfris.results.releases import release_of

    try:
        params = read_params().at_scale(predictor.settings.scale)
        records = read_evidence(params).declared(params).records
    except UserError:
        return None
    own = records[(records["variant"] == "full") & (records["split"] == "val")]
    return release_of(params.settings().folder.name), own


def _next_steps(predictor: "Predictor") -> None:
    try:
        params = read_params().at_scale(predictor.settings.scale)
    except UserError:  # outside the project
        print()
    else:
        _estimate_repro(predictor, params)
    print('Your own picture: wimfris predict --image photo.jpg --text "the red circle"')
    print("In a browser: wimfris demo --serve")


def _estimate_repro(predictor: "Predictor", params: "Params") -> None:
    from wimfris.data.counts import Counts
    from wimfris.matrix.costs import default_jobs, duration
    from wimfris.measure.run_cost import cost, time_steps, volume_of

    print("\nTiming a training step on this machine ...", flush=True)
    settings, objects = predictor.settings, predictor.facts["train_objects"]
    images = settings.data.scenes.model_dump()
    counts = {split: Counts(0, int(one["n"]), images[split]) for split, one in predictor.facts["scores"].items()}
    counts["train"] = Counts(objects, 0, images["train"])
    seconds = cost(settings, time_steps(settings), volume_of(settings, counts, "the card")).seconds
    runs, jobs = len(params.runs()), default_jobs(params)
    print(
        f"Next: `make repro` trains the core's {runs} runs, {jobs} at once, and makes the report: about "
        f"{duration(seconds * runs / jobs)} here, if the machine stays as busy as it is now."
    )


def _serve(predictor: "Predictor", port: int) -> None:
    from wimfris.inference.serve import HOST, make_server

    with make_server(predictor, port) as server:
        print(f"Open http://{HOST}:{server.server_address[1]}/ in a browser; Ctrl-C ends the server.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


VERBS = (demo, predict, export)
