"""How far does the text token reach inside a scan, and does a window keep it in reach?

The paper argues that in a stable state-space model the text's influence falls geometrically, by
at least lambda = max exp(Delta A) a token, and that a window is good because it bounds the distance. It measures
nothing. A reviewer asked for the measured decay at each window size.

    wimfris measure decay        # one to two minutes at scale tiny, after the runs are trained
    python studies/decay.py      # table and picture

Measured is the Frobenius norm of d y_t / d text on validation images: y is the Mamba block's output before gate and
residual, the text token as the block sees it (normalised). The causal convolution shows the text to the three positions
behind it directly, so a rate is fitted from position 4 on, over the geometric mean of the norms. A window of 2 or less
has too few positions for that. `untrained` is the model that a run of the same seed starts from.
"""

from functools import partial

from wimfris.cli.study import main
from wimfris.results.analyses.decay import decay_report
from wimfris.results.measured import Measured

ROWS = {
    "window_1": "window 1",
    "window_2": "window 2",
    "full": "window 4",
    "no_window": "no window",  # one sequence over the whole grid
    "mixing_ssd": "window 4, Mamba-2",
}
STUDY = Measured(
    name="decay",
    title="Decay of the text token",
    question="How far does the text token reach inside a scan, at each window size, trained and untrained?",
    paper="A bound: what the text adds at position t decays like lambda^t, lambda = max exp(Delta A); a window bounds "
    "t. Nothing is measured.",
    measures=("decay.csv", "decay-curves.csv"),
    report=partial(decay_report, labels=ROWS),
)

if __name__ == "__main__":
    main(STUDY)
