"""Generated blocks of README.md and docs/: numbers and verdicts from the committed evidence.

A block lies between `<!-- generated: NAME -->` and `<!-- end -->`. `wimfris docs` writes all of them. Verdicts are
those of reports/claims.md alone, so that a text never states two verdicts on one comparison.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from wimfris.errors import UserError
from wimfris.files import write_text
from wimfris.results.claims import Verdict, judge_place
from wimfris.results.comparison import Study
from wimfris.results.comparisons import Comparisons, read_comparisons
from wimfris.results.csv_files import read_csv
from wimfris.results.evidence import Evidence as Records
from wimfris.results.evidence import evidence_names, read_evidence
from wimfris.results.formats import DASH, interval, level_text
from wimfris.results.measured import CEILING, origin_note, read_measure
from wimfris.results.plan import Construction, read_plan
from wimfris.results.releases import processors, release_of, short_commits
from wimfris.results.report.benchmark_blocks import BENCHMARK_BLOCKS
from wimfris.results.report.claims_tables import NOTHING, SCALES, by_decision, over_scales, window_answer
from wimfris.results.report.markdown import METRICS, SHORT, numbers, pipe_table
from wimfris.results.scores import run_scores
from wimfris.results.studies import load_studies, variants_of
from wimfris.settings.params import Params, read_params

PAGES = ("README.md", "docs/results.md", "docs/statistics.md", "docs/search.md", "docs/gpu.md", "docs/faq.md")
AT_A_GLANCE = ("full", "no_window", "no_neck", "none")
EXAMPLE = "neck_matters"  # the claim of the example in docs/statistics.md
WIDTH = 125  # of a line of text
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
        return read_csv(path)

    @property
    def runs(self) -> Frame:
        """The rows of runs.csv at the data set and scale of params.yaml."""
        return self._content.runs

    @cached_property
    def val_scores(self) -> "pd.Series[float]":
        """The val mIoU of every run at the data set and scale of params.yaml, by variant and seed."""
        return run_scores(self._content.records, "val")

    @cached_property
    def _content(self) -> Records:
        return read_evidence(self.params, self.reports)

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
    rows = [[core[name]["label"], str(core[name]["seeds"]), *numbers(core[name], metrics)] for name in variants]
    return f"{place}\n\n{pipe_table(header, rows)}"


def glance(evidence: Evidence) -> str:
    """Return four systems of the core, and the verdicts on the paper's claims in words."""
    return f"{_systems(evidence, AT_A_GLANCE, ('miou', 'miou_sd', *SHORT[1:]))}\n\n{_in_words(evidence)}"


def _in_words(evidence: Evidence) -> str:
    """Return the verdicts on the paper's claims as a list, an item for each kind of verdict."""
    judged = evidence.verdicts()
    lines = [f"The paper's claims at scale {evidence.params.scale}:", ""]
    for decision, claims in by_decision(judged, reasons=True).items():
        if claims:
            lines += _wrapped(f"- **{decision}** ({len(claims)}): {'; '.join(claims)}.", "  ")
    confirmatory = evidence.plan.confirmatory
    first, *_, last = confirmatory.seeds
    waiting = any(not verdict.look for verdict in judged if not isinstance(verdict.claim, Construction))
    early = (
        f"Seeds {first} to {last} decide the claims. The first test of a claim needs {confirmatory.looks[0]} of them. "
    )
    undecided = "*Undecided* does not mean that there is no effect: [statistics](docs/statistics.md)."
    note = f"{early if waiting else ''}{undecided} {NOTHING}"
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
    return f"{SCALES}\n\n{pipe_table(list(table.columns), table.to_numpy().tolist(), words=2)}"


def core(evidence: Evidence) -> str:
    """Return every system of the core on val."""
    return _systems(evidence, _val_of_core(evidence), tuple(METRICS))


def seeds(evidence: Evidence) -> str:
    """Return the systems with confirmatory seeds: their mIoU, and that of their exploratory seeds."""
    scores, runs = 100 * evidence.val_scores, evidence.runs.set_index(["variant", "seed"])
    places = processors(runs)
    groups = (evidence.plan.exploratory.seeds, evidence.plan.confirmatory.seeds)
    rows = []
    for variant in dict.fromkeys(scores.index.get_level_values("variant")):
        cells = [f"`{variant}`"]
        for group in groups:
            keys = [(variant, seed) for seed in group if (variant, seed) in scores.index]
            own = scores.loc[keys]
            spread = f"{own.std():.1f}" if len(own) > 1 else DASH
            cells += [str(len(own)), f"{own.mean():.1f}" if len(own) else DASH, spread]
            cells.append(", ".join(sorted(set(places.loc[keys]))) or DASH)
        if own.size:
            rows.append(cells)
    header = ["system"]
    for group in groups:
        header += [f"runs, seeds {group[0]} to {group[-1]}", "mIoU", "SD", "processor"]
    return pipe_table(header, rows)


