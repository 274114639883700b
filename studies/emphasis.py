"""What does the emphasis learn, and is learning it worth anything? (Figure 6)

f = x + alpha MSA(x), one alpha a layer. In the paper it falls with depth, from 0.6 - 0.8 in layers 1 to 5 of ViT-B to
0.2 - 0.4 in layers 9 to 11. Here the learned alpha stands beside two fixed ones: 1 (no emphasis) and DETRIS's 0.2. The
second picture shows the alpha that the runs of `full` learned.

    python studies/emphasis.py        # 9 runs at scale tiny, 6 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="emphasis",
    title="Emphasis",
    question="Is a learned emphasis better than a fixed one, and does it fall with depth?",
    paper="Learned alpha falls with depth: 0.6 to 0.8 in layers 1 to 5, 0.2 to 0.4 in layers 9 to 11 (Figure 6). No "
    "table sets it against a fixed one.",
    rows=(
        Row("learned (full)", "full"),
        Row("fixed at 1", "msa_mta"),
        Row("fixed at 0.2", "emphasis_02"),
    ),
    pictures=("learned-emphasis",),
)

if __name__ == "__main__":
    main(STUDY)
