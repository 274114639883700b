"""Which frozen encoders serve best? (not in the paper)

DINOv2 without registers, DINOv3 and SigLIP 2 in place of the paper's DINOv2 with registers; SigLIP 2's text encoder and
a small sentence encoder (MiniLM, of BERT's family) in place of CLIP's; and SigLIP 2 on both sides, whose encoders were
trained together. One side changes at a time. All are of base size, and every grid is 32 x 32: encoders with patches of
16 read images of 512 pixels. Adapters, neck and decoder keep the widths of `full`.

    wimfris encoders fetch --scale base --variant vision_dinov3    # likewise for the other variants
    python studies/encoders.py --scale base --dry-run              # 21 runs, 18 of them beyond the core
    wimfris estimate --scale base --data refcoco --variant vision_dinov3

Its variants exist at scale base alone, so the report is written only if params.yaml has this scale. Meta gives DINOv3's
weights on request. DINOv3 and SigLIP 2 see images normalised as in their pretraining.
"""

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study

VISION, TEXT, BOTH = (
    "vision encoder, with CLIP's text encoder",
    "text encoder, with DINOv2 and registers",
    "both encoders",
)

STUDY = Study(
    name="encoders",
    title="Frozen encoders",
    question="Which frozen encoders serve best, at base size and on a grid of 32 x 32?",
    paper="The paper has CLIP's text encoder and DINOv2 with registers, and no others.",
    note="Trained: all trained parameters. They differ a little, because the adapters reach from the encoders' widths.",
    rows=(
        Row("DINOv2 with registers (full)", "full", block=VISION),
        Row("DINOv2", "vision_dinov2", block=VISION),
        Row("DINOv3", "vision_dinov3", block=VISION),
        Row("SigLIP 2", "vision_siglip2", block=VISION),
        Row("SigLIP 2", "text_siglip2", block=TEXT),
        Row("MiniLM", "text_minilm", block=TEXT),
        Row("SigLIP 2", "both_siglip2", block=BOTH),
    ),
    parameters=True,
    scales=("base",),
)

if __name__ == "__main__":
    main(STUDY)
