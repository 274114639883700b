"""Do MSA and MTA beat other ways of tuning with as many trained parameters? (asked by the reviewers)

Every row has the HMF neck and the same decoder, and its adapters have about the trained parameters of MSA + MTA (within
5%): LoRA, plain bottleneck adapters, DETRIS's dense aligner and text adapter, ETRIS's bridger (our reading), LAVT's
pixel-word attention. Two ends beside them: nothing tuned in the encoders, and all of them fine-tuned. Rows with tuned
rates have the learning rates of the best trial of `studies/tuning.py`; the others have the recipe of the scale.

    python studies/rivals.py          # 30 runs at scale tiny, 24 of them beyond the core
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

EQUAL, ENDS = "equal parameters", "the two ends"

STUDY = Study(
    name="rivals",
    title="Rival ways of tuning",
    question="Are MSA and MTA better than other adapters with as many trained parameters?",
    paper="The paper has no such table; its reviewers asked for one.",
    note="Trained: all trained parameters, of adapters, neck, decoder and projections. ETRIS's bridger is our reading. "
    "Rows with tuned rates have those of their best trial on split tune. The others have the recipe's rates, untuned.",
    rows=(
        Row("MSA + MTA (full)", "full", block=EQUAL),
        Row("DETRIS's adapters", "detris_adapters", block=EQUAL),
        Row("ETRIS's bridger", "etris_adapters", block=EQUAL),
        Row("bottleneck", "bottleneck", block=EQUAL),
        Row("LAVT's pixel-word attention", "pwam", block=EQUAL),
        Row("LoRA", "lora", block=EQUAL),
        Row("LoRA, tuned rates", "lora_tuned", block=EQUAL, scales=("tiny",)),
        Row("frozen", "none", block=ENDS),
        Row("fine-tuned", "finetune", block=ENDS),
        Row("fine-tuned, tuned rates", "finetune_tuned", block=ENDS, scales=("tiny",)),
    ),
    parameters=True,
)

if __name__ == "__main__":
    main(STUDY)
