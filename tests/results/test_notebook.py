"""The report: self-contained, accessible, complete about its gaps, and the same bytes each time."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wimfris.errors import UserError
from wimfris.results.claims import CLAIMS
from wimfris.results.evidence import EMPHASIS, evidence_path
from wimfris.results.formats import Section
from wimfris.results.notebook import (
    committed_tables,
    load_studies,
    missing_html,
    missing_runs,
    provenance,
    section_html,
    table_html,
)
from wimfris.results.page import NOTEBOOK, PAGE_PATH, execute, to_page, write_page
from wimfris.results.published import PUBLISHED
from wimfris.runs.records import SCHEMA
from wimfris.settings.params import read_params

ROOT = Path(__file__).parents[2]
RUNS = [f"{variant}-{seed}" for variant in ("full", "no_window", "none") for seed in (0, 1)]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Elements(HTMLParser):
    """The name and attributes of every element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def simulate(images: int = 12) -> pd.DataFrame:
    """Simulate records of `RUNS` on two splits, without the controls."""
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {"image_id": np.arange(images), "intersection": rng.integers(20, 90, images), "union": 100}
        ).assign(
            run=run,
            variant=run.rpartition("-")[0],
            seed=int(run[-1]),
            dataset="scenes",
            scale="tiny",
            protocol="cris",
            split=split,
            condition="sentence",
            ref_id=np.arange(images),
            sent_id=np.arange(images),
            sentence="thing",
            kind="",
            target_area=50,
        )
        for run in RUNS
        for split in ("val", "testA")
    ]
    return pd.concat(parts)[SCHEMA.names]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project folder with the notebook, two studies and simulated evidence of three variants."""
    folder = tmp_path_factory.mktemp("report")
    for path in (Path("params.yaml"), NOTEBOOK, PUBLISHED, CLAIMS):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    text = (folder / "params.yaml").read_text()
    text = re.sub(r"(?m)^seeds: .*", "seeds: [0, 1, 2]", re.sub(r"(?m)^scale: \w+", "scale: tiny", text))
    (folder / "params.yaml").write_text(text)
    (folder / "studies").mkdir()
    for name in ("window_size", "components"):
        shutil.copy(ROOT / "studies" / f"{name}.py", folder / "studies")
    (folder / "studies" / "clock.py").write_text(
        "from wimfris.cli.study import main, write_report\nimport torch_is_not_needed\n"
    )
    path = evidence_path("scenes-tiny", False, folder / "reports")
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pandas(simulate(), schema=SCHEMA, preserve_index=False), path)
    alphas = [(f"full-{seed}", "full", seed, 1, layer, 0.5 - 0.05 * layer) for seed in (0, 1) for layer in (1, 3)]
    emphasis = path.with_name("scenes-tiny-emphasis.csv")
    pd.DataFrame(alphas, columns=list(EMPHASIS)).to_csv(emphasis, index=False)
    manifest = folder / "runs" / "scenes-tiny" / "manifests" / "full-0.json"
    manifest.parent.mkdir(parents=True)
    shutil.copy(ROOT / manifest.relative_to(folder), manifest)
    return folder


@pytest.fixture(scope="module")
def pages(report: Path) -> list[str]:
    """Make the page twice."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(report)
        for _ in range(2):
            write_page()
            made.append(PAGE_PATH.read_text())
    return made


