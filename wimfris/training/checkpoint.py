"""Trained weights as safetensors, and the checkpoints that an interrupted run resumes from."""

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wimfris.errors import UserError
from wimfris.files import replacing, to_disk, writing


def save_weights(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write trained weights atomically. The metadata names the run and the hashes of the frozen encoders, which are not
    copied.
    """
    # All metadata is in one entry: safetensors writes several in a random order, and the file's bytes would differ.
    with replacing(path) as partial:
        save_file(_contiguous(state), partial, metadata={"wimfris": json.dumps(metadata)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return weights and metadata. Raises UserError where the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights; train the run again with `wimfris matrix`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("wimfris", "{}"))
        return load_file(path), metadata
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from None


@dataclass
class Checkpoint:
    """A point in training. A run that resumes from it ends with the same bits as an uninterrupted one."""

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    training: dict[str, Any]  # optimizer, scaler, random states, step, best score, log so far, seconds spent


class CheckpointFolder:
    """The checkpoints of one run, in a folder named by its fingerprint. Only the newest is kept. A kill or a crash of
    the machine while it is written leaves the one before.
    """

    def __init__(self, root: Path, run: str, key: str) -> None:
        self.folder = root / f"{run}-{key}"

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove older ones."""
        partial = self.folder / "partial"
        with writing(self.folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_contiguous(checkpoint.weights), partial / "weights.safetensors")
            save_file(_contiguous(checkpoint.best_weights), partial / "best.safetensors")
            torch.save(checkpoint.training, partial / "training.pt")
            for path in (*partial.iterdir(), partial):
                to_disk(path)
            older = self._saved()
            partial.rename(self.folder / f"{step:09d}")
            to_disk(self.folder)
            for folder in older:
                if folder.name != f"{step:09d}":
                    shutil.rmtree(folder)

    def load(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None. Raises UserError where it is damaged."""
        saved = self._saved()
        if not saved:
            return None
        folder = saved[-1]
        try:
            return Checkpoint(
                load_file(folder / "weights.safetensors"),
                load_file(folder / "best.safetensors"),
                torch.load(folder / "training.pt", map_location="cpu", weights_only=True),
            )
        except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{folder}: the checkpoint is damaged ({reason}); delete the folder to train from the beginning"
            ) from None

    def delete(self) -> None:
        """Remove the folder: the run has ended. A kill in between leaves nothing that `load` would read."""
        renamed = self.folder.with_name(f"{self.folder.name}-deleted")
        shutil.rmtree(renamed, ignore_errors=True)
        if self.folder.is_dir():
            self.folder.rename(renamed)
            shutil.rmtree(renamed, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
