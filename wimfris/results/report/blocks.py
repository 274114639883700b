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
from wimfris.results.claims import Verdict, judge_place
from wimfris.results.comparison import Study
from wimfris.results.comparisons import Comparisons, read_comparisons
from wimfris.results.evidence import evidence_names
from wimfris.results.formats import interval
from wimfris.results.plan import read_plan
from wimfris.results.releases import release_of
from wimfris.results.report.claims_tables import NOTHING, SCALES, by_decision, over_scales, window_answer
from wimfris.results.statistics import POWER
from wimfris.results.studies import load_studies, variants_of
from wimfris.settings.params import Params, read_params

PAGES = ("README.md", "docs/results.md", "docs/statistics.md", "docs/search.md", "docs/gpu.md", "docs/faq.md")
AT_A_GLANCE = ("full", "no_window", "no_neck", "none")
EXAMPLE = "neck_matters"  # the claim of the example in docs/statistics.md
REPLICATED = "results-1"  # whose core benchmarks/replication.csv trained again
IN_USE = "two apart"  # the variance of benchmarks/coverage.csv that `wimfris.results.statistics` uses
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

Frame = pd.DataFrame


class Evidence:
    """The committed files that the blocks are made from.

    root: the project's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reports = root / "reports"
        self.params: Params = read_params(root / "params.yaml")
        self.plan = read_plan(self.reports / "claims.yaml")

    def table(self, name: str, folder: str | None = None) -> Frame:
        """Return the CSV of a table, by default at the data set and scale of params.yaml."""
        path = self.reports / "tables" / (folder or self.params.settings().folder.name) / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such table; restore it with `git checkout reports`")
        return pd.read_csv(path)

    def verdicts(self) -> list[Verdict]:
        """Return the verdicts on the paper's claims at the data set and scale of params.yaml."""
        return judge_place(self.params, self.plan, self.comparisons(), self.reports)

    def comparisons(self, name: str | None = None) -> Comparisons:
        """Return the comparisons of a data set and scale (`name`), by default those of params.yaml."""
        return read_comparisons(name or self.params.settings().folder.name, self.reports)


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
    judged = evidence.verdicts()
    lines = [f"The paper's claims at scale {evidence.params.scale}:", ""]
    for decision, claims in by_decision(judged).items():
        if claims:
            lines += _wrapped(f"- **{decision}** ({len(claims)}): {'; '.join(claims)}.", "  ")
    first, *_, last = evidence.plan.confirmatory.seeds
    looked = any(verdict.look for verdict in judged)
    early = "" if looked else f"New seeds decide ({first} to {last}); no look at them has been taken yet. "
    undecided = "*Undecided* does not mean that there is no effect: [statistics](docs/statistics.md)."
    note = f"{early}{undecided} {NOTHING}"
    return "\n".join([*lines, "", *_wrapped(note)])


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def window(evidence: Evidence) -> str:
    """Return the one answer to "Does the window matter?"."""
    return "\n".join(_wrapped(window_answer(evidence.verdicts(), evidence.comparisons())))


def scales(evidence: Evidence) -> str:
    """Return the comparisons that several scales have."""
    own = evidence.params.settings().folder.name
    names = [own, *(name for name in evidence_names(evidence.reports) if name != own)]
    table = over_scales({name: evidence.comparisons(name) for name in names}, evidence.plan)
    if table.empty:
        return "No comparison stands at two scales yet."
    return f"{SCALES}\n\n{_table(list(table.columns), table.to_numpy().tolist(), words=2)}"


def core(evidence: Evidence) -> str:
    """Return every system of the core on val."""
    return _systems(evidence, _val_of_core(evidence), tuple(METRICS))


def verdicts(evidence: Evidence) -> str:
    """Return the verdict on each of the paper's claims, with its reason."""
    rows = [(one.claim.claim, one.decision, one.reason) for one in evidence.verdicts()]
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
            params, link = params.model_copy(update={"scale": study.scales[0]}), f"only at scale {study.scales[0]}"
        here = study.at_grid(params.settings().grid) if isinstance(study, Study) else study
        runs = sum(len(params.runs_of(name)) for name in variants_of(here, params) if name in params.beyond)
        rows.append((f"[{study.name}](../studies/{study.name}.py)", study.question, link, str(runs)))
    return _table(("study", "question", "results", "runs beyond the core"), rows, words=3)


