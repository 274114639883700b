"""The files of the data set in use: drawn for the built-in set, declared in params.yaml for any other."""

import json
from pathlib import Path
from typing import Any

from wimfris.data.refer import Source, check_annotations, declared_source, scenes_source
from wimfris.data.scenes import write_scenes
from wimfris.errors import UserError
from wimfris.files import file_hash, read_bytes, write_text
from wimfris.settings.schema import Settings
from wimfris.settings.sections import SCENES

POINTER = "source.json"  # folder of the images, and hashes of the user's annotation files


def make_source(settings: Settings) -> Path:
    """Stage `data`: draw the built-in set, or record where the declared files lie and the annotations' hashes.

    Returns the folder it wrote. Raises UserError if an annotation file is missing.
    """
    folder = settings.folder / "refer"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.data.name == SCENES:
        write_scenes(folder, dict(settings.data.scenes), settings.data.image_size)
    else:
        sources = _declared(settings)
        for source in sources:
            check_annotations(source)
        hashes = {path: file_hash(Path(path)) for path in _annotations(sources)}
        pointer = {"images": str(sources[0].images), "sha256": hashes}
        write_text(folder / POINTER, json.dumps(pointer, indent=2) + "\n")
    return folder


def sources(settings: Settings) -> list[Source]:
    """Return the files of every data set in use.

    Raises UserError if stage `data` has not run, or if the user's annotation files have changed since it did.
    """
    if settings.data.name == SCENES:
        return [scenes_source(_existing(settings.folder / "refer"))]
    declared, recorded = _declared(settings), _read_pointer(settings)["sha256"]
    for source in declared:
        check_annotations(source)
    for path in _annotations(declared):
        if file_hash(Path(path)) != recorded.get(path):
            raise UserError(
                f"{path}: changed since stage `data`; restore it, or accept the new file with `dvc repro -f data`"
            )
    return declared


def source_images(settings: Settings) -> Path:
    """Return the folder of the images. Raises UserError if stage `data` has not run."""
    if settings.data.name == SCENES:
        return scenes_source(_existing(settings.folder / "refer")).images
    return Path(_read_pointer(settings)["images"])


def _declared(settings: Settings) -> list[Source]:
    data = settings.data
    return [declared_source(name, data.files[name], Path(data.root)) for name in data.sets]


def _annotations(declared: list[Source]) -> list[str]:
    """Return the annotation files of the sets, each once: sets may share one."""
    return list(dict.fromkeys(str(path) for source in declared for path in source.annotations))


def _read_pointer(settings: Settings) -> dict[str, Any]:
    path = _existing(settings.folder / "refer" / POINTER)
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
        return {"images": str(content["images"]), "sha256": dict(content["sha256"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; run `dvc repro -f data`") from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: missing; run `dvc repro data`")
    return path
