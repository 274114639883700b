"""The pretraining task of the built-in vision encoder: predict dense targets from its patch tokens.

For each cell of a patch the targets are shape, colour and size of the thing that covers it, the offset to its centre,
its radius, and how it compares with the rest of the scene; for each pixel, whether a thing covers it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.data.letterbox import CLIP_MEAN, CLIP_STD
from wimfris.data.scenes import draw_scene
from wimfris.data.sentences import COLOURS, SHAPES, SIZES, Thing
from wimfris.encoders.vision import patch_size

CELLS = 2  # cells along a patch's side: finer than a patch, so that a small thing has a cell of its own
BACKGROUND = -1
CLASSES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
VALUES = 9  # numbers in `DenseTargets.values`
EVALUATION_BATCH = 250


@dataclass
class DenseTargets:
    """Targets of n images of G x G cells (G = grid x CELLS) and S x S pixels.

    classes (n, G, G, 3) int8: shape, colour and size of the thing that covers most of the cell, or BACKGROUND.
    values (n, G, G, 9) float32: offset to its centre (2) and its radius, in fractions of the image; its ranks by x, y
    and radius among the things (3); the shares of things with its shape, colour and size (3).
    outline (n, S, S) bool: pixels that a thing covers.
    """

    classes: np.ndarray
    values: np.ndarray
    outline: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "DenseTargets":
        return DenseTargets(self.classes[rows], self.values[rows], self.outline[rows])


def draw_pool(count: int, size: int, grid: int, first: int = 0) -> tuple[np.ndarray, DenseTargets]:
    """Draw `count` scenes of split `pretrain` from number `first` on: squares (n, S, S, 3) uint8 and their targets."""
    g = grid * CELLS
    cell = (np.arange(g) + 0.5) / g
    here = np.stack(np.meshgrid(cell, cell), -1)
    images = np.zeros((count, size, size, 3), np.uint8)
    targets = DenseTargets(
        np.zeros((count, g, g, len(CLASSES)), np.int8),
        np.zeros((count, g, g, VALUES), np.float32),
        np.zeros((count, size, size), bool),
    )
    for k in range(count):
        scene = draw_scene("pretrain", first + k, size)
        images[k], left, top = _centre(scene.image, size)
        attributes = _attributes(scene.things)
        places = np.array([(t.x + left, t.y + top, t.radius) for t in scene.things]) / size
        ranks = places.argsort(0).argsort(0) / (len(places) - 1)
        shares = (attributes[:, None] == attributes[None]).mean(1)
        masks = np.zeros((len(places), size, size), bool)
        masks[:, top : top + scene.masks.shape[1], left : left + scene.masks.shape[2]] = scene.masks
        covered = masks.reshape(len(places), g, size // g, g, size // g).mean((2, 4))
        owner, owned = covered.argmax(0), (covered.max(0) > 0.25)[..., None]
        values = np.concatenate(
            [places[owner][..., :2] - here, places[owner][..., 2:], ranks[owner], shares[owner]], -1
        )
        targets.classes[k] = np.where(owned, attributes[owner], BACKGROUND)
        targets.values[k] = np.where(owned, values, 0)
        targets.outline[k] = masks.any(0)
    return images, targets


def _centre(image: np.ndarray, size: int) -> tuple[np.ndarray, int, int]:
    """Return the image in the middle of a square of the letterbox's border colour, and its left and top there."""
    height, width = image.shape[:2]
    left, top = (size - width) // 2, (size - height) // 2
    square = np.full((size, size, 3), np.round(255 * CLIP_MEAN), np.uint8)
    square[top : top + height, left : left + width] = image
    return square, left, top


def _attributes(things: list[Thing]) -> np.ndarray:
    """Return the class numbers of the things, (n, 3)."""
    return np.array([[names.index(getattr(thing, key)) for key, names in CLASSES.items()] for thing in things])


