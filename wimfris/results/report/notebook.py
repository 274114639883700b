"""What `reports/results.ipynb` shows: a method for each part of the report, computed from the committed evidence."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from wimfris.errors import UserError
from wimfris.results.claims import Verdict, judge_place
from wimfris.results.comparison import Study
from wimfris.results.comparisons import read_comparisons
from wimfris.results.evidence import REPORTS, Evidence, evidence_names, read_evidence
from wimfris.results.figures import draw_all_runs, emphasis
from wimfris.results.formats import DASH, Section, parse_markdown
from wimfris.results.ingested import beside_ours, ingested_section, read_ingested
from wimfris.results.measured import Measured
from wimfris.results.plan import read_plan, registration_lines
from wimfris.results.published import built_in_note, read_published
from wimfris.results.releases import origin_of, processors
from wimfris.results.report.claims_figure import claim_rows, draw_claims
from wimfris.results.report.claims_tables import (
    SCALES,
    answer,
    details,
    footer,
    over_scales,
    own_rows,
    summary,
    window_answer,
)
from wimfris.results.report.comparison_figure import draw
from wimfris.results.report.comparison_tables import answer as study_answer
from wimfris.results.report.comparison_tables import sections
from wimfris.results.report.html import folded, missing_html, notice, runs_html, section_html, table_html
from wimfris.results.report.tables import main_cells, main_table
from wimfris.results.studies import load_study
from wimfris.runs.records import SPLITS
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

WINDOW_STUDY = "window_size"
WINDOW_HEADING = "Does the window matter?"
"""The study whose picture stands with the answer on the window, and the heading of that part of the notebook."""


class Results:
    """The results in a project folder: each method displays one part of it.

    Numbers come from the evidence at the data set and scale of params.yaml, and from the evidence at other scales that
    has the runs of a part. The project's root becomes the working directory: a notebook may lie in a folder of it.
    """

    def __init__(self) -> None:
        root = next(
            (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "params.yaml").is_file()), None
        )
        if root is None:
            raise UserError(f"{Path.cwd()}: no params.yaml here or above; open the notebook inside the project")
        os.chdir(root)
        self.params, self.published = read_params(), read_published()
        self.evidence = evidence_by_place(self.params)
        self.declared = {place: part.declared(params) for place, (params, part) in self.evidence.items()}
        self.place = next(iter(self.evidence))  # the data set and scale of params.yaml, for example scenes-tiny
        self.plan = read_plan()
        self.comparisons = {place: read_comparisons(place) for place in self.evidence}
        self._scratch = Path(tempfile.mkdtemp())

    def claim_rows(self) -> pd.DataFrame:
        """Return the comparisons of the paper's claims, see `wimfris.results.report.claims_figure.claim_rows`."""
        return claim_rows(self._verdicts(self.place), self.plan)

    def forest(self, rows: pd.DataFrame) -> None:
        """Display `claim_rows`, all or a part of them, as a forest plot."""
        if len(rows):
            path = self._scratch / "claims.png"
            draw_claims(rows, path)
            decisions = rows.groupby("decision")["claim"].nunique()
            counts = ", ".join(f"{number} {decision}" for decision, number in decisions.items())
            _picture(path, f"Forest plot: the paper's claims, with intervals and margins. Claims: {counts}.")

    def answer(self) -> None:
        """Display the verdict on each of the paper's claims in a sentence."""
        display(Markdown(answer(self._verdicts(self.place), self.plan)))

    def window(self) -> None:
        """Display the answer to "Does the window matter?", with its picture."""
        display(Markdown(window_answer(self._verdicts(self.place), self.comparisons[self.place])))
        path = REPORTS / "figures" / self.place / f"{WINDOW_STUDY}.png"
        if path.is_file():
            _picture(
                path, f"Window size at {self.place}: mIoU of every run on val, and the differences with intervals."
            )

    def claims(self) -> None:
        """Display the verdict on each of the paper's claims, the comparisons behind it, and other scales."""
        display(Markdown("\n".join(registration_lines(self.plan))))
        for place in self.evidence:
            verdicts = self._verdicts(place)
            if place != self.place:
                verdicts = [verdict for verdict in verdicts if verdict.has_interval]
            if verdicts:
                shown = summary(verdicts)  # the caption states the scale
                shown["verdict"] = shown["verdict"].str.replace("^at scale .*: ", "", regex=True)
                _html(section_html(Section(f"Verdicts at {place}", "", shown, left=tuple(shown.columns))))
                tables = [self._comparisons(verdict, place) for verdict in verdicts if verdict.rows]
                title = f"The comparisons behind the verdicts at {place}"
                _html(folded(title, "\n".join(section_html(table) for table in tables)))
        scales = over_scales(self.comparisons, self.plan)
        if len(scales):
            section = Section("The same comparisons at other scales", SCALES, scales, left=("comparison", "tier"))
            _html(section_html(section, fold=True))
        if own := own_rows(self.comparisons[self.place]):
            _html(notice(own))

    def main(self) -> None:
        """Display the mIoU of every run on val, and the main table of every split."""
        records, others = self.declared[self.place].records, read_ingested(self.params)
        _html(
            missing_html(missing_runs(records, self.params, [*self.params.variants, *self.params.beyond]), self.place)
        )
        path = self._scratch / "main.png"
        draw_all_runs(records, path)
        _picture(path, "mIoU on val of every run, a row a variant, best first; the line is the mean of full.")
        everything = pd.concat([records, others], ignore_index=True) if len(others) else records
        table = main_table(everything)
        order = ["full", *self.params.variants, *table["system"]]
        table = table.sort_values("system", key=lambda names: names.map(order.index), kind="stable")
        cells = main_cells(table).replace("", DASH)
        for split in (name for name in SPLITS if (cells["split"] == name).any()):
            title = f"Every system at {self.place}, split {split}"
            part = cells[cells["split"] == split].drop(columns="split")
            _html(section_html(Section(title, "", part, left=("system",)), fold=True))
        if len(others):
            _html(section_html(ingested_section(beside_ours(everything))))
        _html(runs_html(self.place, records, list(table["system"].unique())))

    def study(self, study: str | Study, split: str = "val") -> None:
        """Display a study: its name in studies/, or a `Study` of your own rows."""
        one = load_study(study) if isinstance(study, str) else study
        if isinstance(one, Measured):
            self.tables(one.name, one.title)  # its committed tables hold the question
            return
        display(Markdown(f"### {one.title}\n\n**Question.** {one.question}\n\n**The paper.** {one.paper}"))
        for place in self.evidence:
            self._study_at(one, place, split)
        if one.extra:
            everything = pd.concat([part.records for part in self.declared.values()], ignore_index=True)
            _html(section_html(one.extra(everything, self.published), fold=True))

    def tables(self, name: str, title: str) -> None:
        """Display the committed tables and pictures of a study that needs more than records: `name` or `name`-*."""
        display(Markdown(f"### {title}"))
        folder = REPORTS / "tables" / self.place
        paths = [*folder.glob(f"{name}.md"), *sorted(folder.glob(f"{name}-*.md"))]
        if not paths:
            _html(notice(f"{folder} has no tables of {name}."))
        for path in paths:
            intro, shown = parse_markdown(path.read_text(encoding="utf-8"))
            if path == paths[0]:
                display(Markdown(intro))
            part = path.stem.removeprefix(name).removeprefix("-").capitalize()
            if part:
                display(Markdown(f"#### {part}"))
            picture = REPORTS / "figures" / self.place / f"{path.stem}.png"
            if picture.is_file():
                _picture(picture, f"{title}: the picture of the tables {path.stem}.")
            for section in shown:
                section = self._plain(section, self.place)
                section = replace(section, title=f"{part}: {section.title}") if part else section
                _html(section_html(section, fold=True))

    def gallery(self) -> None:
        """Display predictions, learning curves and the learned emphasis; the first two are the committed pictures."""
        for file, alt in {
            "gallery.png": "Predictions on val at four quantiles of IoU: sentence, outlined target, tinted prediction.",
            "curves.png": "Learning curves of the full model: losses by step, validation mIoU by epoch.",
        }.items():
            path = REPORTS / "figures" / self.place / file
            if path.is_file():
                _picture(path, alt)
            else:
                _html(notice(f"{path} has not been drawn."))
        learned = self.evidence[self.place][1].emphasis.query("variant == 'full'")
        if len(learned):
            path = self._scratch / "emphasis.png"
            emphasis(learned, path, self.params.settings().scale)
            _picture(path, "Learned emphasis of the full model, by layer and over epochs.")

    def provenance(self) -> None:
        """Display where every run came from."""
        for place, (_, part) in self.evidence.items():
            table = table_html(provenance(place, part.runs), f"Runs at {place}", ("commit", "device", "scan"), ("run",))
            _html(folded(f"The {len(part.runs)} runs at {place}", table))

    def _verdicts(self, place: str) -> list[Verdict]:
        return judge_place(self.evidence[place][0], self.plan, self.comparisons[place])

    def _comparisons(self, verdict: Verdict, place: str) -> Section:
        title = f"{verdict.claim.claim} {verdict.at_scale[0].upper()}{verdict.at_scale[1:]}"
        cells = details(verdict, self.plan, self.comparisons[place])
        return Section(title, verdict.claim.note, cells, footer(verdict, self.plan), ("verdict", "trust"))

    def _study_at(self, study: Study, place: str, split: str) -> None:
        """Display a study's picture and tables at one data set and scale."""
        params, evidence = self.evidence[place]
        every = self.declared[place].records
        records = every[(every["split"] == split) & every["variant"].isin(study.variants)]
        study = study.at(params)
        present = set(study.variants) & set(records["variant"].unique())
        if place != self.place and 2 * len(present) <= len(study.variants):
            return  # another scale, which lacks most of the study
        _html(missing_html(missing_runs(records, params, study.variants), place))
        try:
            comparisons = self.comparisons[place].for_study(every, study.pairs, self.plan.exploratory.seeds)
            tables = [one.table(records, comparisons, split, self.published) for one in (study, *study.further)]
        except UserError as error:
            _html(notice(str(error)))
            return
        if words := study_answer(tables[0]):
            display(Markdown(f"**Here.** {words}"))
        if (place, study.name, split) == (self.place, WINDOW_STUDY, "val"):
            display(Markdown(f"[The picture of this table](#{WINDOW_HEADING.replace(' ', '-')}) stands above."))
        else:
            path = self._scratch / f"{place}-{study.name}.png"
            draw(tables[0], records, path)
            _picture(
                path, f"{study.title} at {place}: mIoU of every run on {split}, and the differences of the table below."
            )
        origin = origin_of(place, evidence.runs[evidence.runs["run"].isin(records["run"])])
        for section in sections(study, tables, origin):
            if place != self.place and "against the paper" in section.title:
                continue  # the paper's figures stand beside the first place once
            _html(section_html(self._plain(section, place), fold=True))
        _html(runs_html(place, records, study.variants))

    def _plain(self, section: Section, place: str) -> Section:
        """Return the section without the sentence about the built-in data set, which the report states once."""
        settings = self.evidence[place][0].settings()
        return section.without(built_in_note(settings.data.name, settings.scale))


