"""The official files of the data set in use: drawn here for the built-in set, otherwise the user's own."""

import json
from pathlib import Path
from typing import Any

from wimfris.data.refer import annotation_files, images_folder
from wimfris.data.scenes import write_scenes
from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.settings.schema import Settings

POINTER = "source.json"  # root and hashes of the user's annotation files


def make_source(settings: Settings) -> Path:
    """Stage `data`: draw the built-in set, or record location and hashes of the user's annotation files.

    Returns the folder it wrote. Raises UserError if an official file is missing.
    """
    folder = settings.folder / "refer"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.data.name == "scenes":
        write_scenes(folder, settings.data.scenes.model_dump(), settings.data.image_size)
    else:
        hashes = {_key(path): file_hash(path) for path in _annotations(settings, Path(settings.data.root))}
        pointer = {"root": settings.data.root, "sha256": hashes}
        (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n")
    return folder


def source_root(settings: Settings) -> Path:
    """Return the root of the official layout.

    Raises UserError if stage `data` has not run, or if the user's annotation files have changed since it did.
    """
    if settings.data.name == "scenes":
        return _existing(settings.folder / "refer")
    pointer = _read_pointer(settings)
    root = Path(pointer["root"])
    for path in _annotations(settings, root):
        if file_hash(path) != pointer["sha256"].get(_key(path)):
            raise UserError(
                f"{path}: changed since stage `data`; restore it, or accept the new file with `dvc repro -f data`"
            )
    return root


def source_images(settings: Settings) -> Path:
    """Return the folder of the images. Raises UserError if stage `data` has not run."""
    if settings.data.name == "scenes":
        return images_folder(_existing(settings.folder / "refer"))
    return images_folder(Path(_read_pointer(settings)["root"]))


def _annotations(settings: Settings, root: Path) -> list[Path]:
    """Return the annotation files of every data set in use."""
    return [path for name in settings.data.sets for path in annotation_files(root, name).values()]


def _key(path: Path) -> str:
    """Return an annotation file's path under the root, which does not depend on where the root is."""
    return f"{path.parent.name}/{path.name}"


def _read_pointer(settings: Settings) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_existing(settings.folder / "refer" / POINTER).read_text())
    return content


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: missing; run `dvc repro data`")
    return path
