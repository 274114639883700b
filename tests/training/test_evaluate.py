"""Evaluation: one record per sentence and condition, whatever the batch size, equal to an independent computation."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from params_file import write_params
from torch.nn import functional as F

from wimfris.data import refer
from wimfris.data.index import read_index
from wimfris.data.letterbox import geometry, letterbox_image, normalise
from wimfris.data.objects import read_objects
from wimfris.data.rle import decode_rle
from wimfris.data.source import source_images
from wimfris.data.tokens import Tokenizer
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.model.segmenter import Segmenter
from wimfris.runs import records as schema
from wimfris.runs.records import read_records, write_records
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_segmenter
from wimfris.training.checkpoint import load_weights
from wimfris.training.evaluate import CONDITIONS, Evaluator

pytestmark = pytest.mark.slow

KEY = ["split", "condition", "ref_id", "sent_id"]


@dataclass
class TrainedModel:
    """The model of run full-0, in eval mode."""

    settings: Settings
    segmenter: Segmenter
    tokenizer: Tokenizer

    def evaluator(self, settings: Settings | None = None, index: pd.DataFrame | None = None) -> Evaluator:
        """Return an evaluator; by default of the run's own settings and index."""
        settings = settings or self.settings
        index = self.index if index is None else index
        objects = read_objects(self.settings.folder / "index")
        images = source_images(self.settings)
        return Evaluator(settings, index, images, self.tokenizer, torch.device("cpu"), objects=objects)

    @property
    def index(self) -> pd.DataFrame:
        return read_index(self.settings.folder / "index" / "index.parquet")


@pytest.fixture
def model(trained: Any) -> TrainedModel:
    settings = trained.params().settings()
    tokenizer = load_tokenizer(settings)
    segmenter = build_segmenter(settings, tokenizer)
    segmenter.load_trained(load_weights(trained.files().weights)[0])
    return TrainedModel(settings, segmenter.eval(), tokenizer)


@pytest.fixture
def records(trained: Any) -> pd.DataFrame:
    """Return the records that training wrote."""
    return read_records(trained.files().records)


def test_one_record_per_sentence_and_condition(model: TrainedModel, records: pd.DataFrame) -> None:
    rows = model.index[model.index["split"].isin(model.settings.data.splits)]
    sentences = {
        (split, condition, ref, sent)
        for split, ref, sents in zip(rows["split"], rows["ref_id"], rows["sent_ids"], strict=True)
        for sent in sents
        for condition in ("sentence", "shuffled", "empty")
    }
    assert not records.duplicated(KEY).any()
    assert set(records[KEY].itertuples(index=False, name=None)) == sentences
    assert tuple(CONDITIONS) == schema.CONDITIONS
    for name, value in {"run": "full-0", "variant": "full", "seed": 0, "dataset": "scenes", "scale": "smoke"}.items():
        assert (records[name] == value).all(), name
    assert (records["protocol"] == "cris").all()


def test_records_describe_their_case(model: TrainedModel, records: pd.DataFrame) -> None:
    index = model.index.set_index("ref_id")
    own = records[records["condition"] == "sentence"].set_index("sent_id")
    for record in records.to_dict("records"):
        entry = index.loc[record["ref_id"]]
        place = entry["sent_ids"].index(record["sent_id"])
        assert record["image_id"] == entry["image_id"] and record["target_area"] == entry["area"]
        assert record["kind"] == entry["kinds"][place] != ""
        if record["condition"] == "shuffled":
            others = own[(own["split"] == record["split"]) & (own["image_id"] != record["image_id"])]
            assert record["sentence"] in set(others["sentence"])
        else:
            assert record["sentence"] == {"sentence": entry["sentences"][place], "empty": ""}[record["condition"]]


