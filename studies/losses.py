"""Does each term of the loss help? (the paper does not say)

L = 0.5 contrast + 0.3 Dice + 0.2 alignment. Terms are left out by a weight of 0, the others keep theirs. The last row
gives the alignment loss the share of target pixels in a window as its target, where `full` asks whether there is any.

    python studies/losses.py          # 15 runs at scale tiny, 12 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="losses",
    title="Losses",
    question="Does each term of the loss help, and which target suits the alignment loss?",
    paper="The paper gives the weights 0.5, 0.3 and 0.2, and no table of them.",
    rows=(
        Row("contrast", "loss_contrast"),
        Row("contrast + Dice", "loss_contrast_dice"),
        Row("contrast + alignment", "loss_contrast_align"),
        Row("all three (full)", "full"),
        Row("all, target a share", "align_fraction"),
    ),
)

if __name__ == "__main__":
    main(STUDY)
