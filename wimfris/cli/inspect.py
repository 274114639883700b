"""The verbs that inspect: the machine, the model, the cost of runs, the bound on scores."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wimfris.cli.options import DataOption, ScaleOption, VariantOption, params_at


def doctor(scale: ScaleOption = None, data: DataOption = None) -> None:
    """Check versions, devices, scan backends, disk, encoders and data, and print what to install if something is
    missing. The exit code is 1 if the scale in use lacks something.
    """
    from wimfris.checks.doctor import examine

    params = params_at(scale, data)
    marks = {True: "[green]ok[/]", False: "[red]no[/]", None: "-"}
    table = Table(
        "", "part", "what", "", box=None, title=f"data set {params.settings().data.name} at scale {params.scale}"
    )
    findings = examine(params)
    for finding in findings:
        table.add_row(marks[finding.works], finding.part, escape(finding.name), escape(finding.message))
    Console().print(table)
    raise typer.Exit(1 if any(finding.works is False for finding in findings) else 0)


def profile(scale: ScaleOption = None, variant: str = "full") -> None:
    """Print the number of trained parameters of each part of the model."""
    from wimfris.measure.parameters import trained_parameters

    params = params_at(scale)
    table = Table("part", "trained parameters", title=f"{variant} at scale {params.scale}")
    table.columns[1].justify = "right"
    for part, number in trained_parameters(params.settings(variant)).items():
        table.add_row(part, f"{number:,}")
    Console().print(table)


def estimate(
    scale: ScaleOption = None,
    data: DataOption = None,
    variant: VariantOption = "full",
    batch: Annotated[int | None, typer.Option(help="The batch size; by default the scale's.")] = None,
) -> None:
    """Estimate time, memory and disk of a run and of the studies on this device, from a few timed steps."""
    from wimfris.matrix.costs import duration
    from wimfris.measure import run_cost
    from wimfris.results.measured import Measured
    from wimfris.results.studies import load_studies, variants_of

    params = params_at(scale, data)
    settings = run_cost.at_batch(params.settings(variant), batch)
    volume = run_cost.volume(settings)
    timed = run_cost.time_apart(settings)
    run, shared = run_cost.cost(settings, timed, volume), run_cost.shared_bytes(settings, volume)
    size = settings.train.batch_size
    table = Table("", "time", "disk", box=None, title=f"{settings.data.name} at scale {settings.scale}: {timed.device}")
    core, beyond = len(params.runs()), len(params.extended_runs())
    rows = [("one run", 1), (f"the core, {core} runs", core), (f"beyond it, {beyond} runs", beyond)]
    for study in load_studies():
        here = isinstance(study, Measured) or study.is_at(params.scale)
        variants = variants_of(study, params) if here else []
        if variants:
            runs = sum(len(params.runs_of(name)) for name in variants)
            rows.append((f"studies/{study.name}.py, {runs} runs, some shared", runs))
    for name, runs in rows:
        table.add_row(name, duration(runs * run.seconds), f"{runs * run.left / 1e9:.1f} GB")
    for name, size_bytes in shared.items():
        table.add_row(f"{name}, once", "", f"{size_bytes / 1e9:.1f} GB")
    table.add_row("checkpoints, while a run goes on", "", f"{run.running / 1e9:.1f} GB")
    Console().print(table)
    memory = "not known on this system" if run.memory is None else f"{run.memory / 1e9:.1f} GB"
    print(
        f"memory in training: {memory} at batch {size}; step {1000 * timed.step:.0f} ms, {size / timed.step:.1f} "
        f"images/s, {run.steps:,} steps by {volume.source}; the loader reads {run.loader:.0f} images/s; "
        f"evaluation takes {duration(run.evaluation)} of a run. One run after another, on one device."
    )


def ceiling(
    scale: ScaleOption = None,
    data: DataOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also write reports/measures/<set>-<scale>/ceiling.csv.")
    ] = False,
) -> None:
    """Print the scores of a guess, and of the true masks drawn at the size of the logits in four ways."""
    import torch

    from wimfris.data.index import read_index
    from wimfris.measure.target_resolution import scores_without_model
    from wimfris.results.measured import CEILING, write_measure
    from wimfris.results.report.markdown import METRICS, SHORT, numbers

    torch.set_num_threads(1)
    settings = params_at(scale, data).settings()
    scores = scores_without_model(settings, read_index(settings.folder / "index" / "index.parquet"))
    title = f"{settings.folder.name}: scores without a model, masks drawn at {4 * settings.grid} x {4 * settings.grid}"
    table = Table("split", "n", "mask", *(METRICS[name] for name in SHORT), title=f"{title}, percent")
    for row in scores.to_dict("records"):
        table.add_row(row["split"], str(row["n"]), row["mask"], *numbers(row, SHORT))
    Console().print(table)
    if write:
        write_measure(scores, settings, CEILING)


VERBS = (doctor, profile, estimate, ceiling)
