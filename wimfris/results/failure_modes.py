"""Where the window helps and where it breaks: records by strata, with the labels of `wimfris.measure.strata_labels`."""

from collections.abc import Mapping
from functools import partial

from wimfris.results.measured import Inputs, Report
from wimfris.results.strata import draw, sections, strata_table

LEFT_OUT = ("images", "gain these seeds", "change these seeds")


def failure_modes_report(inputs: Inputs, labels: Mapping[str, str], baseline: str) -> Report:
    """Compare the variants with the baseline in every stratum; labels: variant -> its name in tables and picture."""
    settings = inputs.params.settings("full")
    systems = [variant for variant in labels if variant != baseline]
    table = strata_table(inputs.records, inputs.measures["strata-labels.parquet"], systems, baseline)
    intro = []
    if settings.data.name != "scenes":
        intro.append("No strata of context: the landmarks of this data set's sentences are not known.")
    side = -(-settings.grid // (settings.scan_window or settings.grid))
    if side <= 2:
        intro.append(
            f"The grid has {side} x {side} windows. No context is farther than the next window, so the paper's third "
            "failure, context in a far window, cannot occur here."
        )
    return Report(sections(table, labels), table, partial(draw, table, labels), "\n\n".join(intro), LEFT_OUT)
