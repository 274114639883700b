"""Counts per split, and their comparison with the published ones."""

from dataclasses import replace

import pytest
from refer_files import FIXTURE, SETS, official

from wimfris.data.counts import Counts, check_object_counts, count, differences
from wimfris.data.refer import ReferredObject, read_refer
from wimfris.errors import UserError

DECLARED = {name: files.counts for name, files in SETS.items()}


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
