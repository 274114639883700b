"""The built-in data set: drawn scenes, named by sentences that pick out exactly one object each.

A scene holds four to seven objects (shape, colour, size) on a grey ground. A sentence states *conditions*: attributes
of the target (size, colour, shape), and at most one of a superlative ("the second largest ...") or a relation to a
landmark ("... left of the small blue cross"). Two rules make the set a fair test:

- the conditions denote exactly the target, and no proper subset of them does, so that every word counts;
- distances and sizes that decide a superlative or a relation differ by a visible margin.

Scenes are written in the official REFER layout, so that the code that reads RefCOCO reads them too. Splits are disjoint
by the seed of the scene: `train` and `val` hold every kind of sentence; `testA` relations only; `testB` large targets
only (they cross windows).
"""

import json
import pickle
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

Conditions = tuple[tuple[str, str], ...]  # sorted (name, value) pairs: what is stated of a thing

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (205, 45, 45),
    "green": (50, 165, 70),
    "blue": (55, 85, 215),
    "yellow": (225, 205, 50),
    "purple": (150, 65, 190),
    "white": (240, 240, 240),
}
SIZES = {"small": (4.0, 5.2), "medium": (6.8, 8.4), "large": (10.8, 13.5)}  # half extent in pixels of a 64 px canvas
SPLITS = {"train": 0, "val": 1, "testA": 2, "testB": 3, "pretrain": 4}  # name -> first word of a scene's seed
SPLITS_WRITTEN = ("train", "val", "testA", "testB")

KINDS = ("attribute", "superlative", "relation")
SUPERLATIVES = {  # word -> (key of an object, sign: +1 wants the largest value)
    "largest": ("radius", +1),
    "smallest": ("radius", -1),
    "leftmost": ("x", -1),
    "rightmost": ("x", +1),
    "topmost": ("y", -1),
    "bottommost": ("y", +1),
}
RELATIONS = {"left": ("x", -1), "right": ("x", +1), "above": ("y", -1), "below": ("y", +1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
MARGIN = {"radius": 1.3, "x": 4.0, "y": 4.0}  # pixels that tell two objects apart
CHANCES = {"colour": 0.5, "shape": 0.6, "size": 0.35}  # how often an attribute is proposed
CANVAS = 64.0  # the canvas, in pixels, that SIZES and MARGIN are given for

WORDING = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "big"),
    "thing": ("thing", "object", "one"),
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "littlest"),
    "leftmost": ("leftmost", "furthest left"),
    "rightmost": ("rightmost", "furthest right"),
    "topmost": ("topmost", "uppermost", "highest"),
    "bottommost": ("bottommost", "lowest"),
    "left": ("left of", "to the left of", "that is left of"),
    "right": ("right of", "to the right of", "that is right of"),
    "above": ("above", "over", "that is above"),
    "below": ("below", "under", "that is below"),
}


def vocabulary() -> list[str]:
    """Every word a sentence of the built-in set may hold, sorted."""
    phrases = [*SHAPES, *COLOURS, "the", "second", *(phrase for synonyms in WORDING.values() for phrase in synonyms)]
    return sorted({word for phrase in phrases for word in phrase.split()})


