"""`wimfris <verb>`: the project's commands. The stages of dvc.yaml call the same ones."""

from typing import NoReturn

import typer

from wimfris.cli import evidence, inspect, measure, prepare, settle, training, use
from wimfris.cli.entry import run_command

app = typer.Typer(
    help="WIMFRIS, a referring segmentation model: the steps that `dvc repro` runs, and tools beside them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.data_app, name="data")
app.add_typer(prepare.encoders_app, name="encoders")
app.add_typer(measure.measure_app, name="measure")
for module in (use, inspect, training, evidence, settle):
    for verb in module.VERBS:
        app.command()(verb)


def main() -> NoReturn:
    """Run a verb. Bad input gives one line on standard error and exit code 2; a bug keeps its traceback."""
    run_command(app)
