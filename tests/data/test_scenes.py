"""The built-in data set: its splits, its difficulty, its pictures and its files."""

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wimfris.data.audit import random_object_miou
from wimfris.data.index import build_index
from wimfris.data.letterbox import CLIP_MEAN
from wimfris.data.refer import read_refer, scenes_source
from wimfris.data.rle import decode_rle
from wimfris.data.scenes import RADII, RGB, SPLITS, SPLITS_WRITTEN, Scene, draw_scene, write_scenes

SIDE, PATCH, WINDOW = 64, 8, 4  # scale tiny: pixels, pixels, patches


@pytest.mark.slow
def test_splits_hold_their_kinds_and_sizes(every: list[Any]) -> None:
    kinds = {split: Counter(d.kind for s, _, _, d, _ in every if s == split) for split in SPLITS_WRITTEN}
    assert set(kinds["testA"]) == {"relation"}
    for split in ("train", "val", "testB"):
        assert set(kinds[split]) == {"attribute", "superlative", "relation"}
        assert min(kinds[split].values()) > 0.1 * kinds[split].total()
    sizes = {split: {sc.things[t].size for s, sc, t, _, _ in every if s == split} for split in SPLITS_WRITTEN}
    assert sizes == {split: {"large"} if split == "testB" else {"small", "medium", "large"} for split in sizes}


@pytest.mark.slow
def test_no_image_is_in_two_splits(drawn: dict[str, list[Scene]]) -> None:
    pretrain = [draw_scene("pretrain", k, SIDE) for k in range(50)]
    images = [scene.image.tobytes() for all_scenes in [*drawn.values(), pretrain] for scene in all_scenes]
    assert len(set(images)) == len(images)
    assert len(set(SPLITS.values())) == len(SPLITS), "the splits must have different seeds"


def test_pretraining_scenes_have_no_sentence() -> None:
    assert not any(draw_scene("pretrain", k, SIDE).refs for k in range(20))


@pytest.mark.slow
def test_split_and_number_decide_a_scene(drawn: dict[str, list[Scene]]) -> None:
    for split in SPLITS_WRITTEN:
        again = draw_scene(split, 7, SIDE)
        assert (again.image == drawn[split][7].image).all() and (again.masks == drawn[split][7].masks).all()
        assert again.things == drawn[split][7].things and again.refs == drawn[split][7].refs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, list[Scene]]) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {split: len(scenes) for split, scenes in drawn.items()}, SIDE)
    return folder


@pytest.fixture(scope="module")
def index(root: Path) -> Any:
    index, _, problems = build_index(read_refer(scenes_source(root)), scenes_source(root).images)
    assert not problems
    return index


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS_WRITTEN)
def test_guessing_scores_low(split: str, index: Any) -> None:
    assert 0.15 <= random_object_miou(index[index["split"] == split]) <= 0.25


@pytest.mark.slow
def test_distractors_of_the_same_category_are_frequent(every: list[Any]) -> None:
    same = [sum(o.shape == scene.things[t].shape for o in scene.things) - 1 for _, scene, t, _, _ in every]
    assert np.mean(np.array(same) >= 1) > 0.7
    assert np.mean(np.array(same) >= 2) > 0.4, "several of them are frequent"


