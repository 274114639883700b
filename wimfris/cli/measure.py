"""`wimfris measure`: what needs weights, images or a clock, as files under reports/measures, which are committed."""

from typing import Annotated

import typer

from wimfris.cli.options import ScaleOption, params_at

measure_app = typer.Typer(
    help="Measure what studies read from reports/measures: it needs weights, images or a clock.", no_args_is_help=True
)


@measure_app.command()
def decay(scale: ScaleOption = None) -> None:
    """Measure how far the text token reaches in trained and untrained scans: one to two minutes at scale tiny."""
    from wimfris.measure.decay import measure_decay

    measure_decay(params_at(scale))


@measure_app.command()
def efficiency(
    scale: ScaleOption = None,
    repetitions: Annotated[
        int,
        typer.Option(min=0, help="Of each timing in each of three rounds; 0 counts parameters and operations only."),
    ] = 20,
) -> None:
    """Measure every system's parameters, operations, time and memory: six minutes at scale tiny. Nothing else may run
    on the machine.
    """
    from wimfris.measure.efficiency import measure_efficiency

    measure_efficiency(params_at(scale), repetitions)


@measure_app.command("failure_modes")
def strata(scale: ScaleOption = None) -> None:
    """Label the evaluated sentences by target size, windows touched and distance to the context."""
    from wimfris.measure.strata_labels import measure_strata_labels

    measure_strata_labels(params_at(scale))
