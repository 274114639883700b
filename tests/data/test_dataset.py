"""Cases: the sentences of training and evaluation, the controls, and the items that the model gets."""

import random
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from wimfris.cli import app as cli
from wimfris.data.dataset import (
    Case,
    ReferDataset,
    empty_sentences,
    epoch_cases,
    every_sentence,
    shuffled_sentences,
    to_device,
)
from wimfris.data.images import read_image
from wimfris.data.index import build_index
from wimfris.data.letterbox import letterbox_image, letterbox_mask, letterbox_mask_uint8, normalise
from wimfris.data.refer import read_refer, scenes_source
from wimfris.data.rle import decode_rle
from wimfris.data.scenes import write_scenes
from wimfris.data.sentences import vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.errors import UserError

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 12, "val": 1, "testA": 1, "testB": 1}, 64)
    return folder


@pytest.fixture(scope="module")
def index(root: Path) -> pd.DataFrame:
    whole, _, _ = build_index(read_refer(scenes_source(root)), scenes_source(root).images)
    return whole[whole["split"] == "train"].reset_index(drop=True)


def frame(*images: tuple[int, list[str]]) -> pd.DataFrame:
    """Return an index of (image, sentences) rows, with the columns that select cases."""
    return pd.DataFrame({"image_id": [image for image, _ in images], "sentences": [texts for _, texts in images]})


def test_every_sentence_is_one_case() -> None:
    assert every_sentence(frame((5, ["a", "b"]), (5, ["c"]))) == [Case(0, 0, "a"), Case(0, 1, "b"), Case(1, 0, "c")]


def test_empty_sentences() -> None:
    assert empty_sentences(frame((5, ["a", "b"]), (6, ["c"]))) == [Case(0, 0, ""), Case(0, 1, ""), Case(1, 0, "")]


def test_shuffled_sentences_come_from_another_image(index: pd.DataFrame) -> None:
    cases, shuffled = every_sentence(index), shuffled_sentences(index)
    assert [(c.row, c.sentence) for c in shuffled] == [(c.row, c.sentence) for c in cases]
    assert Counter(c.text for c in shuffled) == Counter(c.text for c in cases), "each sentence is used once"
    assert shuffled_sentences(index) == shuffled, "the order is fixed"


