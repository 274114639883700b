"""Pretraining of the built-in encoders: the small pair that plays the part of CLIP and DINOv2 at scale tiny.

Both learn from drawn scenes of seeds that no other split uses, and neither ever sees a sentence together with an image.
The vision encoder reads off each cell of a patch what covers it: shape, colour, size, the way to its centre, its
outline, and how it compares with the rest of the scene. The text encoder reads off a sentence's end token which
conditions the sentence states.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from wimfris.data import scenes
from wimfris.data.letterbox import CLIP_MEAN, CLIP_STD
from wimfris.data.tokens import WordTokenizer
from wimfris.encoders.load import BUILTIN, load_tokenizer, load_vision, new_text, new_vision, save_builtin
from wimfris.encoders.vision import patch_size
from wimfris.files import write_text
from wimfris.settings.params import Params
from wimfris.settings.schema import Pretrain, PretrainText

CELLS = 2  # cells along a patch's side: finer than a patch, so that a small thing has one of its own
BACKGROUND = -1
SENTENCE_STD = 0.45  # of the entries of CLIP ViT-B/16's sentence embeddings: norm about 10 over 512 entries

Report = Callable[[int, float], None]  # step, loss


@dataclass
class DenseTargets:
    """What the vision encoder has to read off, for n images of G x G cells (G = grid x CELLS) and S x S pixels.

    classes (n, G, G, 3) int8: shape, colour and size of the thing that covers most of the cell, -1 on the ground;
    values (n, G, G, 9) float32: offset to its centre (2) and its radius in fractions of the image, its ranks by x, y
    and radius among the things (3), and the shares of things of its shape, colour and size (3); outline (n, S, S) bool:
    pixels covered by any thing.
    """

    classes: np.ndarray
    values: np.ndarray
    outline: np.ndarray


def _attributes(things: list[scenes.Thing]) -> np.ndarray:
    shapes, colours, sizes = list(scenes.SHAPES), list(scenes.COLOURS), list(scenes.SIZES)
    return np.array([(shapes.index(t.shape), colours.index(t.colour), sizes.index(t.size)) for t in things])


def _centred(image: np.ndarray, size: int) -> tuple[np.ndarray, int, int]:
    """The image in the middle of a square of the letterbox's border colour; and its left and top there."""
    height, width = image.shape[:2]
    left, top = (size - width) // 2, (size - height) // 2
    square = np.full((size, size, 3), np.round(255 * CLIP_MEAN), np.uint8)
    square[top : top + height, left : left + width] = image
    return square, left, top


def draw_pool(count: int, size: int, grid: int, first: int = 0) -> tuple[np.ndarray, DenseTargets]:
    """Scenes `first` .. `first + count` of the pretraining split: squares (n, S, S, 3) uint8 and their targets."""
    g = grid * CELLS
    cell = (np.arange(g) + 0.5) / g
    here = np.stack(np.meshgrid(cell, cell), -1)
    images = np.zeros((count, size, size, 3), np.uint8)
    targets = DenseTargets(
        np.zeros((count, g, g, 3), np.int8), np.zeros((count, g, g, 9), np.float32), np.zeros((count, size, size), bool)
    )
    for k in range(count):
        scene = scenes.draw_scene("pretrain", first + k, size)
        images[k], left, top = _centred(scene.image, size)
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


