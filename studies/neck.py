"""Does the neck help whatever the adapters are? (Table 1)

The adapters of ETRIS, DETRIS and WIMFRIS, each with no neck, with its own, and with HMF, all on the same backbones and
at about equal trainable parameters of the adapters. WIMFRIS's own neck is HMF. Every row is compared with `full`; the
second table asks the paper's question, what the neck adds to the same adapters. ETRIS's bridger is our reading of its
paper: there are no numbers of its own code to hold it to.

    python studies/neck.py            # 24 runs at scale tiny, 18 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

ETRIS = [
    Row("no neck", "etris_adapters_no_neck", ("T1", "no neck"), "ETRIS's adapters", "ETRIS"),
    Row("own neck", "etris_adapters_etris_neck", ("T1", "own neck"), "ETRIS's adapters", "ETRIS"),
    Row("HMF", "etris_adapters", ("T1", "HMF neck"), "ETRIS's adapters", "ETRIS"),
]
DETRIS = [
    Row("no neck", "detris_adapters_no_neck", ("T1", "no neck"), "DETRIS's adapters", "DETRIS"),
    Row("own neck", "detris_adapters_detris_neck", ("T1", "own neck"), "DETRIS's adapters", "DETRIS"),
    Row("HMF", "detris_adapters", ("T1", "HMF neck"), "DETRIS's adapters", "DETRIS"),
]
WIMFRIS = [
    Row("no neck", "no_neck", block="WIMFRIS's adapters"),
    Row("HMF", "full", ("T1", "HMF neck"), "WIMFRIS's adapters"),
]


def over(row: Row, other: Row) -> Row:
    """What `row` gains over `other`, which has the same adapters."""
    return Row(f"{row.label} over {other.label}", row.variant, row.published, row.block, row.system, other)


WITHIN = Study(
    name="neck_within",
    title="Necks for the same adapters",
    question="What does the neck add to the same adapters?",
    paper="HMF adds to ETRIS's and to DETRIS's adapters, and more than their own necks do (Table 1).",
    rows=(
        *(over(rows[one], rows[other]) for rows in (ETRIS, DETRIS) for one, other in ((1, 0), (2, 0), (2, 1))),
        over(WIMFRIS[1], WIMFRIS[0]),
    ),
)

STUDY = Study(
    name="neck",
    title="Adapters and necks",
    question="Does the HMF neck help whatever the adapters are?",
    paper=WITHIN.paper,
    note="ETRIS's adapters are our reading of its paper.",
    rows=(*ETRIS, *DETRIS, *WIMFRIS),
    further=(WITHIN,),
    grid=True,
)

if __name__ == "__main__":
    main(STUDY)
