"""Does each part help? (Table 3b)

MSA is the adapter of the vision encoder, EP its learned emphasis (without it alpha is 1), MTA the adapter of the text
encoder. The paper adds them one after the other; the rows no adapters, MTA and MSA+MTA are ours. Every row
keeps the neck.

    python studies/components.py      # 18 runs at scale tiny, 12 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

STUDY = Study(
    name="components",
    title="Components",
    question="Do MSA, the emphasis and MTA each help?",
    paper="Each part helps: MSA, then the emphasis, then MTA, up to 77.3 mIoU on RefCOCO val (Table 3b); what "
    "we have of the first two rows is of low trust.",
    rows=(
        Row("no adapters", "none"),
        Row("MTA", "mta"),
        Row("MSA", "msa", ("T3b", "MSA")),
        Row("MSA+EP", "msa_emphasis", ("T3b", "MSA+EP")),
        Row("MSA+MTA", "msa_mta"),
        Row("MSA+EP+MTA (full)", "full", ("T3b", "MSA+EP+MTA")),
    ),
)

if __name__ == "__main__":
    main(STUDY)
