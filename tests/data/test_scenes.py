"""The built-in set is a fair test: every sentence names one object, every word counts, and guessing is hopeless."""

import itertools
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wimfris.checks.audit import random_object_miou
from wimfris.data import refer, scenes
from wimfris.data.index import build_index
from wimfris.data.letterbox import CLIP_MEAN
from wimfris.data.scenes import SPLITS_WRITTEN, Description, Scene, Thing, draw_scene, vocabulary, write_scenes
from wimfris.data.tokens import WordTokenizer

SIDE, PATCH, WINDOW = 64, 8, 4  # of scale tiny: pixels, pixels, patches
COUNTS = {"train": 150, "val": 80, "testA": 80, "testB": 80}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Scene]]:
    return {split: [draw_scene(split, k, SIDE) for k in range(count)] for split, count in COUNTS.items()}


@pytest.fixture(scope="module")
def every(drawn: dict[str, list[Scene]]) -> list[tuple[str, Scene, int, Description, str]]:
    """(split, scene, target, description, sentence) of each sentence."""
    return [
        (split, scene, target, description, text)
        for split, all_scenes in drawn.items()
        for scene in all_scenes
        for target, sentences in scene.refs
        for description, text in sentences
    ]


# --- what sentences mean: read and evaluated anew, word by word -------------------------------------------------------

SHAPES = {"circle", "square", "triangle", "cross", "ring"}
COLOURS = {"red", "green", "blue", "yellow", "purple", "white"}
PHRASES = {  # as people would write the grammar down, longest first
    "medium sized": "size medium",
    "furthest left": "most left",
    "furthest right": "most right",
    "that is left of": "beyond left",
    "to the left of": "beyond left",
    "left of": "beyond left",
    "that is right of": "beyond right",
    "to the right of": "beyond right",
    "right of": "beyond right",
    "that is above": "beyond above",
    "above": "beyond above",
    "over": "beyond above",
    "that is below": "beyond below",
    "below": "beyond below",
    "under": "beyond below",
    **dict.fromkeys(("small", "little", "tiny"), "size small"),
    "medium": "size medium",
    **dict.fromkeys(("large", "big"), "size large"),
    **dict.fromkeys(("thing", "object", "one"), "any thing"),
    **dict.fromkeys(("largest", "biggest"), "most large"),
    **dict.fromkeys(("smallest", "littlest"), "most small"),
    "leftmost": "most left",
    "rightmost": "most right",
    **dict.fromkeys(("topmost", "uppermost", "highest"), "most above"),
    **dict.fromkeys(("bottommost", "lowest"), "most below"),
    "second": "rank 2",
    **{shape: f"shape {shape}" for shape in SHAPES},
    **{colour: f"colour {colour}" for colour in COLOURS},
}
AXES = {
    "left": ("x", -1),
    "right": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
    "large": ("radius", 1),
    "small": ("radius", -1),
}
Meaning = list[tuple[str, str]]


def read(sentence: str) -> tuple[Meaning, Meaning | None]:
    """The conditions that a sentence states: of the thing it names, and of its landmark if it has one."""
    parts: list[Meaning] = [[]]
    words = sentence.split()
    while words:
        for length in (4, 3, 2, 1):
            phrase = " ".join(words[:length])
            if len(words) >= length and phrase in PHRASES:
                kind, value = PHRASES[phrase].split()
                parts[-1].append((kind, value))
                if kind == "beyond":
                    parts.append([])
                words = words[length:]
                break
        else:
            assert words[0] == "the", f"{sentence}: {words[0]}"
            words = words[1:]
    assert len(parts) <= 2
    return parts[0], parts[1] if len(parts) == 2 else None


def having(things: list[Thing], meaning: Meaning) -> list[Thing]:
    stated = [(kind, value) for kind, value in meaning if kind in ("size", "colour", "shape")]
    return [thing for thing in things if all(getattr(thing, kind) == value for kind, value in stated)]


def denoted(things: list[Thing], meaning: Meaning, landmark: Meaning | None) -> list[Thing]:
    """Every thing the conditions are true of."""
    found, stated = having(things, meaning), dict(meaning)
    if "most" in stated:
        key, sign = AXES[stated["most"]]
        ordered = sorted(found, key=lambda thing: -sign * getattr(thing, key))
        rank = int(stated.get("rank", 1))
        return ordered[rank - 1 : rank]
    if "beyond" in stated:
        assert landmark is not None
        marks = having(things, landmark)
        assert len(marks) == 1, "the landmark is one thing"
        key, sign = AXES[stated["beyond"]]
        return [t for t in found if t is not marks[0] and sign * (getattr(t, key) - getattr(marks[0], key)) > 0]
    return found