@dataclass(frozen=True)
class Thing:
    """One object of a scene: attributes, centre (x, y) and half extent (radius) in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Description:
    """The conditions of a sentence."""

    attributes: Conditions
    superlative: str | None = None
    rank: int = 1
    relation: str | None = None
    landmark: Conditions = ()

    @property
    def kind(self) -> str:
        return "superlative" if self.superlative else "relation" if self.relation else "attribute"


Ref = tuple[int, list[tuple[Description, str]]]  # the target's index, and its sentences with what they mean


@dataclass
class Scene:
    """A drawn scene: image (H, W, 3) uint8 RGB, things, their visible masks (n, H, W) bool, refs."""

    image: np.ndarray
    things: list[Thing]
    masks: np.ndarray
    refs: list[Ref]


# --- what a description denotes
# ------------------------------------------------------------------------------------------------------


class World:
    """The things of a scene, indexed so that a description is looked up in a few operations on bit sets (bit i: thing
    i).

    `scale` is the canvas over 64 px, for the margins.
    """

    def __init__(self, things: list[Thing], scale: float = 1.0) -> None:
        self.things = things
        self.everything = (1 << len(things)) - 1
        self.having: dict[tuple[str, str], int] = {}
        for i, thing in enumerate(things):
            for name in ("size", "colour", "shape"):
                condition = (name, getattr(thing, name))
                self.having[condition] = self.having.get(condition, 0) | 1 << i
        self.values = {key: [getattr(thing, key) for thing in things] for key in ("radius", "x", "y")}
        self.ascending = {
            key: sorted(range(len(things)), key=values.__getitem__) for key, values in self.values.items()
        }
        self.margin = {key: pixels * scale for key, pixels in MARGIN.items()}

    def matching(self, attributes: Conditions) -> int:
        """The things that have all these attributes."""
        found = self.everything
        for condition in attributes:
            found &= self.having.get(condition, 0)
        return found

    def denotes(self, description: Description) -> int | None:
        """The things that meet the description; None where a margin is too small to say, or the landmark is not one
        thing.
        """
        found = self.matching(description.attributes)
        if description.superlative:
            return self._ranked(found, description.superlative, description.rank)
        if description.relation:
            return self._related(found, description.relation, self.matching(description.landmark))
        return found

    def _ranked(self, found: int, superlative: str, rank: int) -> int | None:
        key, sign = SUPERLATIVES[superlative]
        values = self.values[key]
        ordered = [i for i in self.ascending[key][::-sign] if found >> i & 1][: rank + 1]
        if len(ordered) < rank:
            return 0
        if any(abs(values[a] - values[b]) < self.margin[key] for a, b in pairwise(ordered)):
            return None
        return 1 << ordered[rank - 1]

    def _related(self, found: int, relation: str, landmarks: int) -> int | None:
        if landmarks.bit_count() != 1:
            return None
        key, sign = RELATIONS[relation]
        values, landmark = self.values[key], landmarks.bit_length() - 1
        beyond = 0
        for i, value in enumerate(values):
            if i != landmark and found >> i & 1:
                offset = sign * (value - values[landmark])
                if abs(offset) < self.margin[key]:
                    return None
                beyond |= (offset > 0) << i
        return beyond

    @cached_property
    def landmarks(self) -> list[tuple[int, Conditions]]:
        """Every (thing, attributes) where the attributes name exactly that thing: what a relation may refer to."""
        named = []
        for i, thing in enumerate(self.things):
            everything = tuple((name, getattr(thing, name)) for name in CHANCES)
            for count in range(1, len(everything) + 1):
                for attributes in combinations(everything, count):
                    if self.names_exactly(Description(attributes), i):
                        named.append((i, attributes))
        return named

    def names_exactly(self, description: Description, target: int) -> bool:
        """True where the description denotes the target alone and none of its proper subsets does (the landmark's
        likewise).
        """
        alone = 1 << target
        if self.denotes(description) != alone:
            return False
        if any(self.denotes(subset) in (alone, None) for subset in proper_subsets(description)):
            return False  # None: too close to call, so that the dropped condition may not be needed
        if description.relation:
            return (self.matching(description.landmark).bit_length() - 1, description.landmark) in self.landmarks
        return True


def proper_subsets(description: Description) -> Iterator[Description]:
    """Every description that states some but not all of the conditions (a superlative's rank and a landmark are parts
    of theirs).
    """
    for keep_predicate in (True, False) if description.kind != "attribute" else (False,):
        for count in range(len(description.attributes) + 1):
            for kept in combinations(description.attributes, count):
                subset = replace(description, attributes=kept) if keep_predicate else Description(kept)
                if subset != description:
                    yield subset


# --- sentences --------------------------------------------------------------------------------------------------------
# ---------------


def _one_of(choices: Collection[str], rng: np.random.Generator) -> str:
    return list(choices)[int(rng.integers(len(choices)))]


def _noun_phrase(attributes: Conditions, rng: np.random.Generator, ordinal: str = "") -> str:
    stated = dict(attributes)
    words = [
        ordinal,
        _worded(stated.get("size"), rng),
        stated.get("colour", ""),
        stated.get("shape") or _worded("thing", rng),
    ]
    return " ".join(word for word in words if word)


def _worded(name: str | None, rng: np.random.Generator) -> str:
    return "" if name is None else _one_of(WORDING[name], rng)


def to_sentence(description: Description, rng: np.random.Generator) -> str:
    """One wording of the description; synonyms and the leading article are drawn from `rng`."""
    ordinal = ""
    if description.superlative:
        ordinal = ("second " if description.rank == 2 else "") + _worded(description.superlative, rng)
    sentence = _noun_phrase(description.attributes, rng, ordinal)
    if description.relation:
        sentence += f" {_worded(description.relation, rng)} the {_noun_phrase(description.landmark, rng)}"
    return ("the " if rng.random() < 0.5 else "") + sentence


def _some_attributes(thing: Thing, rng: np.random.Generator) -> Conditions:
    drawn = rng.random(3)
    return tuple((name, getattr(thing, name)) for name, u in zip(CHANCES, drawn, strict=True) if u < CHANCES[name])


def _propose(world: World, target: int, kind: str, rng: np.random.Generator) -> Description:
    things, attributes = world.things, _some_attributes(world.things[target], rng)
    if kind == "superlative":
        return Description(attributes, superlative=_one_of(SUPERLATIVES, rng), rank=1 + int(rng.random() < 0.25))
    if kind == "relation" and world.landmarks:
        index, landmark = world.landmarks[int(rng.integers(len(world.landmarks)))]
        key, sign = RELATIONS[relation := _one_of(RELATIONS, rng)]
        if sign * (getattr(things[target], key) - getattr(things[index], key)) < 0:
            relation = OPPOSITE[relation]
        return Description(attributes, relation=relation, landmark=landmark)
    return Description(attributes)


def describe(world: World, target: int, kind: str, rng: np.random.Generator, tries: int = 40) -> Description | None:
    """A random description of that kind which names exactly the target, or None if none turned up."""
    for _ in range(tries):
        description = _propose(world, target, kind, rng)
        if description.kind == kind and world.names_exactly(description, target):
            return description
    return None


# --- drawing ----------------------------------------------------------------------------------------------------------
# ---------------


def coverage(thing: Thing, height: int, width: int, samples: int = 3) -> np.ndarray:
    """Share (H, W) of each pixel that the thing's outline covers, by samples x samples points a pixel."""
    x0, x1 = max(int(thing.x - thing.radius) - 1, 0), min(int(thing.x + thing.radius) + 2, width)
    y0, y1 = max(int(thing.y - thing.radius) - 1, 0), min(int(thing.y + thing.radius) + 2, height)
    offsets = (np.arange(samples) + 0.5) / samples
    x = ((np.arange(x0, x1)[:, None] + offsets).reshape(1, -1) - thing.x) / thing.radius
    y = ((np.arange(y0, y1)[:, None] + offsets).reshape(-1, 1) - thing.y) / thing.radius
    if thing.shape == "circle":
        inside = x * x + y * y <= 1
    elif thing.shape == "ring":
        inside = (x * x + y * y <= 1) & (x * x + y * y >= 0.25)
    elif thing.shape == "square":
        inside = np.maximum(np.abs(x), np.abs(y)) <= 0.86
    elif thing.shape == "triangle":
        inside = (y <= 0.8) & (np.abs(x) <= (y + 1) * 0.55)
    else:
        inside = (np.minimum(np.abs(x), np.abs(y)) <= 0.34) & (np.maximum(np.abs(x), np.abs(y)) <= 1)
    share = np.zeros((height, width))
    share[y0:y1, x0:x1] = inside.reshape(y1 - y0, samples, x1 - x0, samples).mean((1, 3))
    return share


