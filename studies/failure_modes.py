"""Where does the window help, and where does it break? The paper's Figure 7 as numbers.

Does the window's gain over no window differ for large targets, for targets that cross windows, for the kinds of
sentence, and where the context that names the target is far away?

The paper shows three ways to fail (Figure 7): large objects fragment at window borders, ambiguous expressions fire in
several windows, context in a far window is out of reach. It counts none of them. If it is right, the gain of the window
falls with the windows that a target touches and with the distance to its context. Large targets touch more windows
than small ones: testB, which holds large ones only, parts the two.

Is a low IoU a wrong object, or a bad mask? Where the records say which object a prediction overlaps most, a second
table and picture (failure_modes-objects) show the share of right objects, and the IoU where the object is right, by
kind of sentence, size and distractors of the same class, also for the systems that `wimfris ingest` took in.

    wimfris measure failure_modes              # half a minute: the strata of every evaluated sentence
    python studies/failure_modes.py     # half a minute: tables and picture

Windows are those of `full` on the letterboxed image, whatever the row's own window is, so that all systems are compared
on the same sentences. The landmark of a relation is known for the built-in set alone; without it, the strata of context
are left out.
"""

from functools import partial

from wimfris.cli.study import main
from wimfris.results.analyses.failure_modes import failure_modes_report
from wimfris.results.measured import Measured

ROWS = {"full": "full (window 4)", "window_2": "window 2", "no_window": "no window"}
STUDY = Measured(
    name="failure_modes",
    title="Failure modes",
    question="Does the window's gain differ for large targets, for targets across windows, and where context is far?",
    paper="Figure 7 shows large objects that fragment at window borders, ambiguous expressions that fire in several "
    "windows, and context out of reach in a far window; it counts none of them.",
    measures=("strata-labels.parquet",),
    report=partial(failure_modes_report, labels=ROWS, baseline="no_window"),
    variants=tuple(ROWS),
)

if __name__ == "__main__":
    main(STUDY)
