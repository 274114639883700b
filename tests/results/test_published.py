"""Published figures: every row of the file has its key, and an invalid file is refused."""

from pathlib import Path

import pytest

from wimfris.errors import UserError
from wimfris.results.published import COLUMNS, PUBLISHED, Figure, read_published

FILE = Path(__file__).parents[2] / PUBLISHED
HEADER = ",".join(COLUMNS)
ROW = 'T5,WIMFRIS-B,"layers 1,3",refcoco,val,miou,77.3,wimfris-note,medium'


def write(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_repositorys_file_is_complete() -> None:
    figures = read_published(FILE)
    assert len(figures) >= 96
    assert {figure.table for figure in figures.values()} == {"T1", "T2", "T3a", "T3b", "T4", "T5", "F6"}
    assert all(0 < figure.value < 100 for figure in figures.values())


def test_a_figure_has_its_key() -> None:
    figures = read_published(FILE)
    key = ("T3a", "WIMFRIS-B", "no window", "refcoco", "val", "miou")
    assert figures[key] == Figure(*key, 76.0, "wimfris-note", "medium")
    figure = figures["T2", "DETRIS-B", "released", "refcoco+", "testB", "oiou"]
    assert (figure.value, figure.trust) == (56.5, "high")


def test_a_figure_is_written_as_stated() -> None:
    stated = {76.0: "76.0", 74.38: "74.38", 3.0: "3.0"}
    written = {figure.value: str(figure) for figure in read_published(FILE).values()}
    assert stated.items() <= written.items()


def test_an_unpublished_figure_has_no_entry() -> None:
    assert ("T3a", "WIMFRIS-B", "window 2x2", "refcoco", "val", "miou") not in read_published(FILE)


def test_a_quoted_cell_may_hold_a_comma(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER, ROW)
    assert ("T5", "WIMFRIS-B", "layers 1,3", "refcoco", "val", "miou") in read_published(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "columns must be"),
        ([HEADER + ",note", ROW + ",x"], "columns must be"),
        ([HEADER, ROW.replace('"', "")], "row 2 must have 9 cells, got 10"),
        ([HEADER, ROW, ROW], "row 3 repeats T5 / WIMFRIS-B / layers 1,3"),
        ([HEADER, ROW.replace("77.3", "about 77")], "row 2: column 'value' must be a number, got 'about 77'"),
        ([HEADER, ROW.replace("77.3", "nan")], "column 'value' must be a number, got 'nan'"),
        ([HEADER, ROW.replace("medium", "much")], "column 'trust' must be one of high, medium, low, got 'much'"),
        ([HEADER, ROW.replace("wimfris-note", "")], "column 'source' is empty"),
        ([HEADER, ROW.replace('3",', "3,")], "not a CSV file|cells"),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path, *lines) if lines else write(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        read_published(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_published(tmp_path / "published.csv")
