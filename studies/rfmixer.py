"""Which receptive fields should RFMixer mix, and does it mix them better than plain ways do? (Table 4)

RFMixer sums depthwise convolutions of three sizes. The paper: 3-5-7 is the best set of kernels. The plain rivals are
ours: one depthwise 7x7, dilated 3x3 of the same reach, and no mixing.

    python studies/rfmixer.py         # 24 runs at scale tiny, 21 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

KERNELS, PLAIN = "kernels of RFMixer", "plain rivals"

STUDY = Study(
    name="rfmixer",
    title="RFMixer",
    question="Which kernels are best, and does RFMixer beat plain ways of mixing receptive fields?",
    paper="3-5-7 is the best set of kernels (Table 4): 0.9 points of mIoU over 3-3-3 on RefCOCO val.",
    rows=(
        Row("3-3-3", "kernels_333", ("T4", "kernels 3-3-3"), KERNELS),
        Row("5-5-5", "kernels_555", block=KERNELS),
        Row("7-7-7", "kernels_777", block=KERNELS),
        Row("3-5-7 (full)", "full", ("T4", "kernels 3-5-7"), KERNELS),
        Row("5-7-9", "kernels_579", block=KERNELS),
        Row("one 7x7", "mixer_depthwise_7", block=PLAIN),
        Row("dilated 3x3", "mixer_dilated", block=PLAIN),
        Row("no mixer", "mixer_none", block=PLAIN),
    ),
)

if __name__ == "__main__":
    main(STUDY)