def evidence_by_place(params: Params, reports: Path = REPORTS) -> Mapping[str, tuple[Params, Evidence]]:
    """Return the current evidence, that of params.yaml first: name of data set and scale -> params there, and evidence.

    Raises `UserError` if the evidence for the set and scale of params.yaml is missing.
    """
    own = params.settings().folder.name
    names = [own, *(name for name in evidence_names(reports) if name != own)]
    scaled = {name: params.at_name(name) for name in names}
    parts = {name: (scaled[name], read_evidence(scaled[name], reports)) for name in names}
    # A place may hold systems that were not trained here, and none of ours.
    return {name: part for name, part in parts.items() if name == own or len(part[1].runs)}


def missing_runs(records: pd.DataFrame, params: Params, variants: Iterable[str]) -> list[Run]:
    """Return the declared runs of these variants that have no records."""
    existing = set(records["run"].unique())
    return [run for variant in variants for run in params.runs_of(variant) if str(run) not in existing]


def provenance(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Return where every run of a data set and scale (`name`) came from, as cells: one row per row of runs.csv.

    Columns: run (HTML with an anchor), commit, fingerprint (its first digits), settings (first digits of the
    SHA-256 of the resolved settings), scan, device, minutes, memory in GiB (peak of the process), epoch (the best one).
    """
    return pd.DataFrame(
        {
            "run": [f'<span id="{name}-{run}">{run}</span>' for run in runs["run"]],
            "commit": [commit[:10] + (" and changes" if commit.endswith("+") else "") for commit in runs["commit"]],
            "fingerprint": runs["fingerprint"].str[:10],
            "settings": runs["settings_sha256"].str[:10],
            "scan": runs["scan"],
            "device": processors(runs),
            "minutes": [f"{minutes:.1f}" for minutes in runs["minutes"]],
            "memory, GiB": [f"{memory:.2f}" for memory in runs["memory_gib"]],
            "epoch": runs["best_epoch"].astype(str),
        }
    )


def _html(text: str) -> None:
    if text:
        display(HTML(text))


def _picture(path: Path, alt: str) -> None:
    display(Image(filename=str(path), alt=alt))
