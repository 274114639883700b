"""The report: self-contained, accessible, complete about its gaps, and the same bytes each time."""

import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wimfris.errors import UserError
from wimfris.results.claims import CLAIMS
from wimfris.results.evidence import EMPHASIS_COLUMNS, RUN_COLUMNS, EvidenceFiles
from wimfris.results.formats import Section
from wimfris.results.html import missing_html, section_html, table_html
from wimfris.results.notebook import missing_runs, provenance
from wimfris.results.page import NOTEBOOK, PAGE_PATH, execute, to_page, write_page
from wimfris.results.published import PUBLISHED
from wimfris.runs.records import SCHEMA
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

ROOT = Path(__file__).parents[2]
RUNS = [f"{variant}-{seed}" for variant in ("full", "no_window", "none") for seed in (0, 1)]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


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


def run_rows(params: Params) -> pd.DataFrame:
    """Make the rows of runs.csv for `RUNS`, trained with the settings of `params`."""
    rows = [
        {
            "run": name,
            "variant": Run.parse(name).variant,
            "seed": Run.parse(name).seed,
            "commit": "c" * 40 + "+",
            "fingerprint": "f" * 16,
        }
        | {"settings_sha256": "ab" * 32, "device": "a machine", "scan": "cpu", "minutes": 5.25, "memory_gib": 0.5}
        | {"best_epoch": 2, "settings": params.settings_of(Run.parse(name)).model_dump_json(exclude={"group"})}
        for name in RUNS
    ]
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project folder with the notebook, the studies and simulated evidence of three variants."""
    folder = tmp_path_factory.mktemp("report")
    for path in (Path("params.yaml"), NOTEBOOK, PUBLISHED, CLAIMS):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    text = (folder / "params.yaml").read_text()
    text = re.sub(r"(?m)^seeds: .*", "seeds: [0, 1, 2]", re.sub(r"(?m)^scale: \w+", "scale: tiny", text))
    (folder / "params.yaml").write_text(text)
    shutil.copytree(ROOT / "studies", folder / "studies", ignore=shutil.ignore_patterns("__pycache__"))
    files = EvidenceFiles("scenes-tiny", added=False, reports=folder / "reports")
    files.records.parent.mkdir()
    pq.write_table(pa.Table.from_pandas(simulate(), schema=SCHEMA, preserve_index=False), files.records)
    run_rows(read_params(folder / "params.yaml")).to_csv(files.runs, index=False)
    alphas = [(f"full-{seed}", "full", seed, 1, layer, 0.5 - 0.05 * layer) for seed in (0, 1) for layer in (1, 3)]
    pd.DataFrame(alphas, columns=list(EMPHASIS_COLUMNS)).to_csv(files.emphasis, index=False)
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
def test_page_and_notebook_are_the_same_bytes_each_time(report: Path, pages: list[str]) -> None:
    assert pages[0] == pages[1]
    cells, committed = (nbformat.read(root / NOTEBOOK, as_version=4).cells for root in (report, ROOT))
    assert [cell.source for cell in cells] == [cell.source for cell in committed]
    assert any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(pages: list[str]) -> None:
    elements = BeautifulSoup(pages[0], "html.parser")
    assert not elements.find_all(["script", "link", "iframe", "object", "video", "audio", "embed", "source"])
    sources = [element["src"] for element in elements.find_all(src=True)]
    assert len(sources) >= 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    style = elements.style.string
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert elements.find("meta", attrs={"name": "viewport"})


@pytest.mark.slow
def test_the_page_names_its_gaps(pages: list[str]) -> None:
    assert "Not in the evidence: full (seeds 2), window_1 (seeds 0 1 2)" in pages[0]  # of window_size
    assert "gallery.png has not been drawn" in pages[0] and "ccccccccc and changes" in pages[0]
    assert "undecided (not run)" in pages[0] and "by construction" in pages[0]
    assert "import Results" not in pages[0]


def test_every_study_has_a_cell_of_its_own() -> None:
    content = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    assert [cell.id for cell in content.cells if not re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)] == []
    cells = [cell.source for cell in content.cells if cell.cell_type == "code"]
    shown = {name for source in cells for name in re.findall(r'results\.(?:study|tables)\("(\w+)"', source)}
    assert shown == {path.stem for path in (ROOT / "studies").glob("*.py")}
    assert max(source.count("\n") for source in cells) < 5


def test_the_committed_notebook_has_outputs_and_is_small() -> None:
    content = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    without = [cell.id for cell in content.cells if cell.cell_type == "code" and not cell.outputs]
    assert without == ["setup"]
    assert (ROOT / NOTEBOOK).stat().st_size < 1.5e6


def test_missing_runs_are_named_by_variant() -> None:
    params = read_params(ROOT / "params.yaml").model_copy(update={"seeds": [0, 1, 2]})
    missing = missing_runs(pd.DataFrame({"run": ["full-0", "mta-1"]}), params, ["full", "mta"])
    assert list(map(str, missing)) == ["full-1", "full-2", "mta-0", "mta-2"]
    assert "full (seeds 1 2), mta (seeds 0 2)" in missing_html(missing)
    assert missing_html([]) == ""


def test_provenance_has_commit_settings_and_cost() -> None:
    rows = provenance("scenes-tiny", run_rows(read_params(ROOT / "params.yaml"))).set_index("run")
    row = rows.loc['<span id="scenes-tiny-full-0">full-0</span>']
    assert (row["commit"], row["settings"]) == ("cccccccccc and changes", "ababababab")
    assert row["fingerprint"] == "f" * 10
    assert (row["minutes"], row["memory, GiB"], row["epoch"]) == ("5.2", "0.50", "2")
    assert len(rows) == len(RUNS)


def test_cells_of_a_table_are_escaped_unless_they_are_html() -> None:
    cells = pd.DataFrame({"row": ["<b> & c"], "link": ["<a>x</a>"]})
    html = table_html(cells, 'a "label"', raw=("link",))
    assert "&lt;b&gt; &amp; c" in html and "<a>x</a>" in html and 'aria-label="a &quot;label&quot;"' in html


def test_blocks_are_headings_over_their_rows_and_verdicts_stand_beside_the_name() -> None:
    cells = pd.DataFrame(
        {"block": ["", "gate", "gate"], "row": ["full", "a", "b"], "verdict": ["–", "lower", "undecided"]}
    )
    table = BeautifulSoup(section_html(Section("t", "a `b`", cells, left=("row", "verdict"))), "html.parser")
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    assert rows == [["row", "verdict"], ["full", "–"], ["gate"], ["a", "lower"], ["b", "undecided"]]
    assert [cell.text for cell in table.find_all("strong")] == ["lower"]
    assert table.code.string == "b" and table.caption.text == "t"


def test_an_image_without_text_is_refused() -> None:
    output = new_output("display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": "a dot"}})
    cell = new_code_cell("", outputs=[output], id="dot")
    assert 'alt="a dot" width="1" height="1"' in to_page(new_notebook(cells=[cell]))
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