def systems(evidence: Evidence) -> str:
    """Return the comparison with DETRIS and ETRIS on val, and how many variants are above the full model."""
    table = evidence.table("comparison")
    table = table[table["split"] == "val"]
    header = ["system", "seeds", *(METRICS[metric] for metric in SHORT)]
    rows = [[row["label"], str(row["seeds"]), *numbers(row, SHORT)] for row in table.to_dict("records")]
    scores, exploratory = evidence.val_scores, evidence.plan.exploratory.seeds
    means = scores[scores.index.isin(exploratory, level="seed")].groupby(level="variant").mean()
    others = means.drop(["full", *means.index.intersection(list(evidence.params.controls))])
    higher = (others > means["full"]).sum()
    family = evidence.comparisons().exploratory
    known = family["low"].notna().sum()
    return (
        f"{pipe_table(header, rows)}\n\nOf {len(others)} other variants, {higher} have a higher val mIoU than `full` "
        f"from seeds {exploratory[0]} to {exploratory[-1]}. Most of them have one seed: of {len(family)} "
        f"exploratory comparisons {known} {'has' if known == 1 else 'have'} an interval."
    )


def tuned(evidence: Evidence) -> str:
    """Return each family of adapters with the training settings of the scale and with its tuned ones, on val."""
    families, seed = list(evidence.params.tuning.families.values()), evidence.params.seeds[0]
    scores, runs = 100 * evidence.val_scores, evidence.runs.set_index(["variant", "seed"])
    groups = {
        "settings of the scale": [(family.variant, seed) for family in families],
        "tuned": [(family.tuned_variant, seed) for family in families],
    }
    columns, made = [[f"`{family.variant}`" for family in families]], []
    for title, keys in groups.items():
        columns.append([f"{scores[key]:.1f}" if key in scores.index else DASH for key in keys])
        there = runs.loc[[key for key in keys if key in runs.index]]
        places = sorted(set(short_commits(there["commit"]) + " " + processors(there)))
        made.append(f"{title.capitalize()}: trained at {', '.join(places)}.")
    table = pipe_table(["family", *(f"mIoU, {title}" for title in groups)], zip(*columns, strict=True))
    return f"Split val, seed {seed}. {' '.join(made)}\n\n{table}"


def attestations(evidence: Evidence) -> str:
    """Return the committed runs that were trained again, and how far they are from the evidence."""
    path = evidence.reports / "attestations.csv"
    if not path.is_file():
        return "No run of this recipe has been trained again on another processor."
    frame = read_csv(path, dtype=str, keep_default_na=False)
    rows = [
        (
            f"`{row['run']}`",
            f"{row['evidence_device']} {row['evidence_cpu_capability']}".strip(),
            f"{row['device']} {row['cpu_capability']}".strip(),
            row["outcome"],
            row["val_miou_difference"],
        )
        for row in frame.to_dict("records")
    ]
    return pipe_table(("run", "committed run on", "again on", "outcome", "difference of val mIoU"), rows, words=4)


def verdicts(evidence: Evidence) -> str:
    """Return the verdict on each of the paper's claims, with its reason."""
    rows = [(one.claim.claim, one.decision, one.reason) for one in evidence.verdicts()]
    return pipe_table(("claim", "verdict", "reason"), rows, words=3)


def splits(evidence: Evidence) -> str:
    """Return the full model on every split, with its two controls."""
    table = evidence.table("main")
    table = table[table["system"] == "full"]
    header = ["split", "sentences", *(METRICS[metric] for metric in SHORT), "shuffled", "empty"]
    metrics = (*SHORT, "miou_shuffled", "miou_empty")
    return pipe_table(
        header, [[row["split"], str(row["n"]), *numbers(row, metrics)] for row in table.to_dict("records")]
    )


def bounds(evidence: Evidence) -> str:
    """Return the val scores around the full model's: of a guess, and of the true masks, drawn at the logits' size."""
    settings = evidence.params.settings()
    scores = read_measure(settings, CEILING, evidence.reports)
    scores = scores[scores["split"] == "val"]
    header = ["mask", *(METRICS[metric] for metric in SHORT)]
    rows = [[row["mask"], *numbers(row, SHORT)] for row in scores.to_dict("records")]
    rows.insert(1, ["prediction of `full`", *numbers(_val_of_core(evidence)["full"], SHORT)])
    note = origin_note(settings, [CEILING], evidence.reports)
    return f"Split val, {scores['n'].iloc[0]} sentences. {note}\n\n{pipe_table(header, rows)}"


