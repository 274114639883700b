"""Pretraining of the built-in encoders: the small pair that stands in for CLIP and DINOv2 at scales tiny and small.

Both learn from scenes and sentences of split `pretrain`, whose seeds no other split uses, and neither ever sees a
sentence together with an image. The vision encoder predicts dense targets (`vision_task`), the text encoder the
conditions that a sentence states (`text_task`).
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional as F

from wimfris.data.sentences import to_sentence, vocabulary
from wimfris.data.tokens import WordTokenizer
from wimfris.encoders.load import BUILTIN, load_tokenizer, load_vision, new_text, new_vision, save_builtin
from wimfris.encoders.text_task import SLOTS, random_description, slot_classes
from wimfris.encoders.vision import patch_size
from wimfris.encoders.vision_task import DenseHead, dense_loss, dense_scores, draw_pool, patch_tokens
from wimfris.files import write_text
from wimfris.settings.params import Params
from wimfris.settings.sections import Pretrain, PretrainText

SENTENCE_STD = 0.45  # of the entries of CLIP ViT-B/16's sentence embeddings: norm about 10 over 512 entries
EVALUATION_SCENES, EVALUATION_SENTENCES = 1000, 2000

Progressed = Callable[[int, float], None]  # called with step and loss after each step


def pretrain_builtin(params: Params, section: Pretrain) -> None:
    """Train the built-in encoders of one scale and write them with their card.

    Where `section.text` is None, only the vision encoder is trained, starting from the one of `params.pretrain`.
    """
    settings = params.model_copy(update={"scale": section.scale}).settings()
    torch.set_num_threads(settings.train.threads)
    torch.use_deterministic_algorithms(True)
    rows = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:

        def shared(name: str, task: PretrainText) -> dict[str, Any]:
            bar = progress.add_task(f"{name} encoder", total=task.steps)
            torch.manual_seed(section.seed)
            return {
                "steps": task.steps,
                "batch": task.batch_size,
                "learning_rate": task.learning_rate,
                "seed": section.seed,
                "report": lambda step, loss: progress.update(bar, completed=step),
            }

        if section.text is not None:
            tokenizer = load_tokenizer(settings)
            assert isinstance(tokenizer, WordTokenizer)
            options, started = shared("text", section.text), time.process_time()
            text = new_text(settings, tokenizer)
            scores = pretrain_text(text, tokenizer, **options)
            save_builtin(text, BUILTIN / "text.safetensors", " ".join(vocabulary()))
            rows.append(_card_row("text", section.text, time.process_time() - started, scores))
        options, started = shared("vision", section.vision), time.process_time()
        vision, suffix = new_vision(settings), ""
        if section.text is None:
            from_coarser(vision, load_vision(params.model_copy(update={"scale": params.pretrain.scale}).settings()))
            suffix = f"-{section.scale}"
        size = settings.data.image_size
        scores = pretrain_vision(vision, size=size, scenes_drawn=section.vision.scenes, **options)
        save_builtin(vision, BUILTIN / f"vision{suffix}.safetensors", "")
        rows.append(_card_row("vision", section.vision, time.process_time() - started, scores))
    card = (CARD if section.text else CARD_FINER).format(seed=section.seed, scale=section.scale)
    write_text(BUILTIN / f"CARD{suffix}.md", card + CARD_HEAD + "".join(rows))


def pretrain_vision(
    backbone: Any,
    *,
    size: int,
    scenes_drawn: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    report: Progressed,
) -> dict[str, float]:
    """Train the backbone in place and return its scores on further scenes."""
    grid = size // patch_size(backbone)
    head = DenseHead(backbone.config.hidden_size, patch_size(backbone))
    images, targets = draw_pool(scenes_drawn, size, grid)
    rng = np.random.default_rng(seed)
    backbone.train()

    def batch_loss() -> Tensor:
        rows = rng.integers(scenes_drawn, size=batch)
        return dense_loss(head, patch_tokens(backbone, images[rows]), targets[rows], grid)

    _train([*backbone.parameters(), *head.parameters()], steps, learning_rate, batch_loss, report)
    return dense_scores(backbone, head, *draw_pool(EVALUATION_SCENES, size, grid, first=scenes_drawn))


def pretrain_text(
    backbone: Any,
    tokenizer: WordTokenizer,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    report: Progressed,
) -> dict[str, float]:
    """Train the backbone in place and return the share of further sentences of which every slot is predicted right."""
    counts = [len(values) for values in SLOTS.values()]
    heads = nn.Linear(backbone.text_projection.out_features, sum(counts))

    def sample(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Return token ids (n, L) and slot classes (n, 9) of random sentences."""
        descriptions = [random_description(rng) for _ in range(count)]
        ids = np.stack([tokenizer.encode(to_sentence(d, rng)) for d in descriptions])
        return torch.from_numpy(ids), torch.tensor([slot_classes(d) for d in descriptions])

    def slots(ids: Tensor) -> tuple[Tensor, ...]:
        return heads(backbone(input_ids=ids).text_embeds).split(counts, -1)

    rng = np.random.default_rng([seed, 0])
    backbone.train()

    def batch_loss() -> Tensor:
        ids, classes = sample(rng, batch)
        return torch.stack([F.cross_entropy(logits, classes[:, k]) for k, logits in enumerate(slots(ids))]).sum()

    _train([*backbone.parameters(), *heads.parameters()], steps, learning_rate, batch_loss, report)
    backbone.eval()
    ids, classes = sample(np.random.default_rng([seed, 1]), EVALUATION_SENTENCES)
    with torch.no_grad():
        predicted = torch.stack([logits.argmax(-1) for logits in slots(ids)], 1)
        # The loss does not fix the scale of the embedding. The model on top expects CLIP's.
        backbone.text_projection.weight *= SENTENCE_STD / backbone(input_ids=ids).text_embeds.std()
    return {"sentences read exactly": float((predicted == classes).all(1).float().mean())}


