"""How does WIMFRIS compare with other systems, on every data set and split? (Table 2)

Trained here, on the same backbones and data: WIMFRIS, and DETRIS and ETRIS with their own adapters and necks (ETRIS as
we read it). The last table is the paper's: all published figures, and beside each system what our runs at the paper's
scales gave. A dash is a gap: nobody has stated the figure, or we have not run it.

    python studies/comparison.py                # 9 runs at scale tiny, 6 of them beyond the core
    python studies/comparison.py --scale base   # the paper's scale: a GPU and COCO's images, see docs/paper_scale.md
"""

import pandas as pd

from wimfris.cli.study import main
from wimfris.results.comparison import Row, Study
from wimfris.results.formats import DASH, Section
from wimfris.results.published import BUILT_IN, Published
from wimfris.results.report.tables import main_table

SYSTEMS = {"full": "WIMFRIS", "detris_adapters_detris_neck": "DETRIS", "etris_adapters_etris_neck": "ETRIS"}
SIZES = {"base": "B", "large": "L"}
COLUMNS = [
    *((dataset, split) for dataset in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
    *(("refcocog-umd", split) for split in ("val", "test")),
    ("refcocog-google", "val"),
]


def table_2(records: pd.DataFrame, published: Published) -> Section:
    """mIoU / oIoU of every system on every split: the published figures, and our runs' at the paper's scales."""
    cells: dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]] = {}
    for figure in published.values():
        if figure.table == "T2" and (figure.dataset, figure.split) in COLUMNS:
            own = cells.setdefault((figure.system, figure.variant), {})
            own.setdefault((figure.dataset, figure.split), {})[figure.metric] = figure.value
    for system in SYSTEMS.values():
        for size in SIZES.values():
            cells.setdefault((f"{system}-{size}", "ours"), {})
    natural = records[
        (records["dataset"] != BUILT_IN) & records["scale"].isin(SIZES) & records["variant"].isin(SYSTEMS)
    ]
    for row in main_table(natural).to_dict("records") if len(natural) else ():
        own = cells[f"{SYSTEMS[row['system']]}-{SIZES[row['scale']]}", "ours"]
        own[row["dataset"], row["split"]] = {name: 100 * row[name] for name in ("miou", "oiou")}
    rows = [
        {"system": system, "figures": source}
        | {f"{dataset} {split}": _cell(figures.get((dataset, split), {})) for dataset, split in COLUMNS}
        for (system, source), figures in sorted(cells.items())
    ]
    note = f"mIoU / oIoU in percent. {DASH}: nothing trustworthy is known, or not run. Sources: published.csv."
    return Section("Every data set and split, published and ours", note, pd.DataFrame(rows), left=("system", "figures"))


def _cell(figures: dict[str, float]) -> str:
    if not figures:
        return DASH
    return " / ".join(f"{figures[name]:.1f}" if name in figures else DASH for name in ("miou", "oiou"))


STUDY = Study(
    name="comparison",
    title="Comparison of systems",
    question="How does WIMFRIS compare with DETRIS and ETRIS, each with its own adapters and neck?",
    paper="WIMFRIS-B is 1.3 points of mIoU ahead of DETRIS-B on RefCOCO val (Table 2).",
    note="ETRIS is our reading of its paper.",
    rows=(
        Row("WIMFRIS (full)", "full", ("T2", "paper")),
        Row("DETRIS", "detris_adapters_detris_neck", ("T2", "released"), system="DETRIS-B"),
        Row("ETRIS", "etris_adapters_etris_neck"),
    ),
    extra=table_2,
)

if __name__ == "__main__":
    main(STUDY)
