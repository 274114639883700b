"""Evaluation: one record a sentence and condition, whatever the batch, each as computed independently."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn import functional as F

from wimfris.data import refer
from wimfris.data.index import read_index
from wimfris.data.letterbox import geometry, letterbox_image
from wimfris.data.rle import decode_rle
from wimfris.data.source import source_images
from wimfris.inference.predict import Predictor
from wimfris.runs import records as recorded
from wimfris.runs.records import read_records, write_records
from wimfris.settings.params import Settings, read_params
from wimfris.training.evaluate import CONDITIONS, Evaluator

KEY = ["split", "condition", "ref_id", "sent_id"]


@pytest.fixture
def predictor(trained: Any) -> Predictor:
    return Predictor.load(trained.params().settings(), "full-0")


def evaluator(settings: Settings, predictor: Predictor) -> Evaluator:
    index = read_index(settings.folder / "index" / "index.parquet")
    return Evaluator(settings, index, source_images(settings), predictor.tokenizer, torch.device("cpu"))


@pytest.fixture
def records(trained: Any) -> pd.DataFrame:
    """What training left."""
    return read_records(trained.runs / "records" / "full-0.parquet")


def test_one_record_per_sentence_and_condition(trained: Any, records: pd.DataFrame) -> None:
    index = read_index(trained.runs / "index" / "index.parquet")
    rows = index[index["split"] != "train"]
    sentences = {
        (split, condition, ref, sent)
        for split, ref, sents in zip(rows["split"], rows["ref_id"], rows["sent_ids"], strict=True)
        for sent in sents
        for condition in ("sentence", "shuffled", "empty")
    }
    assert not records.duplicated(KEY).any()
    assert set(records[KEY].itertuples(index=False, name=None)) == sentences
    assert tuple(CONDITIONS) == recorded.CONDITIONS
    for name, value in {"run": "full-0", "variant": "full", "seed": 0, "dataset": "scenes", "scale": "smoke"}.items():
        assert (records[name] == value).all(), name
    assert (records["protocol"] == "cris").all()


def test_records_name_their_case(trained: Any, records: pd.DataFrame) -> None:
    index = read_index(trained.runs / "index" / "index.parquet").set_index("ref_id")
    own = records[records["condition"] == "sentence"].set_index("sent_id")
    for row in records.to_dict("records"):
        entry = index.loc[row["ref_id"]]
        place = entry["sent_ids"].index(row["sent_id"])
        assert row["image_id"] == entry["image_id"] and row["target_area"] == entry["area"]
        assert row["kind"] == entry["kinds"][place] != ""
        told = {"sentence": entry["sentences"][place], "empty": ""}
        if row["condition"] == "shuffled":
            others = own[(own["split"] == row["split"]) & (own["image_id"] != row["image_id"])]
            assert row["sentence"] in set(others["sentence"])
        else:
            assert row["sentence"] == told[row["condition"]]


def test_records_equal_an_independent_computation(trained: Any, predictor: Predictor, records: pd.DataFrame) -> None:
    """From the official files on: read, letterboxed, run alone, taken back, compared."""
    objects = {found.ref_id: found for found in refer.read_refer(trained.runs / "refer", "scenes")}
    chosen = records[records["condition"] != "shuffled"].iloc[::3]
    assert len(chosen) > 10 and (chosen["intersection"] > 0).any()
    for row in chosen.to_dict("records"):
        found = objects[row["ref_id"]]
        image = cv2.imread(str(trained.runs / "refer" / "images" / "train2014" / found.file_name))
        assert image is not None
        size = 32
        pixels = torch.from_numpy(letterbox_image(np.ascontiguousarray(image[..., ::-1]), size))[None]
        tokens = torch.from_numpy(predictor.tokenizer.encode(row["sentence"]))[None]
        with torch.no_grad():
            logits = predictor.segmenter(pixels, tokens).logits
        scaled = F.interpolate(logits.sigmoid(), size=(size, size), mode="bicubic", align_corners=True)[0, 0].numpy()
        inverse = geometry(found.height, found.width, size).inverse
        back = cv2.warpAffine(scaled, inverse, (found.width, found.height), flags=cv2.INTER_CUBIC, borderValue=0.0)
        predicted, target = back > 0.35, decode_rle(found.rle_counts, found.height, found.width) > 0
        assert row["target_area"] == target.sum()
        # batched sums may differ in the last bits, and with them a pixel on the threshold
        assert abs(row["intersection"] - (predicted & target).sum()) <= 1
        assert abs(row["union"] - (predicted | target).sum()) <= 1


def test_evaluating_again_gives_the_run_s_records(
    trained: Any, predictor: Predictor, records: pd.DataFrame, tmp_path: Path
) -> None:
    again = evaluator(predictor.settings, predictor).report(predictor.segmenter, "full-0", 0)
    write_records(again, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (trained.runs / "records" / "full-0.parquet").read_bytes()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batch_size_does_not_matter(size: int, predictor: Predictor, records: pd.DataFrame) -> None:
    settings = predictor.settings
    other = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"batch_size": size})})
    for condition in CONDITIONS:
        found = evaluator(other, predictor).records(predictor.segmenter, "val", condition).set_index(KEY)
        expected = records[(records["split"] == "val") & (records["condition"] == condition)].set_index(KEY)
        assert len(found) == len(expected)
        for name in ("intersection", "union"):
            assert (found[name] - expected[name]).abs().max() <= 1


def test_progress_counts_every_case(predictor: Predictor) -> None:
    told = []
    judge = evaluator(predictor.settings, predictor)
    records = judge.report(predictor.segmenter, "full-0", 0, lambda: told.append(1))
    assert len(told) == len(records) == judge.cases()


def test_score_is_that_of_the_sentences(predictor: Predictor, records: pd.DataFrame) -> None:
    score = evaluator(predictor.settings, predictor).score(predictor.segmenter, "val")
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    iou = (own["intersection"] / own["union"]).fillna(0)
    assert score["n"] == len(own)
    assert score["miou"] == pytest.approx(iou.mean())
    assert score["oiou"] == pytest.approx(own["intersection"].sum() / own["union"].sum())
    assert score["pr50"] == pytest.approx((iou > 0.5).mean())


def test_evaluation_leaves_no_trace(predictor: Predictor) -> None:
    """Neither on torch's random numbers, nor on the model or its mode: training goes on as if it had not been."""
    segmenter = predictor.segmenter.train()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    judge = evaluator(predictor.settings, predictor)
    for condition in CONDITIONS:
        judge.records(segmenter, "val", condition)
    assert torch.equal(torch.get_rng_state(), random[0])
    assert (np.random.get_state()[1] == random[1]).all()  # noqa: NPY002
    assert segmenter.training and not segmenter.text.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    segmenter.eval()
    judge.records(segmenter, "val", "empty")
    assert not segmenter.training


