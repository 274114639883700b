"""Where the official files of the data set in use lie: drawn by us, or brought by the user."""

import json
from pathlib import Path
from typing import Any

from wimfris.data.refer import annotation_files, images_folder
from wimfris.data.scenes import write_scenes
from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.settings.schema import Settings

POINTER = "source.json"


def make_source(settings: Settings) -> Path:
    """Stage `data`: draw the built-in set, or note where the user's annotations lie and what they are. Returns the
    folder it wrote.

    Raises UserError where an official file is missing.
    """
    folder = settings.folder / "refer"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.data.name == "scenes":
        write_scenes(folder, settings.data.scenes.model_dump(), settings.data.image_size)
    else:
        hashes = {_key(path): file_hash(path) for path in _annotations(settings, Path(settings.data.root))}
        told = {"root": settings.data.root, "sha256": hashes}
        (folder / POINTER).write_text(json.dumps(told, indent=2) + "\n")
    return folder


def source_root(settings: Settings) -> Path:
    """The root of the official layout. Raises UserError where stage `data` has not run, or the user's files have
    changed since.
    """
    if settings.data.name == "scenes":
        return _written(settings.folder / "refer")
    told = _pointer(settings)
    root = Path(told["root"])
    for path in _annotations(settings, root):
        if file_hash(path) != told["sha256"].get(_key(path)):
            raise UserError(
                f"{path}: not the file that stage `data` saw; restore it, or accept it with `dvc repro -f data`"
            )
    return root


def source_images(settings: Settings) -> Path:
    """The folder of the JPEGs, for stages that need pictures alone. Raises UserError where stage `data` has not run."""
    if settings.data.name == "scenes":
        return images_folder(_written(settings.folder / "refer"))
    return images_folder(Path(_pointer(settings)["root"]))


def _annotations(settings: Settings, root: Path) -> list[Path]:
    """The annotation files of every set that is in use."""
    return [path for name in settings.data.sets for path in annotation_files(root, name).values()]


def _key(path: Path) -> str:
    """An annotation file's name under the root, the same wherever that lies."""
    return f"{path.parent.name}/{path.name}"


def _pointer(settings: Settings) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_written(settings.folder / "refer" / POINTER).read_text())
    return content


def _written(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: missing; `dvc repro data` writes it")
    return path