@pytest.mark.slow
def test_the_page_is_the_same_bytes_each_time_and_leaves_the_notebook_alone(report: Path, pages: list[str]) -> None:
    assert pages[0] == pages[1]
    assert (report / NOTEBOOK).read_bytes() == (ROOT / NOTEBOOK).read_bytes()


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(pages: list[str]) -> None:
    elements = Elements(pages[0])
    assert not elements.named("script", "link", "iframe", "object", "video", "audio", "embed", "source")
    sources = [attributes.get("src") or "" for _, attributes in elements.elements if "src" in attributes]
    assert len(sources) >= 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    style = pages[0][pages[0].index("<style>") : pages[0].index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert any(attributes.get("name") == "viewport" for attributes in elements.named("meta"))


@pytest.mark.slow
def test_the_page_is_accessible(pages: list[str]) -> None:
    elements = Elements(pages[0])
    assert all(attributes.get("alt") for attributes in elements.named("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in elements.named("th"))
    boxes = [attributes for attributes in elements.named("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == len(elements.named("table"))
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)
    assert len(elements.named("h1")) == len(elements.named("main")) == len(elements.named("nav")) == 1


@pytest.mark.slow
def test_every_link_within_the_page_has_a_target(pages: list[str]) -> None:
    elements = Elements(pages[0])
    ids = [attributes["id"] for _, attributes in elements.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes.get("href") or "" for attributes in elements.named("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert {"../runs/scenes-tiny/manifests/full-0.json", "../docs/statistics.md"} <= set(links)


@pytest.mark.slow
def test_the_page_has_every_section_and_names_its_gaps(pages: list[str]) -> None:
    contents = pages[0][pages[0].index("<nav") : pages[0].index("</nav>")]
    for part in ("Main table", "Studies", "Window size", "Components", "Claims", "Gallery", "Provenance"):
        assert f">{part}</a>" in contents
    assert "Not in the evidence: full (seeds 2), window_1 (seeds 0 1 2)" in pages[0]  # of window_size
    assert "gallery.png has not been drawn" in pages[0] and "no manifest" in pages[0]
    assert "undecided (not run)" in pages[0] and "by construction" in pages[0]
    assert "they say nothing about" in pages[0]
    assert "import pandas" not in pages[0]


def test_the_notebook_is_committed_without_outputs_and_with_ids_of_its_own() -> None:
    content = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    assert [cell.id for cell in content.cells if not re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)] == []
    assert all(not cell.outputs and cell.execution_count is None for cell in content.cells if cell.cell_type == "code")


def test_studies_that_need_more_than_records_are_not_imported(report: Path) -> None:
    studies = {file.name: file.study for file in load_studies(report / "studies")}
    assert studies["clock"] is None and studies["components"] is not None


def test_a_file_without_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text("ANSWER = 42\n")
    with pytest.raises(UserError, match=r"notes\.py: has no constant STUDY"):
        load_studies(tmp_path)


def test_missing_runs_are_named_by_variant() -> None:
    params = read_params(ROOT / "params.yaml").model_copy(update={"seeds": [0, 1, 2]})
    missing = missing_runs(pd.DataFrame({"run": ["full-0", "mta-1"]}), params, ["full", "mta"])
    assert missing == ["full-1", "full-2", "mta-0", "mta-2"]
    assert "full (seeds 1 2), mta (seeds 0 2)" in missing_html(missing)
    assert missing_html([]) == ""


def test_provenance_has_commit_settings_and_cost(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(report)
    rows = provenance("scenes-tiny", simulate(), read_params()).set_index("run")
    manifest = json.loads(Path("runs/scenes-tiny/manifests/full-0.json").read_text())
    row = rows.loc['<a id="scenes-tiny-full-0" href="../runs/scenes-tiny/manifests/full-0.json">full-0</a>']
    assert row["commit"].startswith(manifest["code"]["commit"][:10]) and row["device"] == manifest["device"]
    assert float(row["minutes"]) == pytest.approx(manifest["wall_seconds"] / 60, abs=0.05)
    assert len(rows) == len(RUNS) and (rows["commit"] == "no manifest").sum() == len(RUNS) - 1


def test_cells_of_a_table_are_escaped_unless_they_are_html() -> None:
    cells = pd.DataFrame({"row": ["<b> & c"], "link": ["<a>x</a>"]})
    html = table_html(cells, 'a "label"', raw=("link",))
    assert "&lt;b&gt; &amp; c" in html and "<a>x</a>" in html and 'aria-label="a &quot;label&quot;"' in html


def test_tables_point_to_the_guide_by_links_that_start_at_reports(tmp_path: Path) -> None:
    section = Section("t", "", pd.DataFrame({"row": ["x"]}), guide=True)
    assert '<a href="../docs/statistics.md">docs/statistics.md</a>' in section_html(section)
    folder = tmp_path / "tables" / "scenes-tiny"
    folder.mkdir(parents=True)
    (folder / "clock.md").write_text(
        "# Clock\n\n![Clock](../../figures/clock.png)\n\n## A\n\n[x](../../../docs/x.md)\n"
    )
    text = committed_tables("scenes-tiny", "clock", tmp_path)
    assert "[x](../docs/x.md)" in text and "#### A" in text and "png" not in text


def test_an_image_without_text_is_refused() -> None:
    output = new_output("display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": "a dot"}})
    cell = new_code_cell("", outputs=[output], id="dot")
    assert 'alt="a dot"' in to_page(new_notebook(cells=[cell]))
    output.metadata = {}
    with pytest.raises(UserError, match=r"cell dot .*without alt text"):
        to_page(new_notebook(cells=[cell]))


def test_the_page_leaves_out_stderr_and_notebook_only_cells() -> None:
    outputs = [new_output("stream", name=name, text=f"on {name} <") for name in ("stdout", "stderr")]
    cells = [new_code_cell("", outputs=outputs), new_markdown_cell("## Aside", metadata={"tags": ["notebook-only"]})]
    page = to_page(new_notebook(cells=cells))
    assert "on stdout &lt;" in page and "stderr" not in page and "Aside" not in page


def test_a_missing_or_invalid_notebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such notebook"):
        execute(tmp_path / "results.ipynb")
    (tmp_path / "results.ipynb").write_text("{")
    with pytest.raises(UserError, match="not a notebook"):
        execute(tmp_path / "results.ipynb")


@pytest.mark.slow
def test_a_cells_user_error_is_one_line(tmp_path: Path) -> None:
    source = "from wimfris.errors import UserError\nraise UserError('x.csv: is empty; restore it')"
    nbformat.write(new_notebook(cells=[new_code_cell(source, id="bad")]), tmp_path / "results.ipynb")
    with pytest.raises(UserError, match=r"^x.csv: is empty; restore it$"):
        execute(tmp_path / "results.ipynb")