@pytest.mark.parametrize(
    "counts",
    [[1, 1], [3, 3], [4, 1, 1, 2], [1, 2, 3, 4, 5, 5], [2] * 9, [7, 7, 7], [5, 1, 1, 1, 1, 1]],
    ids=str,
)
def test_sentences_are_shuffled_for_any_counts_of_the_images(counts: list[int]) -> None:
    rows = [(image, [f"{image} {k}"]) for image, count in enumerate(counts) for k in range(count)]
    index = frame(*[rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    shuffled = shuffled_sentences(index)
    assert sorted(c.text for c in shuffled) == sorted(text for _, (text,) in rows)
    for case in shuffled:
        assert int(case.text.split()[0]) != index["image_id"][case.row]


def test_sentences_of_one_large_image_cannot_be_shuffled() -> None:
    with pytest.raises(UserError, match="one image holds more than half"):
        shuffled_sentences(frame((1, ["a", "b", "c"]), (2, ["d"])))


def test_an_epoch_has_every_object_once(index: pd.DataFrame) -> None:
    cases = epoch_cases(index, 0, 0)
    assert sorted(case.row for case in cases) == list(range(len(index)))
    assert all(index["sentences"][case.row][case.sentence] == case.text for case in cases)


def test_epochs_and_seeds_differ_and_repeat(index: pd.DataFrame) -> None:
    orders = [epoch_cases(index, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(a != b for k, a in enumerate(orders) for b in orders[:k])
    assert epoch_cases(index, 1, 1) == orders[3]
    seen = {(c.row, c.sentence) for epoch in range(20) for c in epoch_cases(index, 0, epoch)}
    assert len(seen) == sum(map(len, index["sentences"])), "every sentence is drawn in some epoch"


def test_items(root: Path, index: pd.DataFrame) -> None:
    tokenizer = WordTokenizer(vocabulary(), 16)
    cases = every_sentence(index)
    images = scenes_source(root).images
    dataset = ReferDataset(index, cases, images, tokenizer, SIZE, with_mask=True)
    assert len(dataset) == len(cases)
    for number in (0, 1, len(cases) - 1):
        item, row = dataset[number], index.iloc[cases[number].row]
        assert item["number"] == number
        assert item["image"].shape == (3, SIZE, SIZE) and item["image"].dtype == item["mask"].dtype == torch.uint8
        np.testing.assert_array_equal(item["image"], letterbox_image(read_image(images / row["file_name"]), SIZE))
        mask = decode_rle(row["rle_counts"], row["height"], row["width"])
        np.testing.assert_array_equal(item["mask"][0], letterbox_mask_uint8(mask, SIZE))
        assert item["mask"].shape == (1, SIZE, SIZE)
        read = to_device({key: torch.as_tensor(value)[None] for key, value in item.items()}, torch.device("cpu"))
        assert torch.equal(read["image"][0], normalise(item["image"]))
        np.testing.assert_array_equal(read["mask"][0, 0], letterbox_mask(mask, SIZE))
        np.testing.assert_array_equal(item["token_ids"], tokenizer.encode(cases[number].text))
    assert "mask" not in ReferDataset(index, cases, images, tokenizer, SIZE, with_mask=False)[0]


def test_the_number_of_workers_changes_nothing(root: Path, index: pd.DataFrame) -> None:
    images, tokenizer = scenes_source(root).images, WordTokenizer(vocabulary(), 16)
    for epoch in (0, 1):
        cases = epoch_cases(index, 3, epoch)
        dataset = ReferDataset(index, cases, images, tokenizer, SIZE, with_mask=True)
        batches = [list(DataLoader(dataset, 4, num_workers=workers)) for workers in (0, 2)]
        assert len(batches[0]) > 1
        for alone, together in zip(*batches, strict=True):
            assert alone.keys() == together.keys()
            assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_a_case_is_read_without_random_numbers(root: Path, index: pd.DataFrame) -> None:
    """Workers therefore need no seeds."""
    images, tokenizer = scenes_source(root).images, WordTokenizer(vocabulary(), 16)
    dataset = ReferDataset(index, every_sentence(index), images, tokenizer, SIZE, with_mask=True)

    def states() -> tuple[object, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the test is about the global state)
        return random.getstate(), name, bytes(np.asarray(keys)), *rest, bytes(torch.get_rng_state().numpy())

    before, first = states(), dataset[0]
    assert states() == before
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = dataset[0]
    assert all(torch.equal(torch.as_tensor(first[name]), torch.as_tensor(again[name])) for name in first)


def test_a_missing_or_changed_image_is_named(root: Path, index: pd.DataFrame, tmp_path: Path) -> None:
    dataset = ReferDataset(
        index, every_sentence(index), tmp_path, WordTokenizer(vocabulary(), 16), SIZE, with_mask=False
    )
    with pytest.raises(UserError, match=r"COCO_train2014_\d+\.jpg: missing"):
        dataset[0]
    cv2.imwrite(str(tmp_path / index["file_name"][0]), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"changed since `prepare` \(\d+ bytes, \d+ then\); restore the file, or accept it"
    ):
        dataset[0]


def test_an_error_of_a_loader_process_is_one_line(
    root: Path, index: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes with the traceback of that process, of which the command shows the last line alone."""
    tokenizer, nowhere = WordTokenizer(vocabulary(), 16), root / "nowhere"
    dataset = ReferDataset(index, every_sentence(index), nowhere, tokenizer, SIZE, with_mask=True)
    monkeypatch.setattr(cli, "app", lambda: next(iter(DataLoader(dataset, num_workers=1))))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith(f"wimfris: {nowhere}") and message.count("\n") == 1
