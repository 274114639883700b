"""Training, evaluation and prediction on a device: the CPU's numbers, and the same bits every time.

Where there is no GPU, the tests run on the CPU alone, so that what they say of a GPU is tested too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from wimfris.data.images import read_image
from wimfris.data.index import decode_mask, read_index
from wimfris.data.source import source_images
from wimfris.encoders.load import load_tokenizer
from wimfris.errors import UserError
from wimfris.inference.predict import Predictor
from wimfris.model.scan import BACKENDS, choose_backend
from wimfris.runs.fingerprint import decisive, digest
from wimfris.runs.records import read_records
from wimfris.runs.store import CHECKPOINTS
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings
from wimfris.training.batches import TrainBatches
from wimfris.training.build import build_loss, build_segmenter
from wimfris.training.checkpoint import CheckpointFolder, load_weights
from wimfris.training.distributed import Processes
from wimfris.training.evaluate import Evaluator
from wimfris.training.run import assemble_trainer

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])
CPU = pytest.param("cpu", marks=pytest.mark.slow)
on_devices = pytest.mark.parametrize("device", [CPU, CUDA])
FAMILIES = tuple(json.loads((Path(__file__).parents[1] / "golden" / "smoke_losses.json").read_text()))
ON_CPU = ("full", "detris_adapters_detris_neck")  # with both kinds of batch norms
TOLERANCE = 2e-3  # of a gradient in float32, relative to its largest entry
NOISE = 1e-5  # relative to the largest gradient of all: a bias before a batch norm has none but rounding


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions in float32 keep all bits; by default CUDA rounds their inputs to 10."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def settings_on(project: Any, device: str, variant: str = "full", scan: str = "reference", **train: Any) -> Settings:
    """Set the device, the scan backend and keys of `train` in params.yaml; return the settings of a variant."""
    keys = {"device": device} | train
    project.edit(model__scan=scan, **{f"scales__smoke__train__{key}": value for key, value in keys.items()})
    settings: Settings = project.params().settings(variant)
    return settings


def step(
    settings: Settings, dtype: torch.dtype = torch.float32, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of the first training step without dropout, and the gradients in float64 on the CPU."""
    torch.manual_seed(0)
    device, tokenizer = torch.device(settings.train.device), load_tokenizer(settings)
    index = read_index(settings.folder / "index" / "index.parquet")
    rows = index[index["split"] == "train"].reset_index(drop=True)
    segmenter = build_segmenter(settings, tokenizer).to(device, dtype).train()
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    batches = TrainBatches(settings, rows, source_images(settings), tokenizer, 0, device, Processes())
    batch, _ = next(batches.epoch(0, 0))
    output = wrap(segmenter)(batch["image"].to(dtype), batch["token_ids"])
    total = build_loss(settings)(output, batch["mask"].to(dtype)).total
    total.backward()
    gradients = {name: p.grad.cpu().double() for name, p in segmenter.named_parameters() if p.grad is not None}
    return total.item(), gradients


