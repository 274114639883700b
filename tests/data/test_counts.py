"""Counts per split, and their comparison with the published ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from wimfris.data.counts import Counts, check_object_counts, count, differences
from wimfris.data.refer import ReferredObject, Source, declared_source, read_refer
from wimfris.errors import UserError
from wimfris.settings.params import read_params
from wimfris.settings.schema import Files

FIXTURE = Path(__file__).parents[1] / "golden" / "refer_fixture"
SETS = read_params(Path(__file__).parents[2] / "params.yaml").datasets


def official(root: Path, name: str = "refcoco") -> Source:
    """Return the files of an official data set under a root."""
    files = SETS[name]
    assert isinstance(files, Files)
    return declared_source(name, files, root)


DECLARED = {name: files.counts for name, files in SETS.items() if isinstance(files, Files)}


@pytest.fixture(scope="module")
def objects() -> list[ReferredObject]:
    return read_refer(official(FIXTURE))


def test_declared_counts_sum_to_the_data_sets_totals() -> None:
    totals = {name: [sum(column) for column in zip(*splits.values(), strict=True)] for name, splits in DECLARED.items()}
    assert totals["refcoco"] == [50000, 142210, 19994]
    assert totals["refcoco+"] == [49856, 141564, 19992]
    assert totals["refcocog-umd"] == [49822, 95010, 25799]
    assert totals["refcocog-google"][:2] == [49822, 95010], "its splits share images"


@pytest.mark.slow
def test_object_counts_must_be_the_declared_ones(objects: list[ReferredObject]) -> None:
    with pytest.raises(UserError, match="testA has 4 objects, expected 1975"):
        check_object_counts(objects, official(FIXTURE), DECLARED["refcoco"])
    splits = DECLARED["refcoco+"].items()
    published = [replace(objects[0], split=split) for split, counts in splits for _ in range(counts[0])]
    check_object_counts(published, official(FIXTURE, "refcoco+"), DECLARED["refcoco+"])
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: .*train has 42278 objects, expected 42404"):
        check_object_counts(published, official(FIXTURE), DECLARED["refcoco"])
    with pytest.raises(UserError, match="extra has 1 objects, expected 0"):
        check_object_counts([*published, replace(objects[0], split="extra")], official(FIXTURE), DECLARED["refcoco+"])
    check_object_counts(objects, official(FIXTURE), {})


def test_every_count_that_differs_is_listed(objects: list[ReferredObject]) -> None:
    counts = count(objects)
    assert differences(counts, counts) == []
    val = counts["val"]
    other = counts | {"val": Counts(val.objects, val.sentences + 1, 9)}
    sentences, images = differences(counts, other)
    assert sentences == f"val has {val.sentences} sentences, expected {val.sentences + 1}"
    assert images.endswith("images, expected 9")
