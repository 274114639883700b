"""What does each system cost: parameters, operations, time and memory?

What does the neck's window cost, and what do the adapters, beside the necks and adapters of ETRIS and DETRIS at equal
width and about equal trained parameters? The paper states trained parameters alone (3.0M); its reviewers asked for
operations, latency, throughput and memory.

    wimfris measure efficiency        # 25 minutes at scale tiny, on a machine that does nothing else
    python studies/efficiency.py      # tables and picture

Nothing is trained: what a system costs does not depend on its weights. Parameters and operations are also given at
scale `base`, the paper's. Times there need a GPU (`wimfris measure efficiency --scale base`).
"""

from functools import partial

from wimfris.cli.study import main
from wimfris.results.analyses.efficiency import efficiency_report
from wimfris.results.measured import Measured

ROWS = {
    "full": "full (window 4)",
    "window_1": "window 1",
    "window_2": "window 2",
    "no_window": "no window",
    "passes_2": "two passes, the second shifted",
    "windows_2_4_8_grid": "windows 2, 4, 8 and grid",
    "bidirectional": "scan both ways",
    "cross": "scan in four directions",
    "text_words": "all words in front",
    "mixing_ssd": "Mamba-2",
    "mixing_attention": "window attention",
    "no_neck": "no neck",
    "none": "no adapters",
    "detris_adapters": "DETRIS adapters, HMF",
    "detris_adapters_detris_neck": "DETRIS adapters and neck",
    "detris_adapters_no_neck": "DETRIS adapters, no neck",
    "etris_adapters": "ETRIS adapters, HMF",
    "etris_adapters_etris_neck": "ETRIS adapters and neck",
    "etris_adapters_no_neck": "ETRIS adapters, no neck",
    "lora": "LoRA, HMF",
    "bottleneck": "plain adapters, HMF",
    "pwam": "LAVT's PWAM, HMF",
    "finetune": "finetuned, HMF",
}
STUDY = Measured(
    name="efficiency",
    title="Efficiency",
    question="What do the window, the neck and the adapters cost, beside those of ETRIS and DETRIS?",
    paper="3.0M trained parameters in the adapters; no operations, times or memory.",
    measures=("efficiency.csv",),
    report=partial(efficiency_report, labels=ROWS),
)

if __name__ == "__main__":
    main(STUDY)
