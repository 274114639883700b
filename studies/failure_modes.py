"""Where does the window help, and where does it break? The paper's Figure 7 as numbers.

Question: is the window's gain over no window another one for large targets, for targets that cross windows, for the
kinds of sentence, and where the context that names the target is far away?

The paper shows three ways to fail (Figure 7): large objects fragment at window borders, ambiguous expressions fire in
several windows, context in a far window is out of reach. It counts none of them. If it is right, the gain of the window
falls with the windows that a target touches and with the distance to its context. Large targets touch more windows
than small ones: testB, which holds large ones only, parts the two.

    python studies/failure_modes.py          # half a minute once the runs of full, window_2 and no_window are there

Windows are those of `full` on the letterboxed image, whatever the row's own window is, so that all systems are compared
on the same sentences. The landmark of a relation is known for the built-in set alone; without it, the strata of context
are left out.
"""

from functools import partial
from pathlib import Path

from wimfris.cli.study import Found, main, write_report
from wimfris.data.index import read_index
from wimfris.data.letterbox import letterbox_mask
from wimfris.errors import UserError
from wimfris.results.comparison import Row, Study
from wimfris.results.strata import annotate, draw, scene_landmarks, sections, strata_table

STUDY = Study(
    name="failure_modes",
    title="Failure modes",
    question="Is the window's gain another one for large targets, across windows, and where context is far?",
    paper="Figure 7 shows large objects that fragment at window borders, ambiguous expressions that fire in several "
    "windows, and context out of reach in a far window; it counts none of them.",
    rows=(Row("full (window 4)", "full"), Row("window 2", "window_2"), Row("no window", "no_window")),
    baseline="no_window",
)
LEFT_TO_THE_FILES = ("images", "gain these seeds", "change these seeds")


def report(found: Found) -> None:
    """Make the table and the picture of the records that were found."""
    settings = found.settings
    found.read()
    if found.missing:
        raise UserError(f"{STUDY.name}: no records of {', '.join(found.missing)}; train them, without --no-train")
    index = read_index(settings.folder / "index" / "index.parquet")
    index = index[index["split"].isin(settings.data.splits)]
    landmarks = {}
    intro = f"**Question.** {STUDY.question}\n\n**The paper.** {STUDY.paper}"
    if settings.data.name == "scenes":
        landmarks = scene_landmarks(index, settings.data.scenes.model_dump(), settings.data.image_size)
    else:
        intro += "\n\nNo strata of context: the landmarks of this data set's sentences are not known."
    cells = found.params.settings("full").scan_window or settings.grid
    window, side = cells * settings.encoders.vision.patch, -(-settings.grid // cells)
    if side <= 2:
        intro += f"\n\nThe grid has {side} x {side} windows: no context is farther than the next, and a far window, "
        intro += "the paper's third way to fail, is not to be had here."
    box = partial(letterbox_mask, size=settings.data.image_size)
    annotation = annotate(index, box, window, landmarks)
    table = strata_table(found.records, annotation, ["full", "window_2"], STUDY.baseline)
    names = {row.variant: row.label for row in STUDY.rows}

    def picture(path: Path) -> None:
        draw(table, names, path)

    shown = sections(table, names)
    write_report(settings.folder.name, STUDY.name, STUDY.title, shown, table, picture, intro, LEFT_TO_THE_FILES)


if __name__ == "__main__":
    main(STUDY, report=report)