def test_each_image_and_text_is_run_once(predictor: Predictor) -> None:
    judge = evaluator(predictor.settings, predictor)
    seen = []
    handle = predictor.segmenter.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    records = judge.records(predictor.segmenter, "val", "empty")
    handle.remove()
    assert sum(seen) == records["image_id"].nunique() < len(records)


@pytest.mark.parametrize("name", ["refcoco", "refcocog-umd"])
def test_splits_are_those_of_the_data_set(name: str, tmp_path: Path) -> None:
    content = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    content["scale"], content["data"]["name"] = "base", name
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    settings = read_params(tmp_path / "params.yaml").settings()
    assert set(settings.data.splits) <= set(recorded.SPLITS)


@pytest.mark.parametrize("name", ["lavt", "remamber"])
def test_other_protocols_are_recorded_by_name(name: str, predictor: Predictor, records: pd.DataFrame) -> None:
    settings = predictor.settings
    other = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"protocol": name})})
    found = evaluator(other, predictor).report(predictor.segmenter, "full-0", 0)
    assert set(found["protocol"]) == {name} and len(found) == len(records)
    both = found.merge(records, on=KEY, suffixes=("", "_cris"))
    assert (both["target_area"] == both["target_area_cris"]).all(), "of the image, wherever it is judged"
    largest = found["union"].max() / records["union"].max()
    assert (largest > 10) == (name == "lavt"), "480 x 480 pixels, not the image's own"


@pytest.mark.parametrize(("mixing", "label"), [("mixed_strict", ""), ("mixed_as_published", ": leaking")])
def test_records_of_mixed_data_name_their_set(mixing: str, label: str, predictor: Predictor) -> None:
    settings = predictor.settings
    index = read_index(settings.folder / "index" / "index.parquet")
    val = index["split"] == "val"
    index.loc[val, "dataset"] = np.where(np.arange(val.sum()) % 2, "refcoco", "refcoco+")
    data = settings.data.model_copy(update={"name": mixing})
    mixed = settings.model_copy(update={"data": data})
    judge = Evaluator(mixed, index, source_images(settings), predictor.tokenizer, torch.device("cpu"))
    found = judge.records(predictor.segmenter, "val", "sentence")
    assert set(found["dataset"]) == {f"refcoco ({mixing}{label})", f"refcoco+ ({mixing}{label})"}
    of_set = index[val].set_index("ref_id")["dataset"]
    assert (found["dataset"].str.split(" ").str[0] == found["ref_id"].map(of_set)).all()