class DenseHead(nn.Module):
    """Reads every target off the patch tokens (B, H W, D); used in pretraining alone."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.class_counts = (len(scenes.SHAPES), len(scenes.COLOURS), len(scenes.SIZES))
        self.per_cell = sum(n + 1 for n in self.class_counts) + 9
        self.cells = nn.Linear(width, CELLS**2 * self.per_cell)
        self.outline = nn.Linear(width, patch**2)

    def forward(self, tokens: Tensor, grid: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """-> class logits, three of (B, G, G, n + 1) with the ground first; values (B, G, G, 9); outline logits (B, S,
        S).
        """
        cells = _unfold(self.cells(tokens), grid, CELLS)
        *classes, values = cells.split([*(n + 1 for n in self.class_counts), 9], -1)
        return classes, values, _unfold(self.outline(tokens), grid, math.isqrt(self.outline.out_features))[..., 0]


def _unfold(tokens: Tensor, grid: int, cells: int) -> Tensor:
    """(B, grid * grid, cells * cells * C) -> (B, grid * cells, grid * cells, C)."""
    batch = tokens.shape[0]
    tokens = tokens.reshape(batch, grid, grid, cells, cells, -1).permute(0, 1, 3, 2, 4, 5)
    return tokens.reshape(batch, grid * cells, grid * cells, -1)


def dense_loss(head: DenseHead, tokens: Tensor, targets: DenseTargets, grid: int) -> Tensor:
    """Cross-entropy of the classes, smooth L1 of the values where there is a thing, binary cross-entropy of the
    outline.
    """
    classes, values, outline = head(tokens, grid)
    wanted = torch.from_numpy(targets.classes.astype(np.int64))
    thing = wanted[..., 0] != BACKGROUND
    loss = F.binary_cross_entropy_with_logits(outline, torch.from_numpy(targets.outline).float())
    for k, logits in enumerate(classes):
        # things cover a tenth of the cells: half of each class loss comes from them
        loss = loss + 0.5 * F.cross_entropy(logits.flatten(0, 2), wanted[..., k].flatten() + 1)
        loss = loss + 0.5 * F.cross_entropy(logits[thing], wanted[..., k][thing] + 1)
    return loss + 4 * F.smooth_l1_loss(values[thing], torch.from_numpy(targets.values)[thing], beta=0.1)


@torch.no_grad()
def dense_accuracy(
    backbone: Dinov2WithRegistersModel, head: DenseHead, images: np.ndarray, targets: DenseTargets
) -> dict[str, float]:
    """Shares of the things' cells whose shape, colour and size are read right, the mean errors of the values, and the
    IoU of the outline.
    """
    backbone.eval()
    grid = images.shape[1] // patch_size(backbone)
    parts = [head(_patches(backbone, images[i : i + 250]), grid) for i in range(0, len(images), 250)]
    thing = targets.classes[..., 0] != BACKGROUND
    scores = {}
    for k, name in enumerate(("shape", "colour", "size")):
        read = torch.cat([classes[k][..., 1:].argmax(-1) for classes, _, _ in parts]).numpy()
        scores[name] = float((read == targets.classes[..., k])[thing].mean())
    error = np.abs(torch.cat([values for _, values, _ in parts]).numpy() - targets.values)[thing].mean(0)
    scores |= {
        "offset error": float(error[:2].mean()),
        "radius error": float(error[2]),
        "rank error": float(error[3:6].mean()),
    }
    outline = torch.cat([outline for _, _, outline in parts]).numpy() > 0
    scores["outline IoU"] = float((outline & targets.outline).sum() / (outline | targets.outline).sum())
    return scores


def _patches(backbone: Dinov2WithRegistersModel, images: np.ndarray) -> Tensor:
    """Squares (n, S, S, 3) uint8 -> the patch tokens (n, H W, D) of the final norm."""
    pixels = torch.from_numpy(((images / np.float32(255) - CLIP_MEAN) / CLIP_STD).astype(np.float32)).permute(
        0, 3, 1, 2
    )
    return backbone(pixel_values=pixels).last_hidden_state[:, 1 + backbone.config.num_register_tokens :]


def _train(
    parameters: list[nn.Parameter], steps: int, learning_rate: float, loss_of: Callable[[int], Tensor], report: Report
) -> None:
    """AdamW with a warm-up of a twentieth of the steps and a cosine to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02)
    warm = max(steps // 20, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))),
    )
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        report(step + 1, loss.item())


