"""Does the harness find what is there, and nothing where nothing is?

Two controls of the comparisons themselves. A/A: two variants of one function differ by chance, so their comparisons
separate no more often than they may. Planted damage: a run of `full` in which a known share of the sentences fails is
worse by a known amount, so the comparisons find it as often as their power says.

    python studies/controls.py --dry-run    # 9 runs at scale tiny: params.yaml's controls and `text_none`
    python studies/controls.py              # table and picture, in seconds once the runs are in the evidence

Planted damage trains nothing. New seeds are drawn from the scatter of all runs in the evidence.
"""

from functools import partial

from wimfris.cli.study import main
from wimfris.results.analyses.controls import controls_report
from wimfris.results.measured import Measured

STUDY = Measured(
    name="controls",
    title="Controls of the harness",
    question="How often do the comparisons separate a function from itself, and how often do they find planted damage?",
    paper="The paper has no controls.",
    measures=(),
    report=partial(controls_report, sizes=(1.0, 2.0, 4.0)),  # points of mIoU
    controls=True,
)

if __name__ == "__main__":
    main(STUDY)