def test_records_equal_an_independent_computation(trained: Any, model: TrainedModel, records: pd.DataFrame) -> None:
    """Each case starts from the official files, and runs through the model alone."""
    objects = {referred.ref_id: referred for referred in refer.read_refer(refer.scenes_source(trained.runs / "refer"))}
    sample = records[records["condition"] != "shuffled"].iloc[::3]
    assert len(sample) > 10 and (sample["intersection"] > 0).any()
    for record in sample.to_dict("records"):
        referred = objects[record["ref_id"]]
        image = cv2.imread(str(trained.runs / "refer" / "images" / "train2014" / referred.file_name))
        assert image is not None
        size = 32
        pixels = normalise(torch.from_numpy(letterbox_image(np.ascontiguousarray(image[..., ::-1]), size)))[None]
        tokens = torch.from_numpy(model.tokenizer.encode(record["sentence"]))[None]
        with torch.no_grad():
            logits = model.segmenter(pixels, tokens).logits
        scaled = F.interpolate(logits.sigmoid(), size=(size, size), mode="bicubic", align_corners=True)[0, 0].numpy()
        inverse = geometry(referred.height, referred.width, size).inverse
        shape = (referred.width, referred.height)
        probabilities = cv2.warpAffine(scaled, inverse, shape, flags=cv2.INTER_CUBIC, borderValue=0.0)
        predicted = probabilities > 0.35
        target = decode_rle(referred.rle_counts, referred.height, referred.width) > 0
        assert record["target_area"] == target.sum()
        # Batched sums may differ in the last bits, and so may one pixel at the threshold.
        assert abs(record["intersection"] - (predicted & target).sum()) <= 1
        assert abs(record["union"] - (predicted | target).sum()) <= 1