def pretrain_vision(
    backbone: Dinov2WithRegistersModel,
    *,
    size: int,
    scenes_drawn: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    report: Report,
) -> dict[str, float]:
    """Train the backbone in place; returns its accuracy on scenes it has not seen."""
    grid = size // patch_size(backbone)
    head = DenseHead(backbone.config.hidden_size, patch_size(backbone))
    images, targets = draw_pool(scenes_drawn, size, grid)
    rng = np.random.default_rng(seed)
    backbone.train()

    def loss_of(step: int) -> Tensor:
        chosen = rng.integers(scenes_drawn, size=batch)
        part = DenseTargets(targets.classes[chosen], targets.values[chosen], targets.outline[chosen])
        return dense_loss(head, _patches(backbone, images[chosen]), part, grid)

    _train([*backbone.parameters(), *head.parameters()], steps, learning_rate, loss_of, report)
    return dense_accuracy(backbone, head, *draw_pool(1000, size, grid, first=scenes_drawn))


PROGRAM = {  # what the text encoder reads off a sentence: slot -> its values, None first
    "size": (None, *scenes.SIZES),
    "colour": (None, *scenes.COLOURS),
    "shape": (None, *scenes.SHAPES),
    "superlative": (None, *scenes.SUPERLATIVES),
    "rank": (1, 2),
    "relation": (None, *scenes.RELATIONS),
    "landmark size": (None, *scenes.SIZES),
    "landmark colour": (None, *scenes.COLOURS),
    "landmark shape": (None, *scenes.SHAPES),
}


def program(description: scenes.Description) -> list[int]:
    """The description as one class number a slot of PROGRAM."""
    stated: dict[str, object] = dict(description.attributes)
    stated |= {f"landmark {name}": value for name, value in description.landmark}
    stated |= {"superlative": description.superlative, "rank": description.rank, "relation": description.relation}
    return [values.index(stated.get(slot)) for slot, values in PROGRAM.items()]


def _any_description(rng: np.random.Generator) -> scenes.Description:
    """Any description the grammar allows, whether or not a scene has such a thing."""

    def some() -> scenes.Conditions:
        choices = {"colour": list(scenes.COLOURS), "shape": list(scenes.SHAPES), "size": list(scenes.SIZES)}
        return tuple((name, str(rng.choice(values))) for name, values in choices.items() if rng.random() < 0.5)

    kind = rng.choice(scenes.KINDS)
    if kind == "superlative":
        return scenes.Description(
            some(), superlative=str(rng.choice(list(scenes.SUPERLATIVES))), rank=int(rng.integers(1, 3))
        )
    if kind == "relation":
        return scenes.Description(some(), relation=str(rng.choice(list(scenes.RELATIONS))), landmark=some())
    return scenes.Description(some())


def pretrain_text(
    backbone: CLIPTextModelWithProjection,
    tokenizer: WordTokenizer,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    report: Report,
) -> dict[str, float]:
    """Train the backbone in place; returns the share of new sentences of which every slot is read right."""
    heads = nn.Linear(backbone.text_projection.out_features, sum(len(values) for values in PROGRAM.values()))
    counts = [len(values) for values in PROGRAM.values()]

    def sample(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        described = [_any_description(rng) for _ in range(count)]
        ids = np.stack([tokenizer.encode(scenes.to_sentence(d, rng)) for d in described])
        return torch.from_numpy(ids), torch.tensor([program(d) for d in described])

    def slots(ids: Tensor) -> tuple[Tensor, ...]:
        return heads(backbone(input_ids=ids).text_embeds).split(counts, -1)

    rng = np.random.default_rng([seed, 0])
    backbone.train()

    def loss_of(step: int) -> Tensor:
        ids, wanted = sample(rng, batch)
        return torch.stack([F.cross_entropy(logits, wanted[:, k]) for k, logits in enumerate(slots(ids))]).sum()

    _train([*backbone.parameters(), *heads.parameters()], steps, learning_rate, loss_of, report)
    backbone.eval()
    ids, wanted = sample(np.random.default_rng([seed, 1]), 2000)
    with torch.no_grad():
        read = torch.stack([logits.argmax(-1) for logits in slots(ids)], 1)
        # the loss leaves the scale of the embedding open, and what is trained on top expects CLIP's
        backbone.text_projection.weight *= SENTENCE_STD / backbone(input_ids=ids).text_embeds.std()
    return {"sentences read exactly": float((read == wanted).all(1).float().mean())}


def from_coarser(backbone: Dinov2WithRegistersModel, coarser: Dinov2WithRegistersModel) -> None:
    """Start a backbone from one of the same sizes on a coarser grid, in place: its position grid is interpolated."""
    state = coarser.state_dict()
    name = "embeddings.position_embeddings"
    positions, side = state[name], math.isqrt(backbone.embeddings.position_embeddings.shape[1] - 1)
    old = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    state[name] = torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)
    backbone.load_state_dict(state)


