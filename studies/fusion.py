"""What matters inside the window-Mamba fusion? (the paper leaves it open)

One choice at a time, the others as in `full`: which gate, layer norm before the scan, whether the scan sees the
sentence, one scan or two, and what mixes the tokens of a window. A second family goes past the paper. Its rows
are an exploratory smoke test.

    python studies/fusion.py --dry-run          # 39 runs at scale tiny, 36 of them beyond the core
    wimfris matrix --variants cross --seeds 0   # one row of the second family, then `wimfris gather --variants cross`

With a raster scan, a text token behind the visual tokens changes nothing: `text_both` is `full`, and `text_last` is
`text_none`. They are controls (params.yaml). A scan both ways has the sentence at both ends: each begins at it.
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

PAST = Study(
    name="fusion",
    title="Past the paper, an exploratory smoke test",
    question="",
    paper="",
    rows=(
        Row("full", "full"),
        Row("two, the second in shifted windows", "passes_2", block="passes"),
        Row("2, 4, 8 and grid, a group of channels each", "windows_2_4_8_grid", block="windows"),
        Row("four directions", "cross", block="scan"),
        Row("all words in front", "text_words", block="text token"),
        Row("Mamba-2", "mixing_ssd", block="mixing in a window"),
    ),
    note="One seed says nothing about another. Minutes and GiB are those of whole runs, on the machine that trained "
    "them.",
)
STUDY = Study(
    name="fusion",
    title="Inside the fusion",
    question="Which choices inside the window-Mamba fusion matter?",
    paper="The paper fixes the sentence first and a Mamba block, and has no table of these choices.",
    rows=(
        Row("full", "full"),
        Row("text (DETRIS's)", "gate_text", block="gate"),
        Row("no gate", "gate_none", block="gate"),
        Row("no norm", "norm_off", block="norm before the scan"),
        Row("no text token", "text_none", block="text token"),
        Row("both ways, text at both ends", "bidirectional", block="scan"),
        Row("attention", "mixing_attention", block="mixing in a window"),
        Row("no mixing", "mixing_none", block="mixing in a window"),
    ),
    further=(PAST,),
    parameters=True,
    costs=True,
    note="full has the gate that attends to the words, the norm, the sentence first, a raster scan, and the SSM; each "
    "row changes one of them.",
)

if __name__ == "__main__":
    main(STUDY)
