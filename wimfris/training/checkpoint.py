"""What a run leaves and what it resumes from: trained weights as safetensors, and checkpoints that are whole or not
there.
"""

import hashlib
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
from wimfris.files import replacing, to_disk

CHECKPOINTS = Path(".checkpoints")  # beside the outs, which DVC removes before a stage runs


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can hold: two runs share checkpoints only where all that decides their result is
    equal.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_hash(modules: list[str]) -> str:
    """SHA-256 over the source of these files and folders of the package."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for module in modules:
        place = package / module
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def save_weights(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write trained weights, atomically. The metadata names the run and the hashes of the frozen encoders, which are
    not copied.
    """
    # one entry: safetensors writes several in another order each time, and the file's bytes would differ
    told = {"wimfris": json.dumps(metadata)}
    with replacing(path) as partial:
        save_file(_contiguous(state), partial, metadata=told)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata. Raises UserError where the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights; train the run with `dvc repro`, or restore them with `dvc pull`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("wimfris", "{}"))
        return load_file(path), metadata
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from None


@dataclass
class Checkpoint:
    """A point in training from which it goes on to the same end, bit for bit."""

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    training: dict[
        str, Any
    ]  # optimizer, scheduler, scaler, random states, position, best score, log so far, seconds spent


class CheckpointFolder:
    """The checkpoints of one run, in a folder named by its fingerprint. Only the newest is kept; a kill, or the end of
    the whole machine, leaves the one before.
    """

    def __init__(self, root: Path, run: str, key: str) -> None:
        self.folder = root / f"{run}-{key}"

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop older ones."""
        partial = self.folder / "partial"
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
        """The newest checkpoint, or None. Raises UserError where it is damaged."""
        saved = self._saved()
        if not saved:
            return None
        folder = saved[-1]
        try:
            return Checkpoint(
                load_file(folder / "weights.safetensors"),
                load_file(folder / "best.safetensors"),
                torch.load(folder / "training.pt", weights_only=True),
            )
        except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            told = str(error).splitlines()[:1] or [type(error).__name__]
            raise UserError(f"{folder}: a damaged checkpoint ({told[0]}); delete it, and the run starts anew") from None

    def delete(self) -> None:
        """Remove the folder: the run has ended. Killed meanwhile, it leaves nothing that `load` would take."""
        doomed = self.folder.with_name(f"{self.folder.name}-deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        if self.folder.is_dir():
            self.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
