"""`wimfris data check` names missing files and wrong counts, with the fix."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from refer_files import FIXTURE, SETS, official

from wimfris.checks import official_files as check
from wimfris.cli.prepare import data_check
from wimfris.data.counts import count
from wimfris.data.refer import read_refer
from wimfris.errors import UserError
from wimfris.settings.sections import Files


def declared(name: str, **counts: tuple[int, int, int]) -> Files:
    """Return a shipped declaration with the fixture's counts, and others of some splits."""
    right = count(read_refer(official(FIXTURE, name)))
    return SETS[name].model_copy(update={"counts": right | counts})


RIGHT = {name: declared(name) for name in ("refcoco", "refcocog-umd")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "data"))


def problems(root: Path, *names: str) -> list[str]:
    return check.check(root, {name: RIGHT[name] for name in names or RIGHT}).problems


def test_right_files_pass_and_their_hashes_are_recorded(root: Path) -> None:
    report = check.check(root, RIGHT)
    assert report.problems == [] and report.counts == {name: files.counts for name, files in RIGHT.items()}
    assert all("first time" in note for note in report.notes) and len(report.notes) == 4
    seen = json.loads((root / check.SEEN).read_text())
    assert set(seen) == {f"{folder}/{file}" for folder, file in (
        ("refcoco", "refs(unc).p"), ("refcoco", "instances.json"),
        ("refcocog", "refs(umd).p"), ("refcocog", "instances.json"),
    )}  # fmt: skip
    again = check.check(root, RIGHT)
    assert again.problems == [] and all(note.endswith("as first seen") for note in again.notes)


def test_every_missing_file_is_named_with_the_counts_of_the_right_one(root: Path) -> None:
    (root / "refcoco" / "refs(unc).p").unlink()
    (root / "refcocog" / "instances.json").unlink()
    (root / "images" / "train2014" / "COCO_train2014_000000000003.jpg").unlink()
    first, second = problems(root)
    assert f"missing {root}/refcoco/refs(unc).p" in first
    assert f"train {RIGHT['refcoco'].counts['train'][0]}/" in first
    assert f"missing {root}/refcocog/instances.json" in second
    shutil.copy(FIXTURE / "refcoco" / "refs(unc).p", root / "refcoco")
    assert any("1 of the 8 annotated images are missing, for example COCO_train2014_000000000003.jpg" in line
               for line in problems(root))  # fmt: skip
    shutil.rmtree(root / "images")
    assert any(
        "train2014: no such folder of images; for COCO's train2014 unpack http" in line for line in problems(root)
    )


def test_an_empty_image_file_is_reported(root: Path) -> None:
    (root / "images" / "train2014" / "COCO_train2014_000000000003.jpg").write_bytes(b"")
    (line,) = problems(root)
    assert "1 of the 8 annotated images" in line and "are empty" in line


def test_every_wrong_count_is_named_and_a_wrong_file_is_not_recorded(root: Path) -> None:
    objects, sentences, _ = RIGHT["refcoco"].counts["val"]
    report = check.check(root, {"refcoco": declared("refcoco", val=(objects, sentences + 1, 9))})
    (line,) = report.problems
    assert f"val has {sentences} sentences, expected {sentences + 1}" in line
    assert "images, expected 9" in line and "objects, expected" not in line
    assert not (root / check.SEEN).exists()


def test_a_changed_file_is_refused(root: Path) -> None:
    problems(root)
    with (root / "refcoco" / "instances.json").open("a") as file:
        file.write(" ")
    (line,) = problems(root)
    assert line.startswith(f"{root}/refcoco/instances.json: its counts are right, but it is not the file")
    assert problems(root) == [line], "the hash of the first file stays recorded"


def test_damaged_files_are_problems_not_tracebacks(root: Path) -> None:
    path = root / "refcoco" / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:-100])
    (line,) = problems(root)
    assert "not a readable pickle" in line and "\n" not in line
    (root / check.SEEN).write_text("{")
    with pytest.raises(UserError, match=r"seen\.json: not readable as JSON; delete it"):
        problems(root)


@pytest.mark.slow
def test_what_a_declaration_lacks_is_named(root: Path, project: object) -> None:
    files = RIGHT["refcoco"].model_copy(update={"counts": {}, "splits": ("val", "test")})
    (line,) = check.check(root, {"refcoco": files}).problems
    assert "no reference has the split test; get the right file, or correct datasets.refcoco" in line
    files = RIGHT["refcoco"].model_copy(update={"counts": {}})
    assert any("declares no datasets.refcoco.counts" in note for note in check.check(root, {"refcoco": files}).notes)
    with pytest.raises(UserError, match=r"--data must be one of refcoco, .*, got mine; declare it in datasets .*refs"):
        data_check(sets="mine", root=root)


def test_the_command_exits_with_1_on_problems(root: Path, project: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stop:
        data_check(sets="refcoco", root=root)
    assert stop.value.exit_code == 1
    out = capsys.readouterr().out
    assert "expected 42404" in out and out.endswith("1 problem\n")
    data_check()
    assert "nothing to check" in capsys.readouterr().out
