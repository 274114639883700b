"""The progress bars of training and evaluation."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wimfris.training.distributed import Processes


def make_progress(group: Processes | None = None) -> Progress:
    """Return a progress bar with an estimate of the time left, on standard error. Only the leader of several processes
    shows it; a file receives its last state alone.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    silent = group is not None and not group.leads
    return Progress(*columns, console=Console(stderr=True, quiet=silent), disable=silent)
