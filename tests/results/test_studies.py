"""The files of studies/ as objects."""

from pathlib import Path

import pytest

from wimfris.errors import UserError
from wimfris.results.studies import load_studies, load_study


def test_a_file_without_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text("ANSWER = 42\n")
    with pytest.raises(UserError, match=r"notes\.py: has no constant STUDY"):
        load_studies(tmp_path)


def test_an_unknown_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text("ANSWER = 42\n")
    with pytest.raises(UserError, match=r"clock\.py: no such study; the studies are notes"):
        load_study("clock", tmp_path)
