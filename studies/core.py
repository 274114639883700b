"""Which core variants differ from the full model?

Every core variant is compared with the full model. A comparison has one verdict, whichever study shows it.

    python studies/core.py      # 33 runs at scale tiny, all of the core: about an hour on 2 cores
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