def from_coarser(backbone: Any, coarser: Any) -> None:
    """Copy the weights of a backbone with a coarser grid, in place; its position grid is interpolated."""
    state = coarser.state_dict()
    name = "embeddings.position_embeddings"
    positions, side = state[name], math.isqrt(backbone.embeddings.position_embeddings.shape[1] - 1)
    old = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    state[name] = torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)
    backbone.load_state_dict(state)


def _train(
    parameters: list[nn.Parameter],
    steps: int,
    learning_rate: float,
    batch_loss: Callable[[], Tensor],
    report: Progressed,
) -> None:
    """Run AdamW with a linear warm-up over a twentieth of the steps and a cosine decay to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02)
    warm = max(steps // 20, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(step - warm, 0) / max(steps - warm, 1))),
    )
    for step in range(steps):
        loss = batch_loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        report(step + 1, loss.item())


CARD = """\
# The built-in encoders

A small text and a small vision transformer, in the formats of CLIP and DINOv2 (transformers). They stand in for frozen
foundation models at scale tiny: they know drawn scenes and sentences about them, and nothing else.

- Made by `dvc repro -f pretrain` (`wimfris encoders pretrain`), with the settings under `pretrain` in params.yaml:
  seed {seed}, one thread.
- Data: scenes of split `pretrain`, whose seeds no other split uses, and random sentences of the same grammar. No
  sentence was shown with an image.
- Task of the vision encoder: predict, for each quarter of a patch, shape, colour and size of the thing that covers it,
  the offset to its centre, its radius, its ranks in the scene and the shares of things with its attributes; and for
  each pixel, whether a thing covers it.
- Task of the text encoder: predict, from the end token, every condition that the sentence states.
"""
CARD_FINER = """\
# The built-in vision encoder of scale {scale}

The built-in vision encoder (CARD.md), trained further on a finer grid of patches, with interpolated positions.

- Made by `wimfris encoders pretrain --scale {scale}`, with the settings under `pretrain_{scale}` in params.yaml: seed
  {seed}, one thread.
- Data and task are those of CARD.md. The text encoder is the same.
"""
CARD_HEAD = """
| encoder | settings | CPU minutes | scores on further data |
|---|---|---|---|
"""


def _card_row(name: str, task: PretrainText, seconds: float, scores: dict[str, float]) -> str:
    settings = ", ".join(f"{key} {value:g}" for key, value in task.model_dump().items())
    results = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
    return f"| {name} | {settings} | {seconds / 60:.0f} | {results} |\n"