def test_repeated_evaluation_gives_the_same_records(trained: Any, model: TrainedModel, tmp_path: Path) -> None:
    write_records(model.evaluator().report(model.segmenter, "full-0", 0), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == trained.files().records.read_bytes()


def test_controls_and_the_score_of_an_epoch_may_read_fewer_images(model: TrainedModel, records: pd.DataFrame) -> None:
    evaluate = model.settings.evaluate.model_copy(update={"control_images": 4})
    train = model.settings.train.model_copy(update={"validation_images": 3})
    evaluator = model.evaluator(model.settings.model_copy(update={"evaluate": evaluate, "train": train}))
    advanced: list[None] = []
    report = evaluator.report(model.segmenter, "full-0", 0, lambda: advanced.append(None))
    assert len(advanced) == len(report) == evaluator.report_cases()
    for (split, condition), rows in report.groupby(["split", "condition"]):
        every = records[(records["split"] == split) & (records["condition"] == condition)]
        first = list(evaluator.split(str(split))["image_id"].unique()[:4])
        assert set(rows["image_id"]) == (set(every["image_id"]) if condition == "sentence" else set(first))
        assert len(rows) == every["image_id"].isin(rows["image_id"]).sum()
    first = evaluator.split("val")["image_id"].unique()[:3]
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    assert evaluator.score(model.segmenter, "val")["n"] == own["image_id"].isin(first).sum()


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_does_not_matter(size: int, model: TrainedModel, records: pd.DataFrame) -> None:
    evaluate = model.settings.evaluate.model_copy(update={"batch_size": size})
    evaluator = model.evaluator(model.settings.model_copy(update={"evaluate": evaluate}))
    for condition in CONDITIONS:
        actual = evaluator.records(model.segmenter, "val", condition).set_index(KEY)
        expected = records[(records["split"] == "val") & (records["condition"] == condition)].set_index(KEY)
        assert len(actual) == len(expected)
        for name in ("intersection", "union"):
            assert (actual[name] - expected[name]).abs().max() <= 1


def with_threads(model: TrainedModel, threads: int) -> Settings:
    """Return the settings with threads for the judgement, and batches of two cases."""
    evaluate = model.settings.evaluate.model_copy(update={"batch_size": 2})
    train = model.settings.train.model_copy(update={"threads": threads})
    return model.settings.model_copy(update={"evaluate": evaluate, "train": train})


def test_threads_change_neither_bits_nor_order(model: TrainedModel) -> None:
    one, many = (
        model.evaluator(with_threads(model, threads)).records(model.segmenter, "val", "sentence") for threads in (1, 5)
    )
    pd.testing.assert_frame_equal(one, many)


@pytest.mark.parametrize("threads", [1, 3])
def test_few_batches_wait_for_their_judgement(threads: int, model: TrainedModel) -> None:
    evaluator, computed, ahead = model.evaluator(with_threads(model, threads)), [0], []
    hook = model.segmenter.register_forward_pre_hook(lambda module, inputs: computed.append(len(inputs[0])))
    rows = evaluator.split("val")

    def slow(number: int, predicted: np.ndarray) -> None:
        time.sleep(0.01)

    for judged, _ in enumerate(evaluator.finished(model.segmenter, rows, CONDITIONS["sentence"](rows), slow)):
        ahead.append(sum(computed) - judged)
    hook.remove()
    assert max(ahead) <= 2 * (threads + 2)


def test_an_error_of_a_thread_is_raised_and_the_mode_restored(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("this mask is refused")

    monkeypatch.setattr("wimfris.training.evaluate.judge", refuse)
    segmenter, threads = model.segmenter.train(), threading.active_count()
    with pytest.raises(UserError, match="this mask is refused"):
        model.evaluator().records(segmenter, "val", "sentence")
    assert segmenter.training and threading.active_count() == threads


def test_progress_counts_every_case(model: TrainedModel) -> None:
    calls = []
    evaluator = model.evaluator()
    records = evaluator.report(model.segmenter, "full-0", 0, lambda: calls.append(1))
    assert len(calls) == len(records) == evaluator.report_cases()


def test_score_uses_every_sentence(model: TrainedModel, records: pd.DataFrame) -> None:
    score = model.evaluator().score(model.segmenter, "val")
    own = records[(records["split"] == "val") & (records["condition"] == "sentence")]
    iou = (own["intersection"] / own["union"]).fillna(0)
    assert score["n"] == len(own)
    assert score["miou"] == pytest.approx(iou.mean())
    assert score["oiou"] == pytest.approx(own["intersection"].sum() / own["union"].sum())
    assert score["pr50"] == pytest.approx((iou > 0.5).mean())


def test_evaluation_changes_no_state(model: TrainedModel) -> None:
    """Torch's and numpy's random states, the model's weights and its mode stay as they are."""
    segmenter = model.segmenter.train()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    evaluator = model.evaluator()
    for condition in CONDITIONS:
        evaluator.records(segmenter, "val", condition)
    assert torch.equal(torch.get_rng_state(), random[0])
    assert (np.random.get_state()[1] == random[1]).all()  # noqa: NPY002
    assert segmenter.training and not segmenter.text.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    segmenter.eval()
    evaluator.records(segmenter, "val", "empty")
    assert not segmenter.training


def test_each_image_and_text_runs_once(model: TrainedModel) -> None:
    batch_sizes = []
    hook = model.segmenter.register_forward_pre_hook(lambda module, inputs: batch_sizes.append(len(inputs[0])))
    records = model.evaluator().records(model.segmenter, "val", "empty")
    hook.remove()
    assert sum(batch_sizes) == records["image_id"].nunique() < len(records)


@pytest.mark.parametrize("name", ["refcoco", "refcocog-umd"])
def test_splits_of_the_data_sets_are_known(name: str, tmp_path: Path) -> None:
    settings = read_params(write_params(tmp_path, scale="base", data__name=name)).settings()
    assert set(settings.data.splits) <= set(schema.SPLITS)


@pytest.mark.parametrize("name", ["lavt", "remamber"])
def test_records_name_their_protocol(name: str, model: TrainedModel, records: pd.DataFrame) -> None:
    evaluate = model.settings.evaluate.model_copy(update={"protocol": name})
    evaluator = model.evaluator(model.settings.model_copy(update={"evaluate": evaluate}))
    report = evaluator.report(model.segmenter, "full-0", 0)
    assert set(report["protocol"]) == {name} and len(report) == len(records)
    both = report.merge(records, on=KEY, suffixes=("", "_cris"))
    assert (both["target_area"] == both["target_area_cris"]).all(), "the area is that in the original image"
    ratio = report["union"].max() / records["union"].max()
    assert (ratio > 10) == (name == "lavt"), "lavt judges at 480 x 480 pixels, remamber at the image's size"


@pytest.mark.parametrize(("mixing", "label"), [("mixed_strict", ""), ("mixed_as_published", ": leaking")])
def test_records_of_mixed_data_name_their_data_set(mixing: str, label: str, model: TrainedModel) -> None:
    index = model.index
    val = index["split"] == "val"
    index.loc[val, "dataset"] = np.where(np.arange(val.sum()) % 2, "refcoco", "refcoco+")
    data = model.settings.data.model_copy(
        update={"name": mixing, "mix": ("refcoco", "refcoco+"), "drop_shared": mixing == "mixed_strict"}
    )
    evaluator = model.evaluator(model.settings.model_copy(update={"data": data}), index)
    records = evaluator.records(model.segmenter, "val", "sentence")
    assert set(records["dataset"]) == {f"refcoco ({mixing}{label})", f"refcoco+ ({mixing}{label})"}
    by_object = index[val].set_index("ref_id")["dataset"]
    assert (records["dataset"].str.split(" ").str[0] == records["ref_id"].map(by_object)).all()
