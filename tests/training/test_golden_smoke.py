"""Golden smoke runs: the losses of 12 training steps of every family of models, in float64 on one thread.

They say within seconds, on any processor, whether a change has touched the numbers. A change that means to renews them:

    python tests/training/test_golden_smoke.py     # writes tests/golden/smoke_losses.json, from the project's root
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from wimfris.data.index import read_index
from wimfris.data.prepare import prepare_index
from wimfris.data.source import make_source, source_images
from wimfris.encoders.load import load_tokenizer
from wimfris.settings.params import Params, read_params
from wimfris.training.batches import TrainBatches
from wimfris.training.build import build_loss, build_segmenter
from wimfris.training.distributed import Processes

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "smoke_losses.json"
STEPS = 12
TOLERANCE = 1e-5  # float32 initial weights differ in their last bits between processors
FAMILIES = (  # every adapter family, neck and mixing
    "full",
    "none",
    "no_neck",
    "detris_adapters_detris_neck",
    "etris_adapters_etris_neck",
    "lora",
    "bottleneck",
    "finetune",
    "mixing_attention",
    "pwam",
    "mixing_ssd",
)
OTHERS = (  # their further options
    "no_window",
    "msa_mta",
    "text_both",
    "bidirectional",
    "mixer_depthwise_7",
    "align_fraction",
    "passes_2",
    "windows_2_4_8_grid",
    "cross",
    "text_words",
)


def losses(params: Params, variant: str) -> list[float]:
    """Return the loss of each step; the data of scale smoke lies under the working directory."""
    settings = params.settings(variant)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    index = read_index(settings.folder / "index" / "index.parquet")
    rows = index[index["split"] == "train"].reset_index(drop=True)
    tokenizer = load_tokenizer(settings)
    segmenter, loss = build_segmenter(settings, tokenizer).double().train(), build_loss(settings)
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    device = torch.device("cpu")
    batches = TrainBatches(settings, rows, source_images(settings), tokenizer, 0, device, Processes())
    values: list[float] = []
    for epoch in range(STEPS):
        for batch, _ in batches.epoch(epoch, 0):
            output = segmenter(batch["image"].double(), batch["token_ids"])
            total = loss(output, batch["mask"].double()).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            values.append(total.item())
            if len(values) == STEPS:
                return values
    return values


@pytest.mark.parametrize("variant", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_losses_are_the_golden_ones(
    variant: str, smoke_data: Params, smoke_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(smoke_data_folder)
    assert losses(smoke_data, variant) == pytest.approx(json.loads(GOLDEN.read_text())[variant], abs=TOLERANCE)


def prepare_data(folder: Path) -> Params:
    """Draw and index the data of scale smoke in a folder, with the project's own params.yaml."""
    shutil.copy(ROOT / "params.yaml", folder)
    params = read_params(folder / "params.yaml").at_scale("smoke")
    with contextlib.chdir(folder):
        settings = params.settings()
        make_source(settings)
        prepare_index(settings)
    return params


@pytest.fixture(scope="module")
def smoke_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def smoke_data(smoke_data_folder: Path) -> Params:
    return prepare_data(smoke_data_folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        params = prepare_data(Path(name))
        with contextlib.chdir(name):
            golden = {variant: losses(params, variant) for variant in (*FAMILIES, *OTHERS)}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