def pretrain_builtin(params: Params, chosen: Pretrain) -> None:
    """Train the built-in encoders of one scale and write them with their card: both afresh, or where `chosen.text` is
    None the vision encoder alone, starting from the built-in one of `params.pretrain`.
    """
    settings = params.model_copy(update={"scale": chosen.scale}).settings()
    torch.set_num_threads(settings.train.threads)
    torch.use_deterministic_algorithms(True)
    told = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:

        def shared(name: str, section: PretrainText) -> dict[str, Any]:
            bar = progress.add_task(f"{name} encoder", total=section.steps)
            torch.manual_seed(chosen.seed)
            return {
                "steps": section.steps,
                "batch": section.batch_size,
                "learning_rate": section.learning_rate,
                "seed": chosen.seed,
                "report": lambda step, loss: progress.update(bar, completed=step),
            }

        if chosen.text is not None:
            tokenizer = load_tokenizer(settings)
            assert isinstance(tokenizer, WordTokenizer)
            options, started = shared("text", chosen.text), time.process_time()
            text = new_text(settings, tokenizer)
            scores = pretrain_text(text, tokenizer, **options)
            save_builtin(text, "text", " ".join(scenes.vocabulary()))
            told.append(("text", chosen.text, scores, (time.process_time() - started) / 60))
        options, started = shared("vision", chosen.vision), time.process_time()
        vision, suffix = new_vision(settings), ""
        if chosen.text is None:
            from_coarser(vision, load_vision(params.model_copy(update={"scale": params.pretrain.scale}).settings()))
            suffix = f"-{chosen.scale}"
        size = settings.data.image_size
        scores = pretrain_vision(vision, size=size, scenes_drawn=chosen.vision.scenes, **options)
        save_builtin(vision, f"vision{suffix}", "")
        told.append(("vision", chosen.vision, scores, (time.process_time() - started) / 60))
    write_text(BUILTIN / f"CARD{suffix}.md", _card(chosen, told))


CARD = """\
# The built-in encoders

A small text and a small vision transformer, in the formats of CLIP's and DINOv2's (transformers). They play the part
of frozen foundation models at scale tiny: they know drawn scenes and sentences about them, and nothing else.

- Made by `dvc repro -f pretrain` (`wimfris encoders pretrain`), with the settings under `pretrain` in params.yaml:
  seed {seed}, one thread.
- Data: scenes of split `pretrain`, whose seeds no other split uses, and sentences of the grammar alone. No sentence
  was ever shown with an image.
- Task of the vision encoder: each quarter of a patch tells shape, colour and size of the thing that covers it, the way
  to its centre, its radius, its ranks in the scene and how many share its attributes; each patch tells its outline.
- Task of the text encoder: the end token tells every condition that the sentence states.
"""
CARD_FINER = """\
# The built-in vision encoder of scale {scale}

The built-in vision encoder (CARD.md), trained further on a finer grid of patches: its positions were interpolated.

- Made by `wimfris encoders pretrain --scale {scale}`, with the settings under `pretrain_{scale}` in params.yaml: seed
  {seed}, one thread.
- Data and task are those of CARD.md. The text encoder is the same.
"""
CARD_HEAD = """
| encoder | settings | CPU minutes | on what it had not seen |
|---|---|---|---|
"""


def _card(chosen: Pretrain, told: list[tuple[str, PretrainText, dict[str, float], float]]) -> str:
    card = (CARD if chosen.text else CARD_FINER).format(seed=chosen.seed, scale=chosen.scale) + CARD_HEAD
    for name, section, scores, minutes in told:
        settings = ", ".join(f"{key} {value:g}" for key, value in section.model_dump().items())
        read = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
        card += f"| {name} | {settings} | {minutes:.0f} | {read} |\n"
    return card
