"""In which layers should the adapters stand? (Table 5)

Every row has the same number of adapters: in the first, the middle or the last layers, or spread over every second
layer, as in `full`.

    python studies/placement.py       # 12 runs at scale tiny, 9 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="placement",
    title="Placement of the adapters",
    question="Does it matter in which layers the adapters stand?",
    paper="Spread over every second layer is best (Table 5): 0.7 to 1.1 points of mIoU over side by side, RefCOCO val.",
    note="At scale tiny the text encoder has one adapter, which spread and middle put in the same layer.",
    rows=(
        Row("early", "placement_early", ("T5", "layers 0-5")),
        Row("middle", "placement_middle", ("T5", "layers 3-8")),
        Row("late", "placement_late", ("T5", "layers 6-11")),
        Row("spread (full)", "full", ("T5", "layers 1,3,5,7,9,11")),
    ),
)

if __name__ == "__main__":
    main(STUDY)