def weaker(meaning: Meaning) -> list[Meaning]:
    """Every proper subset of the conditions; a rank goes with its superlative."""
    units = [part for part in meaning if part[0] not in ("rank", "any")]
    rank = [part for part in meaning if part[0] == "rank"]
    subsets = []
    for count in range(len(units)):
        for kept in itertools.combinations(units, count):
            subsets.append([*kept, *(rank if any(kind == "most" for kind, _ in kept) else [])])
    return subsets


def test_sentence_names_its_target_and_no_part_of_it_does(every: list[Any]) -> None:
    assert len(every) > 1000
    for split, scene, target, _, sentence in every:
        meaning, landmark = read(sentence)
        where = f"{split}: {sentence!r}"
        assert denoted(scene.things, meaning, landmark) == [scene.things[target]], where
        for part in weaker(meaning):
            kept = landmark if any(kind == "beyond" for kind, _ in part) else None
            assert denoted(scene.things, part, kept) != [scene.things[target]], f"{where}: {part} would do"
        if landmark is not None:
            mark = having(scene.things, landmark)
            for part in weaker(landmark):
                assert having(scene.things, part) != mark, f"{where}: landmark {part} would do"


def test_sentence_says_what_its_description_means(every: list[Any]) -> None:
    for _, _, _, description, sentence in every:
        meaning, landmark = read(sentence)
        stated = dict(meaning)
        assert {k: v for k, v in stated.items() if k in ("size", "colour", "shape")} == dict(description.attributes)
        assert (stated.get("beyond"), int(stated.get("rank", 1))) == (description.relation, description.rank)
        assert dict(part for part in landmark or [] if part[0] != "any") == dict(description.landmark)
        kinds = {"most": "superlative", "beyond": "relation"}
        assert description.kind == next((kinds[kind] for kind, _ in meaning if kind in kinds), "attribute")


def test_what_decides_is_visible(every: list[Any]) -> None:
    """A superlative's first and second differ by a margin; so do the things of a relation and its landmark."""
    for _, scene, target, _, sentence in every:
        meaning, landmark = read(sentence)
        stated, thing = dict(meaning), scene.things[target]
        others = [other for other in having(scene.things, meaning) if other is not thing]
        if "most" in stated:
            key, _ = AXES[stated["most"]]
            margin = min(abs(getattr(thing, key) - getattr(other, key)) for other in others)
            assert margin >= scenes.MARGIN[key], sentence
        if "beyond" in stated and landmark is not None:
            key, _ = AXES[stated["beyond"]]
            (mark,) = having(scene.things, landmark)
            for other in [thing, *others]:
                if other is not mark:
                    assert abs(getattr(other, key) - getattr(mark, key)) >= scenes.MARGIN[key], sentence


def test_size_words_are_apart() -> None:
    for (_, most), (least, _) in itertools.pairwise(scenes.SIZES.values()):
        assert least - most > 1


def test_description_that_another_thing_meets_is_refused() -> None:
    red = [Thing("circle", "red", "small", x, 20.0, 4.5) for x in (10.0, 30.0)]
    blue = Thing("circle", "blue", "small", 50.0, 20.0, 4.5)
    world = scenes.World([*red, blue])
    assert world.names_exactly(Description((("colour", "blue"),)), 2)
    assert not world.names_exactly(Description((("colour", "red"),)), 0)
    assert not world.names_exactly(Description((("colour", "blue"), ("shape", "circle"))), 2), "the shape is idle"
    assert not world.names_exactly(Description((), superlative="topmost"), 0), "too close to call"
    left_of_blue = Description((), relation="left", landmark=(("colour", "blue"),))
    assert not world.names_exactly(left_of_blue, 0), "both red ones are"
    assert world.names_exactly(Description((), superlative="leftmost", rank=2), 1)
    assert world.names_exactly(Description((), superlative="leftmost"), 0)
    assert not world.names_exactly(Description((("colour", "red"),), superlative="leftmost"), 0), "the colour is idle"


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_hold_what_they_say(every: list[Any]) -> None:
    kinds = {split: Counter(d.kind for s, _, _, d, _ in every if s == split) for split in SPLITS_WRITTEN}
    assert set(kinds["testA"]) == {"relation"}
    for split in ("train", "val", "testB"):
        assert set(kinds[split]) == {"attribute", "superlative", "relation"}
        assert min(kinds[split].values()) > 0.1 * kinds[split].total()
    sizes = {split: {sc.things[t].size for s, sc, t, _, _ in every if s == split} for split in SPLITS_WRITTEN}
    assert sizes == {split: {"large"} if split == "testB" else {"small", "medium", "large"} for split in sizes}


