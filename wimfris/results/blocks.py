"""Generated blocks of README.md and docs/: numbers and verdicts from the committed evidence.

A block lies between `<!-- generated: NAME -->` and `<!-- end -->`. `wimfris docs` writes all of them. Verdicts are
those of reports/claims.md alone, so that a text never states two verdicts on one comparison.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.comparison import Study
from wimfris.results.releases import release_of
from wimfris.results.studies import load_studies
from wimfris.settings.params import Params, read_params

PAGES = ("README.md", "docs/results.md", "docs/statistics.md", "docs/search.md", "docs/gpu.md")
AT_A_GLANCE = ("full", "none", "msa", "no_neck", "window_1")
EXAMPLE = ("The neck matters.", "no_neck")  # the claim and the rival of the example in docs/statistics.md
METRICS = {
    "miou": "mIoU",
    "miou_sd": "SD",
    "oiou": "oIoU",
    "pr50": "Pr@0.5",
    "pr60": "Pr@0.6",
    "pr70": "Pr@0.7",
    "pr80": "Pr@0.8",
    "pr90": "Pr@0.9",
}
WIDTH = 125  # of a line of text
_SHORT = ("miou", "oiou", "pr50", "pr70", "pr90")
_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_THE_PAPER = "They say nothing about the paper's scale."

Frame = pd.DataFrame


class Evidence:
    """The committed files that the blocks are made from.

    root: the project's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reports = root / "reports"
        self.params: Params = read_params(root / "params.yaml")

    def table(self, name: str, folder: str | None = None) -> Frame:
        """Return the CSV of a table, by default at the data set and scale of params.yaml."""
        path = self.reports / "tables" / (folder or self.params.settings().folder.name) / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such table; restore it with `git checkout reports`")
        return pd.read_csv(path)

    def claims(self) -> list[dict[str, str]]:
        """Return the rows of the first table of reports/claims.md: claim, verdict, why, ..."""
        return markdown_rows((self.reports / "claims.md").read_text(encoding="utf-8"))

    def comparisons(self, claim: str) -> list[dict[str, str]]:
        """Return the rows of a claim's own table in reports/claims.md: comparison, ΔmIoU, these seeds, ..."""
        text = (self.reports / "claims.md").read_text(encoding="utf-8")
        return markdown_rows(text.partition(f"\n## {claim}\n")[2].partition("\n## ")[0])


