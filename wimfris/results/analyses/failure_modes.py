"""Where the window helps and where it breaks: records by strata, with the labels of `wimfris.measure.strata_labels`."""

from collections.abc import Mapping
from functools import partial

import pandas as pd

from wimfris.results.analyses import right_object
from wimfris.results.analyses.strata import draw, sections, strata_table
from wimfris.results.measured import Inputs, Report

LEFT_OUT = ("images", "gain these seeds", "change these seeds")


def failure_modes_report(inputs: Inputs, labels: Mapping[str, str], baseline: str) -> Report:
    """Compare the variants with the baseline in every stratum; labels: variant -> its name in tables and picture.

    Where records say which object a prediction overlaps most, a further part shows how often it is the right one, also
    for the systems that were not trained here.
    """
    settings = inputs.settings
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
    parts = {}
    others = sorted(inputs.ingested["variant"].unique()) if len(inputs.ingested) else []
    everything = pd.concat([inputs.records, inputs.ingested]) if others else inputs.records
    objects = right_object.objects_table(everything, inputs.measures["strata-labels.parquet"], [*labels, *others])
    if len(objects):
        picture = partial(right_object.draw, objects, labels)
        parts["objects"] = Report(right_object.sections(objects, labels), objects, picture)
    shown, picture = sections(table, labels), partial(draw, table, labels)
    return Report(shown, table, picture, "\n\n".join(intro), LEFT_OUT, parts)
