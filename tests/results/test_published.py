"""The published figures: every row of the file is found by its key, and a file that is not whole is refused."""

from pathlib import Path

import pytest

from wimfris.errors import UserError
from wimfris.results.published import COLUMNS, PUBLISHED, Figure, published, read_published

FILE = Path(__file__).parents[2] / PUBLISHED
HEADER = ",".join(COLUMNS)
ROW = 'T5,WIMFRIS-B,"layers 1,3",refcoco,val,miou,77.3,wimfris-note,medium'


def write(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_repositorys_file_is_whole() -> None:
    figures = read_published(FILE)
    assert len(figures) >= 96
    assert {figure.table for figure in figures.values()} == {"T1", "T2", "T3a", "T3b", "T4", "T5", "F6"}
    assert all(0 < figure.value < 100 for figure in figures.values())


def test_a_figure_is_found_by_its_key() -> None:
    assert published("T3a", "WIMFRIS-B", "no window", path=FILE) == Figure(
        "T3a", "WIMFRIS-B", "no window", "refcoco", "val", "miou", 76.0, "wimfris-note", "medium"
    )
    found = published("T2", "DETRIS-B", "released", "refcoco+", "testB", "oiou", path=FILE)
    assert found is not None and (found.value, found.trust) == (56.5, "high")


def test_a_figure_is_written_as_it_was_stated() -> None:
    stated = {76.0: "76.0", 74.38: "74.38", 3.0: "3.0"}
    written = {figure.value: str(figure) for figure in read_published(FILE).values()}
    assert stated.items() <= written.items()


def test_what_nobody_published_is_a_gap() -> None:
    assert published("T3a", "WIMFRIS-B", "window 2x2", path=FILE) is None


def test_a_comma_in_a_quoted_cell_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER, ROW)
    assert published("T5", "WIMFRIS-B", "layers 1,3", path=path) is not None


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "columns must be"),
        ([HEADER + ",note", ROW + ",x"], "columns must be"),
        ([HEADER, ROW.replace('"', "")], "row 2 has 10 cells"),
        ([HEADER, ROW, ROW], "row 3 repeats T5 / WIMFRIS-B / layers 1,3"),
        ([HEADER, ROW.replace("77.3", "about 77")], "row 2: column 'value' has 'about 77'"),
        ([HEADER, ROW.replace("77.3", "nan")], "column 'value' has 'nan'"),
        ([HEADER, ROW.replace("medium", "much")], "column 'trust' has 'much'"),
        ([HEADER, ROW.replace("wimfris-note", "")], "column 'source' is empty"),
        ([HEADER, ROW.replace('3",', "3,")], "not a CSV file|cells"),
    ],
)
def test_a_garbled_file_is_refused_in_one_line(tmp_path: Path, lines: list[str], told: str) -> None:
    path = write(tmp_path, *lines) if lines else write(tmp_path)
    with pytest.raises(UserError, match=told) as raised:
        read_published(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_published(tmp_path / "published.csv")