def _place(rng: np.random.Generator, width: int, height: int, scale: float) -> list[Thing]:
    """Four to seven things that do not touch, of few shapes and colours, so that one attribute alone seldom names one
    of them.
    """
    shapes = rng.choice(list(SHAPES), 2 + int(rng.random() < 0.4), replace=False).tolist()
    colours = rng.choice(list(COLOURS), 2 + int(rng.random() < 0.5), replace=False).tolist()
    wanted, things = int(rng.integers(4, 8)), list[Thing]()
    sizes = sorted(  # large things first: they need room
        rng.choice(list(SIZES), wanted, p=[0.42, 0.36, 0.22]).tolist(), key=["large", "medium", "small"].index
    )
    for size in sizes:
        for _ in range(40):
            radius = rng.uniform(*SIZES[size]) * scale
            if 2 * radius + 2 > min(width, height):
                continue
            x, y = rng.uniform(radius + 1, width - radius - 1), rng.uniform(radius + 1, height - radius - 1)
            if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 1 for o in things):
                things.append(Thing(_one_of(shapes, rng), _one_of(colours, rng), size, x, y, radius))
                break
    order = rng.permutation(len(things))
    return [things[i] for i in order]


def _paint(rng: np.random.Generator, things: list[Thing], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    slope = rng.uniform(-0.35, 0.35, 2)
    y, x = np.mgrid[0:height, 0:width]
    ground = rng.uniform(70, 150) + slope[0] * (x - width / 2) + slope[1] * (y - height / 2)
    image = np.repeat(ground[..., None], 3, axis=2) + rng.uniform(-8, 8, 3)
    masks = np.zeros((len(things), height, width), bool)
    for i, thing in enumerate(things):
        share = coverage(thing, height, width)
        colour = np.array(COLOURS[thing.colour]) + rng.uniform(-18, 18, 3)
        image = image * (1 - share[..., None]) + colour * share[..., None]
        masks[i] = share >= 0.5
    image += rng.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), masks


