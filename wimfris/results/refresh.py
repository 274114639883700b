"""Compute the comparisons of every data set and scale that has evidence: `wimfris compare`."""

from wimfris.results.comparisons import comparisons_path, read_comparisons, write_comparisons
from wimfris.results.evidence import evidence_names, read_evidence
from wimfris.results.plan import read_plan
from wimfris.results.studies import control_pairs, load_studies, study_pairs
from wimfris.results.tiers import compute_comparisons, moved
from wimfris.settings.params import Params


def refresh_comparisons(params: Params) -> list[str]:
    """Write reports/comparisons. Return what was written, and which verdicts changed, in lines."""
    plan, studies, lines = read_plan(), load_studies(), []
    for name in evidence_names():
        here = params.at_name(name)
        pairs = study_pairs(studies, plan, here) | dict.fromkeys(control_pairs(here), False)
        comparisons = compute_comparisons(read_evidence(here), plan, pairs, here.settings().grid, here.controls)
        before = read_comparisons(name) if comparisons_path(name).is_file() else None
        path, counts = write_comparisons(comparisons, name), (len(comparisons.primary), len(comparisons.exploratory))
        lines.append(f"{path}: {counts[0]} primary and {counts[1]} exploratory comparisons")
        lines += [f"  {line}" for line in moved(before, comparisons)] if before else []
    return lines