def test_no_image_is_in_two_splits(drawn: dict[str, list[Scene]]) -> None:
    pretrain = [draw_scene("pretrain", k, SIDE) for k in range(50)]
    images = [scene.image.tobytes() for all_scenes in [*drawn.values(), pretrain] for scene in all_scenes]
    assert len(set(images)) == len(images)
    assert len(set(scenes.SPLITS.values())) == len(scenes.SPLITS), "the splits' seeds"


def test_pretraining_scenes_have_no_sentence() -> None:
    assert not any(draw_scene("pretrain", k, SIDE).refs for k in range(20))


def test_a_scene_is_decided_by_its_split_and_number(drawn: dict[str, list[Scene]]) -> None:
    for split in SPLITS_WRITTEN:
        again = draw_scene(split, 7, SIDE)
        assert (again.image == drawn[split][7].image).all() and (again.masks == drawn[split][7].masks).all()
        assert again.things == drawn[split][7].things and again.refs == drawn[split][7].refs


def test_vocabulary_is_that_of_the_sentences(every: list[Any]) -> None:
    words = {word for *_, text in every for word in text.split()}
    assert words == set(vocabulary()), "and every word of it occurs"
    tokenizer = WordTokenizer(vocabulary(), 16)
    longest = max((text for *_, text in every), key=lambda text: len(text.split()))
    assert (tokenizer.encode(longest) == tokenizer.eot_id).sum() == 1
    assert len(longest.split()) + 2 <= 16, "no sentence is cut at the tokens of scale tiny"


def test_longest_possible_sentence_is_not_cut() -> None:
    phrase = Description(
        (("colour", "yellow"), ("shape", "triangle"), ("size", "medium")),
        relation="left",
        landmark=(("colour", "purple"), ("shape", "triangle"), ("size", "medium")),
    )
    lengths = {len(scenes.to_sentence(phrase, np.random.default_rng(seed)).split()) for seed in range(300)}
    assert max(lengths) + 2 <= 16


# --- how hard it is ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNTS, SIDE)
    return folder


@pytest.fixture(scope="module")
def index(root: Path) -> Any:
    found, _, problems = build_index(refer.read_refer(root, "scenes"), refer.images_folder(root))
    assert not problems
    return found


@pytest.mark.parametrize("split", SPLITS_WRITTEN)
def test_guessing_stays_hopeless(split: str, index: Any) -> None:
    assert 0.15 <= random_object_miou(index[index["split"] == split]) <= 0.25


def test_distractors_of_the_same_category_are_frequent(every: list[Any]) -> None:
    same = [sum(o.shape == scene.things[t].shape for o in scene.things) - 1 for _, scene, t, _, _ in every]
    assert np.mean(np.array(same) >= 1) > 0.7
    assert np.mean(np.array(same) >= 2) > 0.4, "several, often"


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


def test_things_have_their_colour(drawn: dict[str, list[Scene]]) -> None:
    names, values = list(scenes.COLOURS), np.array(list(scenes.COLOURS.values()))
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
                low, high = scenes.SIZES[thing.size]
                assert low <= thing.radius * 64 / side <= high


# --- the official layout ----------------------------------------------------------------------------------------------


def test_written_layout_is_read_back(root: Path, drawn: dict[str, list[Scene]]) -> None:
    objects = refer.read_refer(root, "scenes")
    written = [(split, scene, ref) for split in SPLITS_WRITTEN for scene in drawn[split] for ref in scene.refs]
    assert len(objects) == len(written)
    assert [o.ref_id for o in objects] == list(range(1, len(objects) + 1))
    sent_ids = [sentence.sent_id for o in objects for sentence in o.sentences]
    assert len(set(sent_ids)) == len(sent_ids)
    for found, (split, scene, (target, sentences)) in zip(objects, written, strict=True):
        assert found.split == split and found.category == scene.things[target].shape
        assert (found.height, found.width) == scene.image.shape[:2]
        mask = refer.decode_rle(found.rle_counts, found.height, found.width).astype(bool)
        assert (mask == scene.masks[target]).all() and found.area == mask.sum()
        assert [(s.text, s.kind) for s in found.sentences] == [(text, d.kind) for d, text in sentences]
        assert len(found.image_masks) == len(scene.things)
        image = cv2.imread(str(refer.images_folder(root) / found.file_name))
        assert image is not None and image.shape == scene.image.shape
        error = np.abs(image[..., ::-1].astype(int) - scene.image).mean()
        assert error < 4, "a JPEG of a quality that keeps small things"


def test_every_annotation_has_what_coco_s_have(root: Path) -> None:
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
    assert first == second and len(first) == 14


def test_the_letterbox_s_border_is_no_thing_s_colour() -> None:
    border = 255 * CLIP_MEAN
    assert min(np.abs(np.array(colour) - border).max() for colour in scenes.COLOURS.values()) > 50