def draw_scene(split: str, number: int, size: int = 64) -> Scene:
    """The scene of that split and number: the same on every machine. One side is `size` pixels, the other that or a
    little less.

    Scenes of split `pretrain` come without refs: the encoders learn from them, and never see a sentence with an image.
    """
    rng = np.random.default_rng([SPLITS[split], number])
    scale = size / CANVAS
    while True:
        sides = [size, int(size - 4 * max(round(scale), 1) * rng.integers(0, 3))]
        rng.shuffle(sides)
        things = _place(rng, sides[0], sides[1], scale)
        if len(things) < 4:
            continue
        refs = [] if split == "pretrain" else _refer(rng, things, split, scale)
        if refs or split == "pretrain":
            image, masks = _paint(rng, things, sides[0], sides[1])
            return Scene(image, things, masks, refs)


def _refer(rng: np.random.Generator, things: list[Thing], split: str, scale: float) -> list[Ref]:
    """Up to two referred things a scene, each with two sentences."""
    world, refs = World(things, scale), []
    for target in rng.permutation(len(things)).tolist():
        if split == "testB" and things[target].size != "large":
            continue
        sentences: list[tuple[Description, str]] = []
        for _ in range(2):
            kind = "relation" if split == "testA" else _one_of(KINDS, rng)
            description = describe(world, target, kind, rng)
            if description and description not in [known for known, _ in sentences]:
                sentences.append((description, to_sentence(description, rng)))
        if len(sentences) == 2:
            refs.append((target, sentences))
        if len(refs) == 2:
            break
    return refs


# --- the official layout
# -------------------------------------------------------------------------------------------------------------


CATEGORY_IDS = {shape: i + 1 for i, shape in enumerate(SHAPES)}


def write_scenes(root: Path, counts: dict[str, int], size: int = 64) -> None:
    """Draw `counts[split]` scenes of each split and write them under `root` as REFER lays out its data sets.

    root/scenes/refs(seed).p, root/scenes/instances.json, root/images/train2014/COCO_train2014_%012d.jpg. A sentence has
    one key more than the official ones: `kind`, its kind of description.
    """
    images_dir = root / "images" / "train2014"
    images_dir.mkdir(parents=True, exist_ok=True)
    (root / "scenes").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sentence_id = 0
    for split in SPLITS_WRITTEN:
        for number in range(counts[split]):
            scene = draw_scene(split, number, size)
            image_id = len(images) + 1
            file_name = f"COCO_train2014_{image_id:012d}.jpg"
            height, width = scene.image.shape[:2]
            quality = [
                cv2.IMWRITE_JPEG_QUALITY,
                95,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
            ]
            cv2.imwrite(str(images_dir / file_name), scene.image[..., ::-1], quality)
            images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
            first = len(annotations) + 1
            for thing, mask in zip(scene.things, scene.masks, strict=True):
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[thing.shape],
                        "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                    }
                )
            for target, described in scene.refs:
                sentences = []
                for description, text in described:
                    sentence_id += 1
                    sentences.append(
                        {
                            "sent_id": sentence_id,
                            "sent": text,
                            "raw": text,
                            "tokens": text.split(),
                            "kind": description.kind,
                        }
                    )
                refs.append(
                    {
                        "ref_id": len(refs) + 1,
                        "ann_id": first + target,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[scene.things[target].shape],
                        "file_name": file_name,
                        "split": split,
                        "sent_ids": [s["sent_id"] for s in sentences],
                        "sentences": sentences,
                    }
                )
    categories = [{"id": i, "name": name} for name, i in CATEGORY_IDS.items()]
    (root / "scenes" / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (root / "scenes" / "refs(seed).p").write_bytes(pickle.dumps(refs, protocol=2))
