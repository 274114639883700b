"""`wimfris doctor`: what this machine has, what works, and what to install for what is missing; one screen."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from wimfris.checks.official_files import PUBLISHED
from wimfris.data.refer import annotation_files, images_folder
from wimfris.encoders.load import BUILTIN, find_encoder
from wimfris.encoders.original import read_tensors
from wimfris.errors import UserError
from wimfris.model.scan import BACKENDS, choose_backend, selective_scan
from wimfris.settings.params import Params
from wimfris.settings.schema import Settings

NEEDED = (
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
OPTIONAL = {  # package -> what it is for, and how it is installed
    "triton": "our own kernels on a GPU: torch's CUDA builds bring it",
    "mamba-ssm": "the fast scan on a GPU: `pip install --no-build-isolation -c constraints.txt -e '.[cuda]'` (README)",
    "causal-conv1d": "the same",
}
TOLERANCE = 1e-4  # of a scan backend against the reference, relative to the output's scale, float32
GIGABYTE = 1e9
ROOM, IMAGES = 5, 27  # gigabytes: of a few runs or the encoders; of COCO's train2014.zip beside what it unpacks to


@dataclass(frozen=True)
class Finding:
    """One line of the screen. `works`: True, False, or None where it is neither (a choice, an option)."""

    part: str
    name: str
    works: bool | None
    told: str


def examine(params: Params) -> list[Finding]:
    """Everything, for the data set and scale of the params."""
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
    """Python and the packages that results depend on."""
    yield Finding("version", "python", True, platform.python_version())
    for name in (*NEEDED, *OPTIONAL):
        try:
            yield Finding("version", name, True, version(name))
        except PackageNotFoundError:
            fix = OPTIONAL.get(name)
            yield Finding("version", name, None if fix else False, f"not installed; {fix or 'run `make setup`'}")


def devices(settings: Settings) -> Iterator[Finding]:
    """Processor, memory, GPUs; and whether the device that the scale asks for is there."""
    memory = psutil.virtual_memory()
    told = f"{os.cpu_count()} cores, {memory.total / GIGABYTE:.0f} GB, {memory.available / GIGABYTE:.0f} GB free"
    yield Finding("device", "cpu", True, told)
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        told = f"{torch.cuda.get_device_name(number)}, {total / GIGABYTE:.0f} GB, {free / GIGABYTE:.0f} GB free"
        yield Finding("device", f"cuda:{number}", True, told)
    if not torch.cuda.is_available():
        needed = settings.train.device == "cuda"
        built = torch.version.cuda is not None
        fix = "torch sees no GPU; see `nvidia-smi`" if built else "this torch is a CPU build; PyPI's default has CUDA"
        fix += f" (scale {settings.scale} trains on cuda)" if needed else f" (scale {settings.scale} needs none)"
        yield Finding("device", "cuda", False if needed else None, fix)


def scans() -> Iterator[Finding]:
    """Every backend of the scan on every kind of device, held against the reference on the spot, forward and back."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        inputs = _scan_inputs(torch.device(device))
        expected = _scan(inputs, "reference")
        for backend in BACKENDS:
            if backend == "auto":
                chosen = choose_backend("auto", device)
                yield Finding("scan", f"auto, {device}", None, f"takes {chosen.backend}: {chosen.reason}")
                continue
            try:
                found = _scan(inputs, backend)
            except UserError as error:
                yield Finding("scan", f"{backend}, {device}", None, str(error).removeprefix("model.scan: "))
            except Exception as error:  # a build that does not fit the machine fails in whatever way
                yield Finding(
                    "scan", f"{backend}, {device}", False, " ".join(f"{type(error).__name__}: {error}".split())
                )
            else:
                apart = max(_apart(a, b) for a, b in zip(found, expected, strict=True))
                told = f"{apart:.0e} apart from the reference (output and gradients, relative)"
                told = "what the others are held against" if backend == "reference" else told
                yield Finding("scan", f"{backend}, {device}", apart < TOLERANCE, told)


def _scan_inputs(device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias of a small scan, see `selective_scan`."""
    batch, length, width, state = 2, 17, 32, 16
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    u, delta, z = (draw(batch, length, width) for _ in range(3))
    drawn = [u, delta, -draw(width, state).exp(), draw(batch, length, state), draw(batch, length, state)]
    drawn += [draw(width), z, draw(width)]
    return [value.to(device) for value in drawn]


def _scan(inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Output and gradients of every input."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    u, delta, A, B, C, D, z, bias = leaves
    output = selective_scan(u, delta, A, B, C, D, z, bias, backend=backend)
    weights = torch.arange(output.numel(), device=output.device).view_as(output).cos()
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def disk(settings: Settings) -> Iterator[Finding]:
    """Free space where runs and DVC's cache, the images that are not here yet, and the hub's cache lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    images = images_folder(Path(settings.data.root))
    places = [("here", Path(), ROOM), ("hub cache", Path(HF_HUB_CACHE), ROOM)]
    if settings.data.name != "scenes" and not images.is_dir():
        places.append(("images", images, IMAGES))
    for name, place, room in places:
        existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free / GIGABYTE
        yield Finding("disk", name, free > room, f"{free:.0f} GB free at {existing}, {room} are needed")


def encoders(settings: Settings) -> Iterator[Finding]:
    """Whether both encoders of the scale are there, whole and of the published hashes."""
    for name in ("text", "vision"):
        backbone = getattr(settings.encoders, name)
        try:
            if backbone.is_hub:
                told = f"whole, at {str(backbone.revision)[:12]}"
                find_encoder(backbone, settings.scale)
            elif backbone.is_file:
                told = f"{len(read_tensors(Path(backbone.source)))} tensors"
            elif backbone.source == "random":
                told = "nothing to load"
            else:
                path = BUILTIN / f"{backbone.source.replace('builtin', name)}.safetensors"
                told = f"{len(read_tensors(path))} tensors"
        except UserError as error:
            yield Finding("encoder", f"{name}: {backbone.source}", False, str(error))
        else:
            yield Finding("encoder", f"{name}: {backbone.source}", True, told)


def data(settings: Settings) -> Iterator[Finding]:
    """Which data sets' files are there; what they hold `wimfris data check` tells."""
    root = Path(settings.data.root)
    used = settings.data.sets
    for name in PUBLISHED:
        try:
            annotation_files(root, name)
        except UserError as error:
            told = str(error).removeprefix(f"{name}: ") if name in used else "not there, and not in use"
            yield Finding("data", name, False if name in used else None, told)
        else:
            yield Finding("data", name, True, "annotations there; `wimfris data check` counts them")
    folder = images_folder(root)
    there = folder.is_dir()
    needed = settings.data.name != "scenes"
    told = f"{sum(1 for _ in folder.iterdir()):,} files" if there else "not there; COCO's train2014.zip, 13 GB"
    yield Finding("data", str(folder), True if there else (False if needed else None), told)
    drawn = settings.folder / "index" / "index.parquet"
    told = "indexed" if drawn.is_file() else "not indexed; `dvc repro prepare` makes it"
    yield Finding("data", settings.folder.name, drawn.is_file() or None, told)