def small(evidence: Evidence) -> str:
    """Return the window study at scale small."""
    table = evidence.table("window_size", "scenes-small")
    table = table[(table["split"] == "val") & (table["family"] == table["family"].iloc[0])]
    table = table.drop_duplicates(["block", "label"])
    header = ["alignment window", "window", "seeds", *(METRICS[metric] for metric in _SHORT)]
    rows = [
        [row["block"].removeprefix("alignment window: "), row["label"], str(row["seeds"]), *_numbers(row, _SHORT)]
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
        f"All {len(runs)} runs of the core of release {REPLICATED} were trained again on another processor. Their val "
        f"mIoU differs from the committed one by {difference.mean():+.2f} points on average.\n"
        f"The standard deviation of this difference is {difference.std(ddof=1):.1f} points. The standard "
        f"deviation over seeds is {(seeds**2).mean() ** 0.5:.1f} "
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


def step_cpu_operators(evidence: Evidence) -> str:
    """Return the share of each part in the time of a training step of scale tiny."""
    table = pd.read_csv(evidence.root / "benchmarks" / "step_cpu_operators.csv", dtype=str)
    return _table(("operators", "calls", "% of the time"), table.itertuples(index=False, name=None))


def example(evidence: Evidence) -> str:
    """Return the worked example of docs/statistics.md: the comparison of a claim, step by step."""
    plan, verdict = evidence.plan, next(one for one in evidence.verdicts() if one.claim.name == EXAMPLE)
    row = verdict.rows[0]
    these, any_seed = (interval(100 * row[f"{name}low"], 100 * row[f"{name}high"]) for name in ("these_", ""))
    share = 100 * row["seed_variance"] / (row["seed_variance"] + row["image_variance"])
    steps = (
        f"The mIoU of `{row['system']}` is {100 * row['value']:.1f}, that of `{row['rival']}` is "
        f"{100 * row['rival_value']:.1f}, over the seeds {row['seeds']}. The difference is "
        f"{100 * row['difference']:+.1f} points.",
        f"*These seeds*, {these}, is the interval of this difference over images.",
        f"*Any seed*, {any_seed}, is its interval over seeds and images. The seeds cause {share:.0f}% of the variance.",
        f"The level of *any seed* is {100 * (1 - row['error']):.2f}%, because the {plan.tested} claims that runs can "
        f"test share an error rate of {plan.level:.0%}.",
        f"The margin is {100 * row['margin']:.1f} points. These seeds would separate a true difference of "
        f"{100 * row['detectable']:.1f} points from 0 in {POWER:.0%} of experiments.",
        f"The verdict is **{verdict.decision}**: {verdict.reason}.",
    )
    names = " with ".join(plan.label(row[name]) for name in ("system", "rival"))
    head = f"*{verdict.claim.claim}* compares {names}, on {row['split']}."
    return "\n".join([head, "", *(f"{number}. {step}" for number, step in enumerate(steps, start=1))])


def coverage(evidence: Evidence) -> str:
    """Return how often the interval in use covers the truth in simulations, and how often a verdict is false."""
    table = pd.read_csv(evidence.root / "benchmarks" / "coverage.csv")
    table = table[table["variance"] == IN_USE]
    sizes = ("3 against 2", "3", "6", "12")
    rows = []
    for name in dict.fromkeys(table["setting"]):
        part = table[table["setting"] == name]
        covered = [part.loc[part["seeds"] == size, "worst"].iloc[0] for size in sizes]
        false = part.loc[part["seeds"] == "6, 12", "false_null"].iloc[0]
        rows.append((name, *(f"{value:.1f}" for value in (*covered, false))))
    header = ("simulated runs", *(f"{size} seeds" for size in sizes), "a false verdict")
    return f"In percent; Monte-Carlo error at most {table['error'].max():.1f}.\n\n{_table(header, rows)}"


def recipes(evidence: Evidence) -> str:
    """Return the scatter and the seeds that each claim needs, with the former recipe and with this one."""
    table = pd.read_csv(evidence.root / "benchmarks" / "recipes.csv", dtype=str)
    columns = [f"{name}_{when}" for name in ("seed_sd", "image_se", "seeds_needed") for when in ("before", "after")]
    header = ("claim", "SD before", "SD now", "SE before", "SE now", "seeds before", "seeds now")
    return _table(header, table[["claim", *columns]].itertuples(index=False, name=None))


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
    "step_cpu_operators": step_cpu_operators,
    "example": example,
    "coverage": coverage,
    "scales": scales,
    "window": window,
    "recipes": recipes,
}
