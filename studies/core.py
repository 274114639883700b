"""What of the core is separated from the full model, and what stays open?

Every core variant beside the full model, in one family of comparisons: the question of somebody who looks at all of
them at once. Each part's own study asks less at a time, and so can show smaller differences.

    python studies/core.py      # 33 runs at scale tiny, all of the core: about an hour on 2 cores
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="core",
    title="The core at a glance",
    question="Which of the core's variants can be told from the full model, all of them looked at together?",
    paper="Each part and the window help (Tables 3a, 3b), by what the studies of the parts and of the window tell.",
    rows=(
        Row("full", "full"),
        Row("no adapters", "none"),
        Row("MTA alone", "mta"),
        Row("MSA alone", "msa"),
        Row("MSA, emphasis", "msa_emphasis"),
        Row("MSA, MTA (emphasis off)", "msa_mta"),
        Row("emphasis fixed at 0.2", "emphasis_02"),
        Row("no neck", "no_neck"),
        Row("window 1x1", "window_1", grids=range(1, 16)),
        Row("window 2x2", "window_2"),
        Row("no window", "no_window"),
    ),
)

if __name__ == "__main__":
    main(STUDY)
