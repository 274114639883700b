"""Where the official files of the data set in use lie: drawn by us, or brought by the user."""

import json
from pathlib import Path

from wimfris.data.refer import annotation_files, images_folder
from wimfris.data.scenes import write_scenes
from wimfris.errors import UserError
from wimfris.files import file_hash
from wimfris.params import Settings

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
        files = annotation_files(Path(settings.data.root), settings.data.name)
        told = {"root": settings.data.root, "sha256": {path.name: file_hash(path) for path in files.values()}}
        (folder / POINTER).write_text(json.dumps(told, indent=2) + "\n")
    return folder


def source_root(settings: Settings) -> Path:
    """The root of the official layout. Raises UserError where stage `data` has not run, or the user's files have
    changed since.
    """
    folder = settings.folder / "refer"
    if not folder.is_dir():
        raise UserError(f"{folder}: missing; `dvc repro data` writes it")
    if settings.data.name == "scenes":
        return folder
    told = json.loads((folder / POINTER).read_text())
    root = Path(told["root"])
    for path in annotation_files(root, settings.data.name).values():
        if file_hash(path) != told["sha256"][path.name]:
            raise UserError(
                f"{path}: not the file that stage `data` saw; restore it, or accept it with `dvc repro -f data`"
            )
    return root


def source_images(settings: Settings) -> Path:
    """The folder of the JPEGs, for stages that need pictures alone."""
    if settings.data.name == "scenes":
        return images_folder(settings.folder / "refer")
    return images_folder(Path(json.loads((settings.folder / "refer" / POINTER).read_text())["root"]))
