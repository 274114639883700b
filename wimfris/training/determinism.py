"""Make torch compute the same bits every time."""

import os
import sys

import torch

from wimfris.errors import UserError
from wimfris.settings.backbones import VISION
from wimfris.settings.schema import Settings

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # `wimfris/__init__.py` sets it before CUDA starts
DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")  # the values with which torch accepts cuBLAS as deterministic


def be_deterministic(settings: Settings) -> None:
    """Switch deterministic algorithms on, and use as many CPU threads as the settings say.

    Raises UserError where the environment makes cuBLAS non-deterministic on CUDA.
    """
    train = settings.train
    torch.set_num_threads(train.threads)  # their number changes the order of sums, and so the last bits
    if train.device == "cuda" and os.environ.get(CUBLAS) not in DETERMINISTIC_CUBLAS:
        raise UserError(
            f"{CUBLAS} must be {' or '.join(DETERMINISTIC_CUBLAS)}, got '{os.environ.get(CUBLAS, '')}'; unset it"
        )
    operator = operator_without_kernel(settings)
    if operator:
        print(
            f"{settings.variant}: {operator} has no deterministic CUDA kernel, so the same seed can give other bits",
            file=sys.stderr,
        )
    torch.use_deterministic_algorithms(True, warn_only=operator is not None)
    # Filling fresh memory takes a twentieth of a step, and nobody reads that memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def operator_without_kernel(settings: Settings) -> str | None:
    """Return the operator of a training step on CUDA that has no deterministic kernel; None where all have one.

    The only one: a public encoder interpolates learned positions bicubically in every pass, and finetuning trains them.
    """
    vision = settings.encoders.vision
    interpolates = vision.is_public and vision.positions != "detris" and VISION[vision.family].positions == "learned"
    trains_positions = settings.model.adapters == "finetune" and interpolates
    if settings.train.device == "cuda" and trains_positions:
        return "the gradient of the bicubic interpolation of positions"
    return None
