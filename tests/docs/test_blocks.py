"""The generated blocks of README.md and docs/ are what the committed evidence gives."""

from pathlib import Path

import pandas as pd
import pytest

from wimfris.errors import UserError
from wimfris.results.report.blocks import AT_A_GLANCE, BLOCKS, PAGES, Evidence, fill, write_blocks
from wimfris.results.report.claims_tables import NOTHING


@pytest.fixture(scope="module")
def evidence(committed: Path) -> Evidence:
    return Evidence(committed)


@pytest.mark.parametrize("page", PAGES)
def test_the_committed_pages_are_those_of_the_committed_evidence(
    committed: Path, evidence: Evidence, page: str
) -> None:
    text = (committed / page).read_text(encoding="utf-8")
    assert text.count("<!-- generated: ") == text.count("<!-- end -->") > 0
    assert fill(text, evidence) == text, "run `wimfris docs` and commit the page"


def test_every_block_is_on_a_page(committed: Path) -> None:
    text = "".join((committed / page).read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_an_unknown_block_is_refused(evidence: Evidence) -> None:
    with pytest.raises(UserError, match="generated block glanse: must be one of glance, "):
        fill("<!-- generated: glanse -->\n<!-- end -->\n", evidence)


def test_text_outside_the_blocks_stays(evidence: Evidence) -> None:
    filled = fill("before\n<!-- generated: splits -->\nold\n<!-- end -->\nafter\n", evidence)
    assert filled.startswith("before\n<!-- generated: splits -->\n| split |")
    assert filled.endswith("\n<!-- end -->\nafter\n") and "old" not in filled
    assert fill(filled, evidence) == filled


def test_the_readme_names_seeds_protocol_split_and_every_verdict_once(committed: Path, evidence: Evidence) -> None:
    block = BLOCKS["glance"](evidence)
    core = pd.read_csv(committed / "reports" / "tables" / "scenes-tiny" / "core.csv").query("split == 'val'")
    for row in core[core["variant"].isin(AT_A_GLANCE)].to_dict("records"):
        cells = (row["label"], row["seeds"], f"{100 * row['miou']:.1f}")
        assert f"| {' | '.join(map(str, cells))} |" in block
    (sentences,) = core["n"].unique()
    assert f"scale tiny, split val ({sentences} sentences), protocol cris" in block
    words = " ".join(block.split())
    assert all(words.count(one.claim.claim.rstrip(".")) == 1 for one in evidence.verdicts())
    assert NOTHING in words


@pytest.mark.slow
def test_pages_are_written_once(committed: Path, tmp_path: Path) -> None:
    for name in ("benchmarks", "params.yaml", "reports", "studies"):
        (tmp_path / name).symlink_to(committed / name)
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((committed / page).read_text().replace("| full | 3 |", "| full | 9 |"))
    changed = write_blocks(tmp_path)
    assert tmp_path / "README.md" in changed and write_blocks(tmp_path) == []
