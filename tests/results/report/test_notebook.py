"""The report's notebook and page, part by part. tests/slow/test_notebook.py executes the notebook."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from wimfris.errors import UserError
from wimfris.results.evidence import RUN_COLUMNS
from wimfris.results.formats import Section
from wimfris.results.report.html import missing_html, section_html, table_html
from wimfris.results.report.notebook import missing_runs, provenance
from wimfris.results.report.page import NOTEBOOK, execute, to_page
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run

ROOT = Path(__file__).parents[3]
RUNS = [f"{variant}-{seed}" for variant in ("full", "no_window", "none") for seed in (0, 1)]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


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
        | {
            "settings_sha256": "ab" * 32,
            "device": "a machine",
            "cpu_capability": "AVX2",
            "scan": "cpu",
            "minutes": 5.25,
            "memory_gib": 0.5,
        }
        | {"best_epoch": 2, "settings": params.settings_of(Run.parse(name)).model_dump_json(exclude={"group"})}
        for name in RUNS
    ]
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS))


def test_every_study_has_a_cell_of_its_own() -> None:
    content = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    assert [cell.id for cell in content.cells if not re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)] == []
    cells = [cell.source for cell in content.cells if cell.cell_type == "code"]
    shown = {name for source in cells for name in re.findall(r'results\.(?:study|tables)\("(\w+)"', source)}
    unfinished = {"encoders", "tuning"}  # not run, or not run to the end
    assert shown == {path.stem for path in (ROOT / "studies").glob("*.py")} - unfinished
    assert max(source.count("\n") for source in cells) < 5


def test_the_committed_notebook_has_outputs_and_is_small(committed: Path) -> None:
    content = nbformat.read(committed / NOTEBOOK, as_version=4)
    without = [cell.id for cell in content.cells if cell.cell_type == "code" and not cell.outputs]
    assert without == ["setup"]
    assert (committed / NOTEBOOK).stat().st_size < 1.5e6


def test_missing_runs_are_named_by_variant() -> None:
    params = read_params(ROOT / "params.yaml").model_copy(update={"seeds": [0, 1, 2]})
    missing = missing_runs(pd.DataFrame({"run": ["full-0", "mta-1"]}), params, ["full", "mta"])
    assert list(map(str, missing)) == ["full-1", "full-2", "mta-0", "mta-2"]
    assert "seeds 1 2 of full; seeds 0 2 of mta" in missing_html(missing, "scenes-tiny")
    assert missing_html([], "scenes-tiny") == ""


def test_provenance_has_commit_settings_and_cost() -> None:
    rows = provenance("scenes-tiny", run_rows(read_params(ROOT / "params.yaml"))).set_index("run")
    row = rows.loc['<span id="scenes-tiny-full-0">full-0</span>']
    assert (row["commit"], row["settings"]) == ("cccccccccc and changes", "ababababab")
    assert row["fingerprint"] == "f" * 10 and row["device"] == "a machine AVX2"
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
