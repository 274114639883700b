"""Do MSA and MTA beat other ways of tuning with as many trained parameters? (asked by the reviewers)

Every row has the HMF neck and the same decoder, and its adapters have about the trained parameters of MSA + MTA (within
5%): LoRA, plain bottleneck adapters, DETRIS's dense aligner and text adapter, ETRIS's bridger (our reading), LAVT's
pixel-word attention. Two ends beside them: nothing tuned in the encoders, and all of them fine-tuned. These rows
have the training settings of the scale. The last block has the settings of each family's best trial of
`studies/tuning.py`, `full` included, with an equal budget of trials. Its baseline is the tuned full model. That tuning
is of scale tiny alone.

    python studies/rivals.py          # 48 runs at scale tiny, 42 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

EQUAL, ENDS, TUNED = "equal parameters", "frozen and fine-tuned", "tuned, over tuned full"
FULL_TUNED = Row("MSA + MTA, over full", "full_tuned", block=TUNED)

STUDY = Study(
    name="rivals",
    title="Rival ways of tuning",
    question="Are MSA and MTA better than other adapters with as many trained parameters?",
    paper="The paper has no such table; its reviewers asked for one.",
    note="Trained: all trained parameters, of adapters, neck, decoder and projections. ETRIS's bridger is our reading. "
    "Tuned rows have the settings of their best trial on split tune, at scale tiny.",
    rows=(
        Row("MSA + MTA (full)", "full", block=EQUAL),
        Row("DETRIS's adapters", "detris_adapters", block=EQUAL),
        Row("ETRIS's bridger", "etris_adapters", block=EQUAL),
        Row("bottleneck", "bottleneck", block=EQUAL),
        Row("LAVT's pixel-word attention", "pwam", block=EQUAL),
        Row("LoRA", "lora", block=EQUAL),
        Row("frozen", "none", block=ENDS),
        Row("fine-tuned", "finetune", block=ENDS),
        FULL_TUNED,
        Row("DETRIS's adapters", "detris_adapters_tuned", block=TUNED, against=FULL_TUNED),
        Row("ETRIS's bridger", "etris_adapters_tuned", block=TUNED, against=FULL_TUNED),
        Row("bottleneck", "bottleneck_tuned", block=TUNED, against=FULL_TUNED),
        Row("LAVT's pixel-word attention", "pwam_tuned", block=TUNED, against=FULL_TUNED),
        Row("LoRA", "lora_tuned", block=TUNED, against=FULL_TUNED),
        Row("frozen", "none_tuned", block=TUNED, against=FULL_TUNED),
        Row("fine-tuned", "finetune_tuned", block=TUNED, against=FULL_TUNED),
    ),
    parameters=True,
)

if __name__ == "__main__":
    main(STUDY)