def fill(text: str, evidence: Evidence) -> str:
    """Return the text with every block filled. Raises UserError for a name that no block has."""

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise UserError(f"generated block {match[2]}: must be one of {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]](evidence)}\n{match[3]}"

    return _BLOCK.sub(block, text)


def write_blocks(root: Path = Path()) -> list[Path]:
    """Fill the blocks of all pages. Return the pages that changed."""
    evidence, changed = Evidence(root), []
    for path in (root / page for page in PAGES):
        before = path.read_text(encoding="utf-8")
        after = fill(before, evidence)
        if after != before:
            write_text(path, after)
            changed.append(path)
    return changed


def markdown_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of the first Markdown table of a text, by column, without escapes."""
    lines = [line for line in text.partition("\n|")[2].partition("\n\n")[0].splitlines() if line]
    cells = [[cell.strip().replace("\\_", "_") for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table whose first columns are of words and whose others are of numbers."""
    align = ["left" if column < words else "right" for column in range(len(header))]
    text = tabulate(list(rows), headers=header, tablefmt="pipe", disable_numparse=True, colalign=align)
    return re.sub(r" {2,}", " ", re.sub(r"-{4,}", "---", text))


def _numbers(row: Mapping[Any, Any], metrics: Iterable[str]) -> list[str]:
    return ["" if pd.isna(row[metric]) else f"{100 * row[metric]:.1f}" for metric in metrics]


def _val_of_core(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the val rows of the table of the core, by variant."""
    table = evidence.table("core")
    rows: list[dict[Any, Any]] = table[table["split"] == "val"].to_dict("records")
    return {row["variant"]: row for row in rows}


def _systems(evidence: Evidence, variants: Iterable[str], metrics: Sequence[str]) -> str:
    """Return the place of the core's val results in a sentence, and their table."""
    core = _val_of_core(evidence)
    first, release = core["full"], release_of(evidence.params.settings().folder.name, evidence.reports)
    place = (
        f"Data set {first['dataset']}, scale {first['scale']}, split val ({first['n']} sentences), protocol "
        f"{first['protocol']}, evidence {release}.\nThe values are percentages, averaged over the seeds. "
        "SD is the standard deviation of mIoU over the seeds."
    )
    header = ["system", "seeds", *(METRICS[metric] for metric in metrics)]
    rows = [[core[name]["label"], str(core[name]["seeds"]), *_numbers(core[name], metrics)] for name in variants]
    return f"{place}\n\n{_table(header, rows)}"


def glance(evidence: Evidence) -> str:
    """Return five systems of the core, and the verdicts on the paper's claims in words."""
    return f"{_systems(evidence, AT_A_GLANCE, ('miou', 'miou_sd', *_SHORT[1:]))}\n\n{_in_words(evidence)}"


def _in_words(evidence: Evidence) -> str:
    """Return the verdicts on the paper's claims as a list, an item for each kind of verdict."""
    kinds: dict[str, list[str]] = {}
    for row in evidence.claims():
        kinds.setdefault(row["verdict"].rpartition(": ")[2], []).append(row["claim"].rstrip("."))
    scale = evidence.params.scale
    lines = [f"The paper's claims, tested at scale {scale}:", ""]
    for kind in sorted(kinds, key=[*_ORDER, *kinds].index):
        item = f"- **{kind}** ({len(kinds[kind])}): {'; '.join(kinds[kind])}."
        lines += textwrap.wrap(item, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    lines += [
        "",
        f"*Undecided* does not mean that there is no effect. These results are of scale {scale}. {NOT_THE_PAPER}",
    ]
    return "\n".join(lines)


_ORDER = ("reproduced", "contradicted", "undecided", "undecided (not run)", "true by construction")


def core(evidence: Evidence) -> str:
    """Return every system of the core on val."""
    return _systems(evidence, _val_of_core(evidence), tuple(METRICS))


def verdicts(evidence: Evidence) -> str:
    """Return the verdict on each of the paper's claims, with its reason."""
    rows = [(row["claim"], row["verdict"].rpartition(": ")[2], row["why"]) for row in evidence.claims()]
    return _table(("claim", "verdict", "reason"), rows, words=3)


def splits(evidence: Evidence) -> str:
    """Return the full model on every split, with its two controls."""
    table = evidence.table("main")
    table = table[table["system"] == "full"]
    header = ["split", "sentences", *(METRICS[metric] for metric in _SHORT), "shuffled", "empty"]
    metrics = (*_SHORT, "miou_shuffled", "miou_empty")
    return _table(header, [[row["split"], str(row["n"]), *_numbers(row, metrics)] for row in table.to_dict("records")])


def studies(evidence: Evidence) -> str:
    """Return the studies: the question, the runs beyond the core, and the table of the committed results."""
    rows = []
    for study in load_studies(evidence.root / "studies"):
        params = evidence.params
        link = f"[table](../reports/tables/{params.settings().folder.name}/{study.name}.md)"
        if isinstance(study, Study) and not study.is_at(params.scale):
            params, link = params.model_copy(update={"scale": study.scales[0]}), f"scale {study.scales[0]} alone"
        used = study.at_grid(params.settings().grid).variants if isinstance(study, Study) else study.variants
        runs = sum(len(params.runs_of(name)) for name in used if name in params.extended)
        rows.append((f"[{study.name}](../studies/{study.name}.py)", study.question, link, str(runs)))
    return _table(("study", "question", "results", "runs beyond the core"), rows, words=3)


def small(evidence: Evidence) -> str:
    """Return the window study at scale small."""
    table = evidence.table("window_size", "scenes-small")
    table = table[(table["split"] == "val") & (table["family"] == table["family"].iloc[0])]
    table = table.drop_duplicates(["block", "label"])
    header = ["alignment window", "window", "seeds", *(METRICS[metric] for metric in _SHORT)]
    rows = [
        [row["block"].removeprefix("loss window: "), row["label"], str(row["seeds"]), *_numbers(row, _SHORT)]
        for row in table.to_dict("records")
    ]
    return _table(header, rows, words=2)


def replication(evidence: Evidence) -> str:
    """Return how far the core's runs, trained again on another machine, differ from the committed ones."""
    runs = pd.read_csv(evidence.root / "benchmarks" / "replication.csv")
    runs = runs[runs["split"] == "val"]
    difference = runs["rerun_miou"] - runs["miou"]
    seeds = runs.groupby("variant")["miou"].std(ddof=1)
    return (
        f"All {len(runs)} runs of the core were trained again on another processor. Their val mIoU differs from the "
        f"committed one by {difference.mean():+.2f} points on average.\nThe standard deviation of this difference "
        f"is {difference.std(ddof=1):.1f} points. The standard deviation over seeds is {(seeds**2).mean() ** 0.5:.1f} "
        "points (pooled over the systems)."
    )


def search(evidence: Evidence) -> str:
    """Return the best trial of every committed search beside the full model, trained for as long."""
    folder = evidence.params.settings().folder.name
    rows = []
    for path in sorted((evidence.reports / "tables" / folder).glob("search-*.csv")):
        for (space, sampler), trials in pd.read_csv(path).groupby(["space", "sampler"], sort=False):
            full = trials[trials["name"] == "reference"].iloc[0]
            done = trials[(trials["name"] != "reference") & (trials["state"] == "complete")]
            best = done.sort_values("val_miou", kind="stable").iloc[-1]
            splits = ("val_miou", "testA_miou", "testB_miou")
            values = [f"{100 * best[split]:.1f} ({100 * full[split]:.1f})" for split in splits]
            link = f"[{space}](../reports/tables/{folder}/{path.stem}.md)"
            rows.append((link, str(sampler), str(len(trials) - 1), f"`{best['name']}`", *values))
    header = ("space", "sampler", "trials", "best trial", "val mIoU (full)", "testA mIoU (full)", "testB mIoU (full)")
    return _table(header, rows, words=2)


def scan(evidence: Evidence) -> str:
    """Return the speed of the compiled CPU scan over a plain loop."""
    runs = pd.read_csv(evidence.root / "benchmarks" / "scan_cpu.csv")
    runs = runs[(runs["backend"] == "cpu") & (runs["what"] == "scan") & (runs["pass"] == "forward + backward")]
    rows = [
        [
            str(dtype),
            str(threads),
            *(f"{part['loop_over_this'].agg(end):.1f}" for end in ("min", "max")),
            f"{part['peak_over_io'].max():.1f}",
        ]
        for (dtype, threads), part in runs.groupby(["dtype", "threads"], sort=False)
    ]
    return _table(("type", "threads", "slowest case", "fastest case", "peak memory / inputs and outputs"), rows)


def trained(evidence: Evidence) -> str:
    """Return the results of the full model trained with two scan backends."""
    runs = pd.read_csv(evidence.root / "benchmarks" / "trained_cpu.csv")
    rows = [
        [
            str(backend),
            *(f"{value:.1f}" for value in part.sort_values("seed")["val_miou"]),
            *(f"{part[f'val_{metric}'].mean():.1f}" for metric in _SHORT),
        ]
        for backend, part in runs.groupby("scan")
    ]
    seeds = [f"mIoU, seed {seed}" for seed in sorted(runs["seed"].unique())]
    return _table(("`model.scan`", *seeds, *(f"mean {METRICS[metric]}" for metric in _SHORT)), rows)


def step_gpu(evidence: Evidence) -> str:
    """Return the least time and memory of a training step on a GPU, by model and scan backend."""
    runs = pd.read_csv(evidence.root / "benchmarks" / "step_operators.csv")
    runs = runs[runs["operator"] == "total"]
    rows = [
        [
            f"`{row['variant']}`",
            f"`{row['backend']}`",
            f"{row['milliseconds']:.0f}",
            f"{row['megabytes'] / 1000:.0f}",
            f"{row['gflop'] / 1000:.1f}",
            f"{row['peak_gigabytes']:.1f}",
        ]
        for row in runs.to_dict("records")
    ]
    return _table(("variant", "`model.scan`", "ms", "GB moved", "TFLOP", "peak GB"), rows, words=2)


def step_cpu(evidence: Evidence) -> str:
    """Return how much faster a training step of scale tiny is than before the upsampling convolution."""
    runs = pd.read_csv(evidence.root / "benchmarks" / "step_cpu.csv")
    rows = [
        [
            f"`{row['variant']}`",
            str(row["threads"]),
            f"{row['milliseconds_before']:.0f}",
            f"{row['milliseconds']:.0f}",
            f"{row['times_faster']:.2f}",
        ]
        for row in runs.to_dict("records")
    ]
    return _table(("variant", "threads", "ms before", "ms", "times faster"), rows)


def example(evidence: Evidence) -> str:
    """Return the worked example of docs/statistics.md: one comparison of a claim, step by step."""
    claim, rival = EXAMPLE
    row = next(row for row in evidence.comparisons(claim) if row["comparison"].endswith(f"- {rival}"))
    summary = next(row for row in evidence.claims() if row["claim"] == claim)
    family = sum(len(evidence.comparisons(row["claim"])) for row in evidence.claims())
    core = _val_of_core(evidence)
    ours, theirs = (f"{100 * core[variant]['miou']:.1f}" for variant in ("full", rival))
    these, any_seed = row["these seeds"], row["any seed"]
    columns = ("comparison", "ΔmIoU", "these seeds", "any seed", "p, Holm", "images", "sentences", "seeds")
    steps = (
        f"The mIoU of `full` is {ours}, that of `{rival}` is {theirs}. The difference is {row['ΔmIoU']} points.",
        f"*These seeds* {_side_of_zero(these)}: {these}. It compares these trained networks on other images.",
        f"*Any seed* {_side_of_zero(any_seed)}: {any_seed}. It compares networks that are trained from other seeds.",
        f"The claims make {family} comparisons. Holm's correction over all of them gives p = {row['p, Holm']}.",
        f"The verdict is **{summary['verdict'].rpartition(': ')[2]}**: p must be below 0.05.",
    )
    lines = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    return "\n".join([_table(columns, [[row[column] for column in columns]]), "", *lines])


def _side_of_zero(interval: str) -> str:
    low, high = (float(number) for number in interval.strip("[]").split(", "))
    return "excludes 0" if low > 0 or high < 0 else "includes 0"


BLOCKS: dict[str, Callable[[Evidence], str]] = {
    "glance": glance,
    "core": core,
    "verdicts": verdicts,
    "splits": splits,
    "studies": studies,
    "small": small,
    "replication": replication,
    "search": search,
    "scan": scan,
    "trained": trained,
    "step_gpu": step_gpu,
    "step_cpu": step_cpu,
    "example": example,
}