class DenseHead(nn.Module):
    """Predicts every target from the patch tokens (B, H W, D). Pretraining alone uses it."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.class_counts = tuple(len(names) for names in CLASSES.values())
        self.per_cell = sum(n + 1 for n in self.class_counts) + VALUES
        self.cells = nn.Linear(width, CELLS**2 * self.per_cell)
        self.outline = nn.Linear(width, patch**2)

    def forward(self, tokens: Tensor, grid: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return class logits, values (B, G, G, 9) and outline logits (B, S, S).

        The class logits are three tensors (B, G, G, n + 1), with the background first.
        """
        cells = _unfold(self.cells(tokens), grid, CELLS)
        *classes, values = cells.split([*(n + 1 for n in self.class_counts), VALUES], -1)
        return classes, values, _unfold(self.outline(tokens), grid, math.isqrt(self.outline.out_features))[..., 0]


def _unfold(tokens: Tensor, grid: int, cells: int) -> Tensor:
    """(B, grid * grid, cells * cells * C) -> (B, grid * cells, grid * cells, C)."""
    batch = tokens.shape[0]
    tokens = tokens.reshape(batch, grid, grid, cells, cells, -1).permute(0, 1, 3, 2, 4, 5)
    return tokens.reshape(batch, grid * cells, grid * cells, -1)


def dense_loss(head: DenseHead, tokens: Tensor, targets: DenseTargets, grid: int) -> Tensor:
    """Return the sum of the losses: cross-entropy of the classes, smooth L1 of the values in the cells of things, and
    binary cross-entropy of the outline.
    """
    classes, values, outline = head(tokens, grid)
    labels = torch.from_numpy(targets.classes.astype(np.int64))
    thing = labels[..., 0] != BACKGROUND
    loss = F.binary_cross_entropy_with_logits(outline, torch.from_numpy(targets.outline).float())
    for k, logits in enumerate(classes):
        # Things cover a tenth of the cells, so half of each class loss is over their cells alone.
        loss = loss + 0.5 * F.cross_entropy(logits.flatten(0, 2), labels[..., k].flatten() + 1)
        loss = loss + 0.5 * F.cross_entropy(logits[thing], labels[..., k][thing] + 1)
    return loss + 4 * F.smooth_l1_loss(values[thing], torch.from_numpy(targets.values)[thing], beta=0.1)


@torch.no_grad()
def dense_scores(backbone: Any, head: DenseHead, images: np.ndarray, targets: DenseTargets) -> dict[str, float]:
    """Return the accuracy of the classes and the mean error of the values in the cells of things, and the outline's
    IoU.
    """
    backbone.eval()
    grid = images.shape[1] // patch_size(backbone)
    starts = range(0, len(images), EVALUATION_BATCH)
    parts = [head(patch_tokens(backbone, images[i : i + EVALUATION_BATCH]), grid) for i in starts]
    thing = targets.classes[..., 0] != BACKGROUND
    scores = {}
    for k, name in enumerate(CLASSES):
        predicted = torch.cat([classes[k][..., 1:].argmax(-1) for classes, _, _ in parts]).numpy()
        scores[name] = float((predicted == targets.classes[..., k])[thing].mean())
    error = np.abs(torch.cat([values for _, values, _ in parts]).numpy() - targets.values)[thing].mean(0)
    scores |= {
        "offset error": float(error[:2].mean()),
        "radius error": float(error[2]),
        "rank error": float(error[3:6].mean()),
    }
    outline = torch.cat([outline for _, _, outline in parts]).numpy() > 0
    scores["outline IoU"] = float((outline & targets.outline).sum() / (outline | targets.outline).sum())
    return scores


def patch_tokens(backbone: Any, images: np.ndarray) -> Tensor:
    """Return the patch tokens (n, H W, D) of the final norm for squares (n, S, S, 3) uint8."""
    pixels = torch.from_numpy(((images / np.float32(255) - CLIP_MEAN) / CLIP_STD).astype(np.float32)).permute(
        0, 3, 1, 2
    )
    return backbone(pixel_values=pixels).last_hidden_state[:, 1 + backbone.config.num_register_tokens :]