def studies(evidence: Evidence) -> str:
    """Return the studies: the question, the table of the committed results, and the trained runs beyond the core."""
    rows, trained = [], set(evidence.runs["run"])
    for study in load_studies(evidence.root / "studies"):
        params = evidence.params
        link = f"[table](../reports/tables/{params.settings().folder.name}/{study.name}.md)"
        known = trained
        if isinstance(study, Study) and not study.is_at(params.scale):
            known = set()
            params, link = params.model_copy(update={"scale": study.scales[0]}), f"only at scale {study.scales[0]}"
        here = study.at(params) if isinstance(study, Study) else study
        beyond = [name for name in variants_of(here, params) if name in params.beyond]
        runs = [str(run) for name in beyond for run in params.runs_of(name)]
        cell = f"{len(known.intersection(runs))} of {len(runs)}" if runs else DASH
        rows.append((f"[{study.name}](../studies/{study.name}.py)", study.question, link, cell))
    return pipe_table(("study", "question", "results", "trained beyond the core"), rows, words=3)


def small(evidence: Evidence) -> str:
    """Return the window study at scale small, its recipe, and the code that trained it."""
    place = "scenes-small"
    params = evidence.params.at_name(place)
    settings, runs = params.settings(), read_evidence(params, evidence.reports).runs
    commits = ", ".join(sorted(set(short_commits(runs["commit"]))))
    scenes = settings.data.scenes
    assert scenes is not None
    note = (
        f"{settings.train.epochs} epochs, {scenes.train} training images, {scenes.val} images of val. Trained at "
        f"commit {commits}; a + means uncommitted changes."
    )
    table = evidence.table("window_size", place)
    table = table[(table["split"] == "val") & (table["family"] == table["family"].iloc[0])]
    table = table.drop_duplicates(["block", "label"])
    header = ["alignment window", "window", "seeds", *(METRICS[metric] for metric in SHORT)]
    rows = [
        [row["block"].removeprefix("alignment window: "), row["label"], str(row["seeds"]), *numbers(row, SHORT)]
        for row in table.to_dict("records")
    ]
    return f"{note}\n\n{pipe_table(header, rows, words=2)}"


def search(evidence: Evidence) -> str:
    """Return the best trial of every committed search beside the full model, trained for as long."""
    folder = evidence.params.settings().folder.name
    rows = []
    for path in sorted((evidence.reports / "tables" / folder).glob("search-*.csv")):
        for (space, sampler), trials in read_csv(path).groupby(["space", "sampler"], sort=False):
            full = trials[trials["name"] == "reference"].iloc[0]
            drawn = trials[(trials["name"] != "reference") & trials["failure"].isna()]  # neither failed nor refused
            done = drawn[drawn["state"] == "complete"]
            best = done.sort_values("val_miou", ascending=False, kind="stable").iloc[0]
            splits = ("val_miou", "testA_miou", "testB_miou")
            values = [f"{100 * best[split]:.1f} ({100 * full[split]:.1f})" for split in splits]
            link = f"[{space}](../reports/tables/{folder}/{path.stem}.md)"
            rows.append((link, str(sampler), str(len(drawn)), f"`{best['name']}`", *values))
    header = ("space", "sampler", "trials", "best trial", "val mIoU (full)", "testA mIoU (full)", "testB mIoU (full)")
    return pipe_table(header, rows, words=2)


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
        f"The level of *any seed* is {level_text(row['error'])}, because the {plan.tested} claims that runs can "
        f"test share an error rate of {plan.level:.0%}.",
        f"The margin is {100 * row['margin']:.1f} points.",
        f"The verdict is **{verdict.decision}**: {verdict.reason}.",
    )
    names = " with ".join(plan.label(row[name]) for name in ("system", "rival"))
    head = f"*{verdict.claim.claim}* compares {names}, on {row['split']}."
    return "\n".join([head, "", *(f"{number}. {step}" for number, step in enumerate(steps, start=1))])


def _of_benchmarks(block: Callable[[Path], str]) -> Callable[[Evidence], str]:
    return lambda evidence: block(evidence.root / "benchmarks")


BLOCKS: dict[str, Callable[[Evidence], str]] = {
    "glance": glance,
    "core": core,
    "verdicts": verdicts,
    "splits": splits,
    "bounds": bounds,
    "studies": studies,
    "small": small,
    "search": search,
    "example": example,
    "scales": scales,
    "seeds": seeds,
    "systems": systems,
    "tuned": tuned,
    "attestations": attestations,
    "window": window,
    **{name: _of_benchmarks(block) for name, block in BENCHMARK_BLOCKS.items()},
}
