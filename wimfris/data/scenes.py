"""The built-in data set: drawn scenes, with sentences that name exactly one object each (`wimfris.data.sentences`).

A scene holds four to seven things (shape, colour, size) on a grey ground. Scenes are written in the official REFER
layout, so the code that reads RefCOCO reads them too. The splits are disjoint by the seed of the scene: `train`,
`val` and `tune` hold every kind of sentence, `testA` relations only, `testB` large targets only (they cross windows).
"""

import itertools
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from wimfris.data.sentences import COLOURS, KINDS, SHAPES, SIZES, Description, Thing, World, describe, pick, to_sentence

CANVAS = 64.0  # side of the canvas, in pixels, to which RADII and the margins of sentences refer
RGB = {
    "red": (205, 45, 45),
    "green": (50, 165, 70),
    "blue": (55, 85, 215),
    "yellow": (225, 205, 50),
    "purple": (150, 65, 190),
    "white": (240, 240, 240),
}
RADII = {"small": (4.0, 5.2), "medium": (6.8, 8.4), "large": (10.8, 13.5)}  # range of the half extent, pixels of CANVAS
SPLITS = {
    "train": 0,
    "val": 1,
    "testA": 2,
    "testB": 3,
    "pretrain": 4,
    "tune": 5,
}  # split -> first word of a scene's seed
SPLITS_WRITTEN = ("train", "val", "testA", "testB", "tune")
CATEGORY_IDS = {shape: i + 1 for i, shape in enumerate(SHAPES)}
TRIES = 40  # random places before a thing is left out
SAMPLES = 3  # sample points along a pixel's side, for smooth outlines
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

Ref = tuple[int, list[tuple[Description, str]]]  # index of the target, and its sentences with their descriptions


@dataclass
class Scene:
    """A drawn scene: image (H, W, 3) uint8 RGB, things, their visible masks (n, H, W) bool, references."""

    image: np.ndarray
    things: list[Thing]
    masks: np.ndarray
    refs: list[Ref]


def draw_scene(split: str, number: int, size: int = 64) -> Scene:
    """Draw the scene of this split and number, which is the same on every machine.

    The longer side has `size` pixels, the other side up to an eighth less. Scenes of split `pretrain` have no
    references: the encoders are pretrained on them and never see a sentence with an image.
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


def write_scenes(root: Path, counts: dict[str, int], size: int = 64) -> None:
    """Draw `counts[split]` scenes of each split and write them under `root` in REFER's layout.

    Files: scenes/refs(seed).p, scenes/instances.json, images/train2014/COCO_train2014_%012d.jpg. Sentences have one key
    that the official ones lack: `kind`.
    """
    images_dir = root / "images" / "train2014"
    images_dir.mkdir(parents=True, exist_ok=True)
    (root / "scenes").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sent_ids = itertools.count(1)
    for split in SPLITS_WRITTEN:
        for number in range(counts.get(split, 0)):
            scene = draw_scene(split, number, size)
            image_id = len(images) + 1
            file_name = f"COCO_train2014_{image_id:012d}.jpg"
            height, width = scene.image.shape[:2]
            cv2.imwrite(str(images_dir / file_name), scene.image[..., ::-1], JPEG)
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
                sentences = [
                    {
                        "sent_id": next(sent_ids),
                        "sent": text,
                        "raw": text,
                        "tokens": text.split(),
                        "kind": description.kind,
                    }
                    for description, text in described
                ]
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
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (root / "scenes" / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (root / "scenes" / "refs(seed).p").write_bytes(pickle.dumps(refs, protocol=2))


def _place(rng: np.random.Generator, width: int, height: int, scale: float) -> list[Thing]:
    """Return four to seven things that do not touch (fewer where there is no room for them).

    They have few shapes and colours, so that one attribute alone seldom names one of them.
    """
    shapes = rng.choice(list(SHAPES), 2 + int(rng.random() < 0.4), replace=False).tolist()
    colours = rng.choice(list(COLOURS), 2 + int(rng.random() < 0.5), replace=False).tolist()
    count, things = int(rng.integers(4, 8)), list[Thing]()
    sizes = sorted(  # large things first, because they need room
        rng.choice(list(SIZES), count, p=[0.42, 0.36, 0.22]).tolist(), key=["large", "medium", "small"].index
    )
    for size in sizes:
        for _ in range(TRIES):
            radius = rng.uniform(*RADII[size]) * scale
            if 2 * radius + 2 > min(width, height):
                continue
            x, y = rng.uniform(radius + 1, width - radius - 1), rng.uniform(radius + 1, height - radius - 1)
            if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 1 for o in things):
                things.append(Thing(pick(shapes, rng), pick(colours, rng), size, x, y, radius))
                break
    order = rng.permutation(len(things))
    return [things[i] for i in order]


def _refer(rng: np.random.Generator, things: list[Thing], split: str, scale: float) -> list[Ref]:
    """Return up to two references, each with two sentences."""
    world, refs = World(things, scale), []
    for target in rng.permutation(len(things)).tolist():
        if split == "testB" and things[target].size != "large":
            continue
        sentences: list[tuple[Description, str]] = []
        for _ in range(2):
            kind = "relation" if split == "testA" else pick(KINDS, rng)
            description = describe(world, target, kind, rng)
            if description and description not in [known for known, _ in sentences]:
                sentences.append((description, to_sentence(description, rng)))
        if len(sentences) == 2:
            refs.append((target, sentences))
        if len(refs) == 2:
            break
    return refs


def _paint(rng: np.random.Generator, things: list[Thing], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (H, W, 3) uint8 and the masks (n, H, W) bool of the things."""
    slope = rng.uniform(-0.35, 0.35, 2)
    y, x = np.mgrid[0:height, 0:width]
    ground = rng.uniform(70, 150) + slope[0] * (x - width / 2) + slope[1] * (y - height / 2)
    image = np.repeat(ground[..., None], 3, axis=2) + rng.uniform(-8, 8, 3)
    masks = np.zeros((len(things), height, width), bool)
    for i, thing in enumerate(things):
        share = _coverage(thing, height, width)
        colour = np.array(RGB[thing.colour]) + rng.uniform(-18, 18, 3)
        image = image * (1 - share[..., None]) + colour * share[..., None]
        masks[i] = share >= 0.5
    image += rng.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), masks


def _coverage(thing: Thing, height: int, width: int) -> np.ndarray:
    """Return the share (H, W) of each pixel that the thing covers, by SAMPLES x SAMPLES points a pixel."""
    x0, x1 = max(int(thing.x - thing.radius) - 1, 0), min(int(thing.x + thing.radius) + 2, width)
    y0, y1 = max(int(thing.y - thing.radius) - 1, 0), min(int(thing.y + thing.radius) + 2, height)
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES
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
    share[y0:y1, x0:x1] = inside.reshape(y1 - y0, SAMPLES, x1 - x0, SAMPLES).mean((1, 3))
    return share