def assert_equal_steps(
    actual: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], tolerance: float = TOLERANCE
) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=1e-4)
    assert actual[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        error = float((actual[1][name] - gradient).abs().max())
        assert error <= tolerance * float(gradient.abs().max()) + NOISE * largest, name


@pytest.mark.parametrize(
    ("variant", "device"),
    [
        *(pytest.param(variant, "cpu", marks=CPU.marks) for variant in ON_CPU),
        *(pytest.param(variant, "cuda", marks=CUDA.marks) for variant in FAMILIES),
    ],
)
def test_a_step_in_float32_is_that_of_the_cpu_in_float64(variant: str, device: str, project: Any) -> None:
    expected = step(settings_on(project, "cpu", variant), torch.float64)
    assert_equal_steps(step(settings_on(project, device, variant)), expected)


@on_devices
@pytest.mark.parametrize("scan", [backend for backend in BACKENDS if backend != "reference"])
def test_a_step_is_the_same_by_every_scan_backend(scan: str, device: str, project: Any) -> None:
    try:
        choose_backend(scan, device)
    except UserError as error:
        pytest.skip(str(error))
    expected = step(settings_on(project, device))
    assert_equal_steps(step(settings_on(project, device, scan=scan)), expected)


@on_devices
@pytest.mark.parametrize("variant", ON_CPU)
def test_ddp_of_one_process_has_the_gradients_without_it(variant: str, device: str, project: Any) -> None:
    settings = settings_on(project, device, variant)
    expected = step(settings)
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        # A group of one process is not wrapped, and only the wrapping looks at the size here.
        assert_equal_steps(step(settings, wrap=Processes(0, 2).wrap), expected)
    finally:
        distributed.destroy_process_group()


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("scan", ["reference", "triton"])
def test_a_run_gives_the_same_bits_twice(scan: str, project: Any) -> None:
    settings_on(project, "cuda", scan=scan, epochs=1)
    project.train()
    outs = project.outs()
    project.train()
    assert project.outs() == outs


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param("cpu", "bf16", marks=CPU.marks),
        *(pytest.param("cuda", precision, marks=CUDA.marks) for precision in ("fp32", "bf16", "fp16")),
    ],
)
def test_a_resumed_run_is_on_its_device_and_has_the_same_bits(
    device: str, precision: str, project: Any, steps: Any
) -> None:
    """In fp16 the scaler of the losses is resumed too."""
    settings_on(project, device, precision=precision)
    project.train()
    uninterrupted = project.outs()
    settings = settings_on(project, device, precision=precision, checkpoint_seconds=1e-9)
    steps.stop(8, project)
    checkpoints = CheckpointFolder(CHECKPOINTS, f"{settings.folder.name}-full-0", digest(decisive(settings, 0)))
    trainer, _ = assemble_trainer(settings, Run("full", 0), checkpoints, Processes())
    assert trainer.step == 7 and trainer.scaler.is_enabled() == (precision == "fp16")
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {value.device.type for value in (*moments, *trainer.parameters)} == {device}
    project.train()
    assert project.outs() == uninterrupted


@pytest.mark.gpu
@NO_CUDA
def test_evaluation_counts_the_pixels_that_the_cpu_counts(trained: Any) -> None:
    settings = trained.params().settings()
    tokenizer = load_tokenizer(settings)
    segmenter = build_segmenter(settings, tokenizer)
    segmenter.load_trained(load_weights(trained.files().weights)[0])
    index = read_index(settings.folder / "index" / "index.parquet")
    evaluator = Evaluator(settings, index, source_images(settings), tokenizer, torch.device("cuda"))
    key = ["split", "condition", "ref_id", "sent_id"]
    records = evaluator.report(segmenter.to("cuda"), "full-0", 0).set_index(key).sort_index()
    expected = read_records(trained.files().records).set_index(key).sort_index()
    assert (records.index == expected.index).all()
    for name in ("intersection", "union"):  # but for two pixels at the threshold
        assert np.abs(records[name].to_numpy() - expected[name].to_numpy()).max() <= 2


@pytest.mark.gpu
@NO_CUDA
def test_a_run_of_a_gpu_predicts_on_the_cpu(project: Any) -> None:
    settings = settings_on(project, "cuda", epochs=1)
    project.train()
    predictor = Predictor.load(settings, "full-0")
    index = read_index(project.runs / "index" / "index.parquet").set_index("ref_id")
    records = read_records(project.files().records)
    for record in records[records["condition"] == "sentence"].iloc[::9].to_dict("records"):
        entry = index.loc[record["ref_id"]]
        mask = predictor(read_image(source_images(settings) / entry["file_name"]), record["sentence"])
        assert abs((mask & (decode_mask(entry) > 0)).sum() - record["intersection"]) <= 2
