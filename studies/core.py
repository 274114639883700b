"""Which core variants differ from the full model?

Every core variant is compared with the full model. A comparison has one verdict, whichever study shows it.

    python studies/core.py      # 12 runs at scale tiny, all of the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="core",
    title="The core at a glance",
    question="Which core variants differ from the full model?",
    paper="Each part and the window help (Tables 3a, 3b).",
    rows=(
        Row("full", "full"),
        Row("no adapters", "none"),
        Row("no neck", "no_neck"),
        Row("no window", "no_window"),
    ),
)

if __name__ == "__main__":
    main(STUDY)
