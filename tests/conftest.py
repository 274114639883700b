"""What tests share: golden numbers, a small model with random frozen backbones, and a project folder at scale smoke."""

import contextlib
import importlib.util
import json
import math
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from params_file import edit_yaml
from torch import Tensor, nn

from wimfris.data.prepare import prepare_index
from wimfris.data.source import make_source
from wimfris.encoders.backbones import text_backbone, vision_backbone
from wimfris.encoders.load import describe_encoders
from wimfris.encoders.text import TextEncoder
from wimfris.encoders.vision import VisionEncoder
from wimfris.model.decoder import Decoder, Projector
from wimfris.model.hmf import Neck, WindowMambaFusion
from wimfris.model.msa import MultiScaleAligner
from wimfris.model.mta import MambaTextAdapter
from wimfris.model.segmenter import Segmenter
from wimfris.runs.files import RunFiles
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run
from wimfris.training.run import train_run

with contextlib.suppress(ValueError):  # not in the main thread
    for number in (signal.SIGINT, signal.SIGHUP):  # a job in the background ignores them, and its children would
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

torch.set_num_threads(1)  # the sums, and so the bits, depend on it

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
WIDTH = 16  # of both small backbones and of the small neck
START, END, VOCABULARY = 18, 19, 20

Stir = Callable[[nn.Module], Any]
Golden = Callable[[str, str], dict[str, np.ndarray]]
GoldenScan = Callable[[str], tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, documentation, parameters and studies as committed, whatever `make repro` has made of them since."""
    folder = tmp_path_factory.mktemp("committed")
    names = ["README.md", "benchmarks", "docs", "params.yaml", "reports", "studies"]
    archive = subprocess.run(["git", "archive", "HEAD", *names], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:  # a downloaded zip is no repository
        for name in names:
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    else:
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="session")
def golden() -> Golden:
    """golden(file, prefix): the arrays of a file under a prefix, named without it."""

    def load(file: str, prefix: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / file) as arrays:
            return {
                name.removeprefix(f"{prefix}/"): arrays[name] for name in arrays.files if name.startswith(f"{prefix}/")
            }

    return load


@pytest.fixture
def golden_scan(golden: Golden) -> GoldenScan:
    """golden_scan(case): the inputs; a weight for the output; what the output, "y", is, and the derivatives of the
    weighted sum by the inputs.
    """

    def load(case: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        arrays = golden("mamba_reference.npz", case)

        def ours(name: str) -> Tensor:
            value = torch.from_numpy(arrays[name])
            return value.mT.contiguous() if value.dim() == 3 else value

        y = arrays["out/y"]
        weight = torch.from_numpy(np.cos(np.arange(y.size)).reshape(y.shape).astype(np.float32)).mT
        inputs = {name.removeprefix("in/"): ours(name) for name in arrays if name.startswith("in/")}
        return inputs, weight, {"y": ours("out/y")} | {name: ours(f"grad/{name}") for name in inputs}

    return load


@pytest.fixture(scope="session")
def fill() -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """The rule that the weights behind the golden numbers were made with."""
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


def _stir(module: nn.Module) -> Any:
    """Every parameter and running statistic moved off its initial value: zeros, ones and tiny weights hide mistakes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3 * torch.rand_like(buffer))
    return module


@pytest.fixture(scope="session")
def stir() -> Stir:
    return _stir


def small_text() -> Any:
    return _stir(text_backbone(width=WIDTH, layers=3, heads=2, vocabulary=VOCABULARY, length=16, end_token=END))


def small_vision() -> Any:
    return _stir(vision_backbone(width=WIDTH, layers=4, heads=2, patch=4, registers=2, image_size=32, layer_scale=0.5))


def small_mta(init: str = "kaiming") -> nn.Module:
    return MambaTextAdapter(WIDTH, 6, state=3, conv=4, expand=2, scale=0.2, init=init)


def small_msa(init: str = "kaiming", emphasis: Any = "learned") -> nn.Module:
    return MultiScaleAligner(
        WIDTH, WIDTH, 8, heads=2, kernels=(3, 5, 7), emphasis=emphasis, emphasis_initial=0.3, init=init
    )


