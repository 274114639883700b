"""The notebook executed: the page is self-contained, complete about its gaps, and the same bytes each time.

`make test` runs this file.
"""

import contextlib
import re
import runpy
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook

from wimfris.cli.evidence import compare
from wimfris.errors import UserError
from wimfris.results.evidence import EMPHASIS_COLUMNS, EvidenceFiles
from wimfris.results.plan import CLAIMS
from wimfris.results.published import PUBLISHED
from wimfris.results.report.page import NOTEBOOK, PAGE_PATH, execute, write_page
from wimfris.runs.records import SCHEMA
from wimfris.settings.params import read_params

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
_shared = runpy.run_path(str(ROOT / "tests" / "results" / "report" / "test_notebook.py"))
RUNS, run_rows = _shared["RUNS"], _shared["run_rows"]


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
    with contextlib.chdir(folder):
        compare()
    return folder


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    with contextlib.chdir(report):
        write_page()
        return PAGE_PATH.read_text()


@pytest.mark.long
def test_page_and_notebook_are_the_same_bytes_each_time(report: Path, page: str) -> None:
    notebook = (report / NOTEBOOK).read_bytes()
    with contextlib.chdir(report):
        write_page()
        assert PAGE_PATH.read_text() == page and NOTEBOOK.read_bytes() == notebook


def test_the_notebook_runs_the_committed_cells(report: Path, page: str) -> None:
    cells, committed = (nbformat.read(root / NOTEBOOK, as_version=4).cells for root in (report, ROOT))
    assert [cell.source for cell in cells] == [cell.source for cell in committed]
    assert any(cell.get("outputs") for cell in cells)


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    elements = BeautifulSoup(page, "html.parser")
    assert not elements.find_all(["script", "link", "iframe", "object", "video", "audio", "embed", "source"])
    sources = [element["src"] for element in elements.find_all(src=True)]
    assert len(sources) >= 4 and all(source.startswith("data:image/png;base64,") for source in sources)
    style = elements.style.string
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert elements.find("meta", attrs={"name": "viewport"})


def test_the_page_names_its_gaps(page: str) -> None:
    assert "Not in the evidence of scenes-" in page
    assert ": seeds 2 of full, no_window; seeds 0 1 2 of window_1" in page  # of window_size
    assert "gallery.png has not been drawn" in page and "ccccccccc and changes" in page
    assert "undecided (not run)" in page and "by construction" in page
    assert "import Results" not in page


def test_a_cells_user_error_is_one_line(tmp_path: Path) -> None:
    source = "from wimfris.errors import UserError\nraise UserError('x.csv: is empty; restore it')"
    nbformat.write(new_notebook(cells=[new_code_cell(source, id="bad")]), tmp_path / "results.ipynb")
    with pytest.raises(UserError, match=r"^x.csv: is empty; restore it$"):
        execute(tmp_path / "results.ipynb")
