"""`wimfris measure`: measurements that need weights, images or a clock. Their files are committed."""

from typing import Annotated

import typer

from wimfris.cli.options import ScaleOption, params_at

measure_app = typer.Typer(
    help="Measure what needs weights, images or a clock, for studies (reports/measures).", no_args_is_help=True
)


@measure_app.command()
def decay(scale: ScaleOption = None) -> None:
    """Measure how far the text token reaches in trained and untrained scans. At scale tiny: one to two minutes."""
    from wimfris.measure.decay import measure_decay

    measure_decay(params_at(scale))


@measure_app.command()
def efficiency(
    scale: ScaleOption = None,
    repetitions: Annotated[
        int,
        typer.Option(min=0, help="Repetitions of each timing, in each of three rounds; 0 times nothing."),
    ] = 20,
    note: Annotated[str, typer.Option(help="What else ran on the machine; the table shows it.")] = "",
) -> None:
    """Measure every system's parameters, operations, time and memory. At scale tiny: 25 minutes. Run nothing else
    on the machine meanwhile.
    """
    from wimfris.measure.efficiency import measure_efficiency

    measure_efficiency(params_at(scale), repetitions, note)


@measure_app.command("failure_modes")
def strata(scale: ScaleOption = None) -> None:
    """Label every evaluated sentence: size of the target, windows that it touches, distance to its context."""
    from wimfris.measure.strata_labels import measure_strata_labels

    measure_strata_labels(params_at(scale))
