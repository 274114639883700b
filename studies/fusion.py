"""What matters inside the window-Mamba fusion? (the paper leaves it open)

One choice at a time, the others as in `full`: which gate, layer norm before the scan, where in a window's sequence the
sentence stands, one scan or two, and what mixes the tokens of a window.

    python studies/fusion.py          # 21 runs at scale tiny, 18 of them beyond the core: an hour on 2 cores
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="fusion",
    title="Inside the fusion",
    question="Which choices inside the window-Mamba fusion matter?",
    paper="The paper fixes the sentence first and a Mamba block, and has no table of these choices.",
    rows=(
        Row("full", "full"),
        Row("text (DETRIS's)", "gate_text", block="gate"),
        Row("none", "gate_none", block="gate"),
        Row("off", "norm_off", block="norm before the scan"),
        Row("none", "text_none", block="text token"),
        Row("both ways, text at both ends", "bidirectional", block="scan"),
        Row("all words", "text_words", block="text token"),
        Row("four directions", "cross", block="scan"),
        Row("two, the second shifted", "passes_2", block="passes"),
        Row("2, 4, 8 and grid, by groups of channels", "windows_2_4_8_grid", block="windows"),
        Row("Mamba-2", "mixing_ssd", block="mixing in a window"),
        Row("attention", "mixing_attention", block="mixing in a window"),
        Row("none", "mixing_none", block="mixing in a window"),
    ),
    note="full has the gate that attends to the words, the norm, the sentence first, a raster scan, and the SSM; each "
    "row changes one of them.",
)

if __name__ == "__main__":
    main(STUDY)