def small_segmenter(
    *,
    init: str = "kaiming",
    window: int | None = 4,
    gate: Any = "attention",
    neck: bool = True,
    dropout: float = 0.1,
    checkpointing: bool = False,
) -> Segmenter:
    """All parts, 8 x 8 patches of a 32 px image, width 16."""
    text = TextEncoder(small_text(), {layer: small_mta(init) for layer in (0, 2)}, checkpointing=checkpointing)
    aligners = {layer: small_msa(init) for layer in (1, 3)}
    vision = VisionEncoder(small_vision(), aligners, taps=(1, 2), checkpointing=checkpointing)
    fusion = WindowMambaFusion(WIDTH, WIDTH, window=window, gate=gate, norm=True, heads=2, state=3, conv=4, expand=1)
    return Segmenter(
        text,
        vision,
        Neck(WIDTH, WIDTH, fusion if neck else None),
        Decoder(WIDTH, WIDTH, layers=2, heads=2, ffn=24, dropout=dropout, checkpointing=checkpointing),
        Projector(WIDTH, WIDTH),
        nn.Linear(WIDTH, WIDTH),
    )


@pytest.fixture(scope="session")
def build() -> dict[str, Callable[..., Any]]:
    """Builders of the small parts, by name."""
    return {
        "text_backbone": small_text,
        "vision_backbone": small_vision,
        "mta": small_mta,
        "msa": small_msa,
        "segmenter": small_segmenter,
    }


@pytest.fixture
def token_ids() -> Tensor:
    """(3, 9): two padded sentences and one that fills its row. Id 0 is padding, and a word of the second sentence."""
    ids = torch.zeros(3, 9, dtype=torch.int64)
    for row, words in enumerate(([3, 5], [7, 0, 2, 4], [1, 2, 3, 4, 5, 6, 7])):
        ids[row, : len(words) + 2] = torch.tensor([START, *words, END])
    return ids


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 32, 32)


class Project:
    """A project folder at scale smoke: params.yaml of its own, and what the stages before training make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs" / "scenes-smoke"

    def edit(self, **values: Any) -> None:
        """Set keys of params.yaml; see `edit_yaml`."""
        edit_yaml(self.folder / "params.yaml", **values)

    def params(self) -> Params:
        return read_params(self.folder / "params.yaml")

    def train(self, run: str = "full-0", *, retrain: bool = True) -> None:
        """Train the run in this process."""
        one = Run.parse(run)
        train_run(self.params().settings_of(one), one.seed, retrain=retrain)

    def files(self, run: str = "full-0") -> RunFiles:
        """Return where the run's files are."""
        return RunFiles(self.runs / "core" / run)

    def outs(self, run: str = "full-0") -> dict[str, bytes]:
        """Return the bytes of every file that the run left, by name; without the manifest, which holds times."""
        files = self.files(run)
        return {path.name: path.read_bytes() for path in files.all if path != files.manifest and path.is_file()}


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's params.yaml at scale smoke, its data drawn and indexed and its encoders recorded."""
    folder = tmp_path_factory.mktemp("smoke")
    project = Project(folder)
    shutil.copy(ROOT / "params.yaml", folder)
    # a rate at which a few steps are enough for predictions that are not empty
    project.edit(explorer=["full"], extra_seeds={}, scale="smoke")
    project.edit(scales__smoke__train__learning_rate=0.015, scales__smoke__train__epochs=3)
    with contextlib.chdir(folder):
        settings = project.params().settings()
        make_source(settings)
        index, _ = prepare_index(settings)
        assert len(index) > 40
        (settings.folder / "encoders.json").write_text(json.dumps(describe_encoders(settings)))
    return folder


@pytest.fixture(scope="session")
def trained_folder(smoke_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke folder with run full-0 trained; only to be read."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(smoke_folder, folder)
    with contextlib.chdir(folder):
        Project(folder).train()
    return folder


@pytest.fixture
def project(smoke_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the smoke folder of the test's own, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(smoke_folder, folder)
    monkeypatch.chdir(folder)
    return Project(folder)


@pytest.fixture
def trained(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The folder in which run full-0 is trained, as the working directory; only to be read."""
    monkeypatch.chdir(trained_folder)
    return Project(trained_folder)
