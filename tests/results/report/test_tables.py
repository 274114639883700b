"""The main table and the formats of all tables: numbers equal those by hand, files are stable and escaped."""

import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from wimfris.errors import UserError
from wimfris.results.formats import Section, latex_text, markdown_text, parse_markdown, print_section
from wimfris.results.report.tables import main_table, print_table, write_table

COLUMNS = ["dataset", "scale", "protocol", "system", "split", "seeds", "n"]
COLUMNS += [
    "miou",
    "oiou",
    "pr50",
    "pr60",
    "pr70",
    "pr80",
    "pr90",
    "miou_sd",
    "miou_shuffled",
    "miou_empty",
    "n_controls",
]


def run(
    name: str,
    areas: list[tuple[int, int]],
    split: str = "val",
    condition: str = "sentence",
    dataset: str = "scenes",
    scale: str = "tiny",
    protocol: str = "cris",
) -> pd.DataFrame:
    """Simulate records of one run; areas are (intersection, union) of its sentences."""
    variant, seed = name.rsplit("-", 1)
    count = range(len(areas))
    return pd.DataFrame(
        {
            "run": name,
            "variant": variant,
            "seed": int(seed),
            "dataset": dataset,
            "scale": scale,
            "protocol": protocol,
            "split": split,
            "condition": condition,
            "ref_id": [index // 2 for index in count],
            "sent_id": list(count),
            "image_id": [index // 2 for index in count],
            "sentence": [f"thing {index}" for index in count],
            "kind": "",
            "target_area": 10,
            "intersection": [inside for inside, _ in areas],
            "union": [around for _, around in areas],
        }
    )


def several() -> pd.DataFrame:
    """Simulate two seeds of `full` on five splits with controls, one of another variant, and another data set."""
    parts = []
    for split in ("test", "testB", "testA", "val", "train"):
        parts += [run("full-0", [(1, 2), (3, 4)], split), run("full-1", [(1, 4), (4, 4)], split)]
        parts += [run(f"full-{seed}", [(0, 4), (1, 4)], split, "shuffled") for seed in (0, 1)]
        parts += [run(f"full-{seed}", [(0, 4), (0, 4)], split, "empty") for seed in (0, 1)]
        parts += [run("a_variant-0", [(1, 2), (0, 0)], split)]
    parts += [run("full-0", [(9, 10)], "val", dataset="refcoco", scale="base")]
    return pd.concat(parts, ignore_index=True)


def test_numbers_equal_those_computed_by_hand() -> None:
    # IoUs of seed 0: 0 (union 0), 1/2, 3/4, 1; of seed 1: 0, 0, 1, 1.
    first = run("full-0", [(0, 0), (2, 4), (3, 4), (12, 12)])
    second = run("full-1", [(0, 0), (0, 10), (4, 4), (6, 6)])
    controls = [
        run("full-0", [(1, 4)] * 4, condition="shuffled"),
        run("full-1", [(3, 4)] * 4, condition="shuffled"),
        run("full-0", [(0, 4)] * 4, condition="empty"),
        run("full-1", [(1, 10)] * 4, condition="empty"),
    ]
    table = main_table(pd.concat([first, second, *controls], ignore_index=True))
    assert list(table.columns) == COLUMNS
    (row,) = table.to_dict("records")
    assert [row[name] for name in COLUMNS[:7]] == ["scenes", "tiny", "cris", "full", "val", 2, 4]
    assert row["miou"] == pytest.approx((2.25 / 4 + 2 / 4) / 2)
    assert row["oiou"] == pytest.approx((17 / 20 + 10 / 20) / 2)
    assert row["pr50"] == pytest.approx(0.5)  # strictly greater: the IoU of 1/2 does not count
    assert row["pr70"] == pytest.approx(0.5)
    assert row["pr80"] == pytest.approx((0.25 + 0.5) / 2)
    assert row["miou_sd"] == pytest.approx(abs(2.25 / 4 - 2 / 4) / np.sqrt(2))
    assert row["miou_shuffled"] == pytest.approx(0.5)
    assert row["miou_empty"] == pytest.approx(0.05)


def test_one_seed_has_no_spread_and_missing_controls_stay_empty() -> None:
    table = main_table(run("none-0", [(1, 2)]))
    assert table["miou_sd"].isna().all() and table["miou_shuffled"].isna().all() and table["miou_empty"].isna().all()


def test_a_control_that_one_seed_lacks_is_empty() -> None:
    parts = [run("full-0", [(1, 2)]), run("full-1", [(1, 2)]), run("full-0", [(0, 2)], condition="empty")]
    assert main_table(pd.concat(parts))["miou_empty"].isna().all()


@pytest.mark.slow
def test_the_order_of_rows_does_not_depend_on_that_of_the_records() -> None:
    table = main_table(several())
    scenes = table[table["dataset"] == "scenes"]
    assert list(scenes["split"]) == 2 * ["train", "val", "testA", "testB", "test"]
    assert list(scenes["system"]) == 5 * ["full"] + 5 * ["a_variant"]
    for seed in range(3):
        pd.testing.assert_frame_equal(main_table(several().sample(frac=1, random_state=seed)), table)


def test_protocols_do_not_mix() -> None:
    frame = pd.concat([run("full-0", [(1, 2)]), run("none-0", [(1, 2)], protocol="other")])
    with pytest.raises(UserError, match=r"scenes.*val.*'cris' \(run full-0\) and 'other' \(run none-0\)"):
        main_table(frame)


def test_sentence_sets_do_not_mix() -> None:
    frame = pd.concat([run("full-0", [(1, 2), (1, 2)]), run("full-1", [(1, 2)])])
    with pytest.raises(UserError, match=r"run full-1 \(1 sentences\).*full-0 \(2\)"):
        main_table(frame)
    other = run("full-1", [(1, 2), (1, 2)]).assign(sent_id=[0, 7])
    with pytest.raises(UserError, match="full-1"):
        main_table(pd.concat([run("full-0", [(1, 2), (1, 2)]), other]))


def test_a_case_counts_once() -> None:
    stale = run("full-0", [(1, 2)]).assign(run="old-0")
    with pytest.raises(UserError, match="twice in run full-0 and old-0"):
        main_table(pd.concat([run("full-0", [(1, 2)]), stale]))


def test_controls_without_their_sentences_are_refused() -> None:
    with pytest.raises(UserError, match="full-0 has controls but no sentences"):
        main_table(run("full-0", [(1, 2)], condition="empty"))


def test_the_csv_is_plain_and_reads_back(tmp_path: Path) -> None:
    table = main_table(several())
    path = tmp_path / "tables" / "main.csv"
    write_table(table, path.with_suffix(""))
    text = path.read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert len(text.splitlines()) == 1 + len(table)
    pd.testing.assert_frame_equal(pd.read_csv(path), table, check_dtype=False, atol=5e-7, rtol=0)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_table(main_table(several().sample(frac=1, random_state=seed)), tmp_path / name / "main")
    for suffix in ("csv", "md", "tex"):
        assert (tmp_path / "a" / f"main.{suffix}").read_bytes() == (tmp_path / "b" / f"main.{suffix}").read_bytes()


def test_markdown_and_latex_state_their_scope(tmp_path: Path) -> None:
    write_table(main_table(several()), tmp_path / "main")
    markdown, latex = (tmp_path / "main.md").read_text(), (tmp_path / "main.tex").read_text()
    assert "## refcoco, scale base, protocol cris, 1 seed\n" in markdown
    assert "## scenes, scale tiny, protocol cris, 1 to 2 seeds\n" in markdown
    assert r"\caption{refcoco, scale base, protocol cris, 1 seed. How to read this table: docs/statistics.md." in latex
    for text in (markdown, latex):
        sections = text.split("scale base")
        assert len(sections) == 2
        scenes = text[text.index("scenes, scale tiny") :]
        assert "built-in data set (scenes) at scale tiny; they say nothing about the figures in the paper" in scenes
        assert "built-in" not in text[: text.index("scenes, scale tiny")]
    assert latex.count(r"\begin{table}") == latex.count(r"\toprule") == latex.count(r"\end{table}") == 2


def test_shown_figures_are_percent_with_one_decimal(tmp_path: Path) -> None:
    write_table(main_table(run("full-0", [(1, 2), (1, 3)])), tmp_path / "main")
    cells = [line for line in (tmp_path / "main.md").read_text().splitlines() if line.startswith("| full")]
    assert [cell.strip() for cell in cells[0].strip("|").split("|")][:5] == ["full", "val", "2", "41.7", ""]
    assert "full & val" in " ".join((tmp_path / "main.tex").read_text().replace("     ", " ").split())


def test_names_are_escaped(tmp_path: Path) -> None:
    frame = run("no_window & a|b-0", [(1, 2)], dataset="ref_coco&")
    write_table(main_table(frame), tmp_path / "main")
    markdown, latex = (tmp_path / "main.md").read_text(), (tmp_path / "main.tex").read_text()
    assert r"no\_window \& a\|b" in markdown and r"ref\_coco\&" in markdown
    assert r"no\_window \& a|b" in latex and r"\caption{ref\_coco\&, " in latex
    assert "no_window" not in markdown + latex and "coco&" not in markdown + latex


def test_markdown_links_to_the_guide() -> None:
    section = Section("t", "A note.", pd.DataFrame({"system": ["x"]}), guide=True)
    link = "How to read this table: [docs/statistics.md](../../../docs/statistics.md)\n\nA note."
    assert link in markdown_text("h", [section])
    assert "statistics" not in markdown_text("h", [Section("t", "", section.cells)])


def test_markdown_reads_back() -> None:
    cells = pd.DataFrame({"a_row": ["x|y", "[1, 2]"], "n": ["", "–"]})
    sections = [
        Section("A: title", "a note, 5% of $x", cells, "a foot", left=("a_row",), guide=True),
        Section("B", "", cells, left=("a_row",)),
    ]
    intro, read = parse_markdown(markdown_text("Heading", sections, "**Question.** Why?\n\n![A](a.png)\n"))
    assert intro == "**Question.** Why?"
    for section, other in zip(sections, read, strict=True):
        pd.testing.assert_frame_equal(section.cells, other.cells)
        assert replace(section, cells=None) == replace(other, cells=None)


def test_the_printed_table_fits_80_columns_uncut() -> None:
    out = io.StringIO()
    names = {"run": "msa_emphasis-0", "variant": "msa_emphasis"}
    frame = pd.concat([several(), several().query("variant == 'a_variant'").assign(**names)])
    print_table(main_table(frame).assign(n=12345), Console(file=out, width=80))
    text = out.getvalue()
    assert "msa_emphasis" in text and "12345" in text and "62.5" in text and "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_every_set_and_scale_has_a_section(tmp_path: Path) -> None:
    write_table(main_table(several()), tmp_path / "main")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.csv", "main.md", "main.tex"]
    assert (tmp_path / "main.md").read_text().count("\n## ") == 2


def test_a_wide_latex_table_is_shrunk_to_the_text() -> None:
    narrow, wide = (Section("t", "", pd.DataFrame([["1"] * n], columns=[f"c{k}" for k in range(n)])) for n in (13, 14))
    assert "resizebox" not in latex_text([narrow]) and "graphicx" not in latex_text([narrow])
    text = latex_text([narrow, wide])
    assert text.count(r"\resizebox{\linewidth}{!}{%") == 1 and text.startswith(
        r"% needs \usepackage{booktabs,graphicx}"
    )


def test_blocks_are_lines_of_their_own_in_the_terminal() -> None:
    cells = pd.DataFrame({"block": ["a", "a", "b"], "row": ["x", "y", "x"], "mIoU": ["1", "2", "3"]})
    out = io.StringIO()
    print_section(Section("t", "", cells, left=("row",)), console=Console(file=out, width=40))
    assert [line.split() for line in out.getvalue().splitlines()][2:8] == [
        ["a"],
        ["x", "1"],
        ["y", "2"],
        ["b"],
        ["x", "3"],
        [],
    ]


def test_a_table_wider_than_the_terminal_is_folded_and_loses_nothing() -> None:
    columns = {"system": ["full", "none"], "split": ["val", "val"], "verdict": ["", "lower"]}
    columns |= {f"metric{k}": [f"{k}.25", f"{k}.75"] for k in range(20)}
    out = io.StringIO()
    section = Section("t", "a note", pd.DataFrame(columns), left=("system", "split", "verdict"))
    print_section(section, ("metric3",), Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    words = out.getvalue().split()
    for k in range(20):
        assert words.count(f"{k}.75") == (k != 3) and (f"metric{k}" in words) == (k != 3)
    heads = [line for line in lines if line.startswith("system")]
    assert len(heads) > 1 and all(line.startswith("system split ") for line in heads)
    assert "Only in the files: metric3." in out.getvalue()


def test_the_latex_document_has_the_verdicts_and_is_balanced(committed: Path) -> None:
    text = (committed / "reports" / "paper.tex").read_text(encoding="utf-8")
    opened, closed = (Counter(re.findall(rf"\\{word}{{(\w+)}}", text)) for word in ("begin", "end"))
    assert opened == closed and opened["table"] == opened["tabular"] > 4 and opened["document"] == 1
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    heads = re.findall(r"toprule\n(.*)", text)
    assert len(heads) == opened["table"] and all("verdict" in head and "paper's gain" in head for head in heads)
    for line in text.splitlines():
        if line.endswith(r"\\"):
            columns = len(re.findall(r"(?<!\\)&", line))
            assert columns in {len(re.findall(r"(?<!\\)&", head)) for head in heads}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("pdflatex") or shutil.which("tectonic")), reason="LaTeX is not installed")
def test_the_latex_document_compiles_as_it_is(committed: Path, tmp_path: Path) -> None:
    shutil.copy(committed / "reports" / "paper.tex", tmp_path)
    options = ["-interaction=nonstopmode", "-halt-on-error"] if shutil.which("pdflatex") else []
    command = ["pdflatex" if options else "tectonic", *options, "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
