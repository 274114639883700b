"""Does the window matter, and which size is best? (Table 3a)

The scan of the neck sees one window at a time. The paper: 4x4 is the best of 2, 4, 8 and 16, and windows beat none by
1.3 points of mIoU on RefCOCO val. By default the alignment loss uses the scan's windows, so the rows differ in their
loss too. The second block keeps the alignment window at 4 in every row.

    python studies/window_size.py  # 18 runs at scale tiny, 12 of them beyond the core
    python studies/window_size.py --scale small  # grid 16x16, where 8x8 is a window too
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

PAPERS = "alignment window: scan's"
FIXED = "alignment window: 4"
SMALL, LARGE = range(1, 16), range(9, 1000)  # sides of the grid

STUDY = Study(
    name="window_size",
    title="Window size",
    question="Does the window of the scan matter, by how much, and which size is best?",
    paper="4x4 is the best window, 1.3 points of mIoU better than none on RefCOCO val (Table 3a).",
    note="A window as large as the grid is no window. Windows of 1x1 are trained on small grids only. "
    "Without a window the alignment loss has a window of 4.",
    rows=(
        Row("1x1", "window_1", block=PAPERS, grids=SMALL),
        Row("2x2", "window_2", block=PAPERS),
        Row("4x4 (full)", "full", ("T3a", "window 4x4"), PAPERS),
        Row("8x8", "window_8", block=PAPERS, grids=LARGE),
        Row("no window", "no_window", ("T3a", "no window"), PAPERS),
        Row("1x1", "window_1_align_4", block=FIXED, grids=SMALL),
        Row("2x2", "window_2_align_4", block=FIXED),
        Row("4x4 (full)", "full", block=FIXED),
        Row("no window", "no_window", block=FIXED),
    ),
)

if __name__ == "__main__":
    main(STUDY)
