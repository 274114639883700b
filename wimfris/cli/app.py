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
DATA, USE, CHECK, TRAIN, RESULTS = (
    "Data and encoders",
    "Use a model",
    "Check and measure",
    "Train and evaluate",
    "Results",
)
app.add_typer(prepare.data_app, name="data", rich_help_panel=DATA)
app.add_typer(prepare.encoders_app, name="encoders", rich_help_panel=DATA)
app.add_typer(measure.measure_app, name="measure", rich_help_panel=CHECK)
for panel, module in ((USE, use), (CHECK, inspect), (TRAIN, training), (RESULTS, evidence), (RESULTS, settle)):
    for verb in module.VERBS:
        app.command(rich_help_panel=panel)(verb)


def main() -> NoReturn:
    """Run a verb. Bad input gives one line on standard error and exit code 2; a bug keeps its traceback."""
    run_command(app)
