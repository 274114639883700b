"""`wimfris doctor`: what this machine has, what works, and how to install what is missing."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from wimfris.data.refer import Source, declared_source, missing_annotations
from wimfris.encoders.hub_cache import find_encoder
from wimfris.encoders.load import BUILTIN
from wimfris.encoders.original import read_tensors
from wimfris.errors import UserError, one_line
from wimfris.model.scan import BACKENDS, choose_backend, selective_scan
from wimfris.model.scan.trial import TOLERANCE, largest_difference
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings
from wimfris.training.batches import check_shared_memory

REQUIRED = (
    "torch",
    "transformers",
    "huggingface-hub",
    "dvc",
    "numpy",
    "numba",
    "opencv-python-headless",
    "safetensors",
    "optuna",
)
OPTIONAL = {  # package -> its use and how to install it
    "triton": "our own kernels on a GPU; torch's CUDA builds bring it",
    "mamba-ssm": "the scan of Mamba's authors on a GPU; install it as docs/gpu.md says",
    "causal-conv1d": "as mamba-ssm",
}
GIGABYTE = 1e9
ROOM, IMAGES = 5, 27  # gigabytes for a few runs or the encoders; for COCO's train2014.zip and its content


@dataclass(frozen=True)
class Finding:
    """One line of the report. `works` is None for a choice or an option."""

    part: str
    name: str
    works: bool | None
    message: str


def examine(params: Params) -> list[Finding]:
    """Return all findings for the data set and scale of the params."""
    settings = params.settings()
    return [
        *versions(),
        *devices(settings),
        *scans(),
        *disk(settings),
        *encoders(settings),
        *data(settings),
    ]


def versions() -> Iterator[Finding]:
    """Report Python and the packages that results depend on."""
    yield Finding("version", "python", True, platform.python_version())
    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield Finding("version", name, True, version(name))
        except PackageNotFoundError:
            fix = OPTIONAL.get(name)
            yield Finding("version", name, None if fix else False, f"not installed; {fix or 'run `make setup`'}")


def devices(settings: Settings) -> Iterator[Finding]:
    """Report processor, memory and GPUs, and whether the scale's device is there."""
    memory = psutil.virtual_memory()
    message = f"{os.cpu_count()} cores, {memory.total / GIGABYTE:.0f} GB, {memory.available / GIGABYTE:.0f} GB free"
    yield Finding("device", "cpu", True, message)
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        message = f"{torch.cuda.get_device_name(number)}, {total / GIGABYTE:.0f} GB, {free / GIGABYTE:.0f} GB free"
        yield Finding("device", f"cuda:{number}", True, message)
    if not torch.cuda.is_available():
        needed = settings.train.device == "cuda"
        built = torch.version.cuda is not None
        fix = "torch sees no GPU; run `nvidia-smi`" if built else "this torch is a CPU build; PyPI's default has CUDA"
        fix += f" (scale {settings.scale} trains on cuda)" if needed else f" (scale {settings.scale} needs no GPU)"
        yield Finding("device", "cuda", False if needed else None, fix)


def scans() -> Iterator[Finding]:
    """Compare output and gradients of every scan backend with the reference, on every kind of device."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        reference = partial(selective_scan, backend="reference")
        for backend in BACKENDS:
            name = f"{backend}, {device}"
            if backend == "auto":
                choice = choose_backend("auto", device)
                yield Finding("scan", name, None, f"uses {choice.backend}: {choice.reason}")
                continue
            try:
                difference = largest_difference(partial(selective_scan, backend=backend), reference, device)
            except UserError as error:
                yield Finding("scan", name, None, str(error).removeprefix("model.scan: "))
            except Exception as error:  # a build for another machine may raise anything
                yield Finding("scan", name, False, one_line(error))
            else:
                message = f"differs by {difference:.0e} from the reference (output and gradients, relative)"
                message = "the reference of the other backends" if backend == "reference" else message
                yield Finding("scan", name, difference < TOLERANCE, message)


def disk(settings: Settings) -> Iterator[Finding]:
    """Report the free space for runs and DVC's cache, for missing images, and for the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = [("here", Path(), ROOM), ("hub cache", Path(HF_HUB_CACHE), ROOM)]
    places += [("images", folder, IMAGES) for folder in _image_folders(settings) if not folder.is_dir()]
    for name, place, room in places:
        existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free / GIGABYTE
        yield Finding("disk", name, free > room, f"{free:.0f} GB free at {existing}, {room} GB needed")
    try:
        check_shared_memory(settings)
    except UserError as error:
        yield Finding("disk", "shared memory", False, str(error))
    else:
        yield Finding("disk", "shared memory", True, f"enough for {settings.train.workers} loader processes")


def encoders(settings: Settings) -> Iterator[Finding]:
    """Report whether both encoders of the scale are complete and undamaged."""
    for name in ("text", "vision"):
        backbone = getattr(settings.encoders, name)
        try:
            if backbone.is_hub:
                message = f"complete, at {str(backbone.revision)[:12]}"
                find_encoder(backbone, settings.scale)
            elif backbone.is_file:
                message = f"{len(read_tensors(Path(backbone.source)))} tensors"
            elif backbone.source == "random":
                message = "nothing to load"
            else:
                path = BUILTIN / f"{backbone.source.replace('builtin', name)}.safetensors"
                message = f"{len(read_tensors(path))} tensors"
        except UserError as error:
            yield Finding("encoder", f"{name}: {backbone.source}", False, str(error))
        else:
            yield Finding("encoder", f"{name}: {backbone.source}", True, message)


def data(settings: Settings) -> Iterator[Finding]:
    """Report which files of the data sets in use exist. `wimfris data check` reads them."""
    for source in _sources(settings):
        missing = missing_annotations(source)
        message = f"missing {', '.join(map(str, missing))}" if missing else "there; `wimfris data check` counts them"
        yield Finding("data", source.name, not missing, message)
    for folder in _image_folders(settings):
        exists = folder.is_dir()
        message = f"{sum(1 for _ in folder.iterdir()):,} files" if exists else "not there; COCO's train2014.zip, 13 GB"
        yield Finding("data", str(folder), exists, message)
    indexed = (settings.folder / "index" / "index.parquet").is_file()
    message = "indexed" if indexed else "not indexed; run `dvc repro prepare`"
    yield Finding("data", settings.folder.name, indexed or None, message)


def _sources(settings: Settings) -> list[Source]:
    data = settings.data
    return [declared_source(name, files, Path(data.root)) for name, files in data.files.items()]


def _image_folders(settings: Settings) -> list[Path]:
    return sorted({source.images for source in _sources(settings)})