@pytest.mark.slow
def test_some_targets_are_small_and_some_cross_several_windows(every: list[Any]) -> None:
    areas, crossed = [], []
    for _, scene, target, _, _ in every:
        mask = scene.masks[target]
        areas.append(mask.sum())
        rows, columns = np.nonzero(mask)
        windows = {(y // (PATCH * WINDOW), x // (PATCH * WINDOW)) for y, x in zip(rows, columns, strict=True)}
        crossed.append(len(windows))
    assert np.mean(np.array(areas) <= PATCH**2) > 0.1
    assert np.mean(np.array(crossed) >= 2) > 0.15
    assert np.mean(np.array(crossed) >= 4) > 0.02


@pytest.mark.slow
def test_things_lie_inside_and_do_not_touch(drawn: dict[str, list[Scene]]) -> None:
    for scene in itertools.chain(*drawn.values()):
        assert 4 <= len(scene.things) <= 7
        assert scene.masks.shape == (len(scene.things), *scene.image.shape[:2])
        assert max(scene.image.shape[:2]) == SIDE and min(scene.image.shape[:2]) >= SIDE - 8
        assert (scene.masks.sum(0) <= 1).all()
        assert (scene.masks.sum((1, 2)) >= 10).all()
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert abs((columns.min() + columns.max() + 1) / 2 - thing.x) < 1.5
            assert rows.min() >= thing.y - thing.radius - 1 and rows.max() <= thing.y + thing.radius


@pytest.mark.slow
def test_things_have_their_colour(drawn: dict[str, list[Scene]]) -> None:
    names, values = list(RGB), np.array(list(RGB.values()))
    right = total = 0
    for scene in drawn["val"]:
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            seen = np.median(scene.image[mask], axis=0)
            right += names[int(np.abs(values - seen).sum(1).argmin())] == thing.colour
            total += 1
    assert right / total > 0.97


def test_sizes_scale_with_the_canvas() -> None:
    for side in (32, 128):
        for k in range(10):
            scene = draw_scene("val", k, side)
            assert max(scene.image.shape[:2]) == side
            for thing in scene.things:
                low, high = RADII[thing.size]
                assert low <= thing.radius * 64 / side <= high


@pytest.mark.slow
def test_the_written_layout_is_read_back(root: Path, drawn: dict[str, list[Scene]]) -> None:
    objects = read_refer(scenes_source(root))
    written = [(split, scene, ref) for split in SPLITS_WRITTEN for scene in drawn[split] for ref in scene.refs]
    assert len(objects) == len(written)
    assert [o.ref_id for o in objects] == list(range(1, len(objects) + 1))
    sent_ids = [sentence.sent_id for o in objects for sentence in o.sentences]
    assert len(set(sent_ids)) == len(sent_ids)
    for referred, (split, scene, (target, sentences)) in zip(objects, written, strict=True):
        assert referred.split == split and referred.category == scene.things[target].shape
        assert (referred.height, referred.width) == scene.image.shape[:2]
        mask = decode_rle(referred.rle_counts, referred.height, referred.width).astype(bool)
        assert (mask == scene.masks[target]).all() and referred.area == mask.sum()
        assert [(s.text, s.kind) for s in referred.sentences] == [(text, d.kind) for d, text in sentences]
        assert len(referred.image_masks) == len(scene.things)
        image = cv2.imread(str(scenes_source(root).images / referred.file_name))
        assert image is not None and image.shape == scene.image.shape
        error = np.abs(image[..., ::-1].astype(int) - scene.image).mean()
        assert error < 4, "the JPEG quality must preserve small things"


@pytest.mark.slow
def test_annotations_have_the_keys_of_coco_s(root: Path) -> None:
    instances = json.loads((root / "scenes" / "instances.json").read_text())
    refs = pickle.loads((root / "scenes" / "refs(seed).p").read_bytes())
    assert {"images", "annotations", "categories"} <= set(instances)
    for annotation in instances["annotations"][:50]:
        assert set(annotation) >= {"id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd"}
    for ref in refs[:50]:
        assert set(ref) >= {
            "ref_id",
            "ann_id",
            "image_id",
            "category_id",
            "file_name",
            "split",
            "sent_ids",
            "sentences",
        }
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert set(ref["sentences"][0]) >= {"sent_id", "sent", "raw", "tokens"}


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    counts = dict.fromkeys(SPLITS_WRITTEN, 3)
    for name in ("a", "b"):
        write_scenes(tmp_path / name, counts, 32)
    first, second = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b")
    )
    assert first == second and len(first) == 3 * len(SPLITS_WRITTEN) + 2


def test_no_thing_has_the_colour_of_the_letterbox_s_border() -> None:
    border = 255 * CLIP_MEAN
    assert min(np.abs(np.array(colour) - border).max() for colour in RGB.values()) > 50
