"""The paper's models on every data set: the settings of params.yaml build, and train one step.

The models have random weights and only two layers.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from wimfris.measure.blank_model import blank_segmenter, example
from wimfris.settings.params import read_params
from wimfris.settings.schema import Settings
from wimfris.training.build import build_loss

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SETS = ("refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "mixed_strict", "mixed_as_published")
SCALES = ("base", "large")  # WIMFRIS-B and WIMFRIS-L; WIMFRIS-L* is `large` on a mixed set


def shallow(scale: str, name: str, folder: Path) -> Settings:
    """Return the settings of a scale and data set, reduced to two layers and a grid of 8 x 8; the widths stay."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    content |= {
        "scale": scale,
        "data": {"name": name, "root": "data"},
        "variants": {"full": {}},
        "extended": {},
        "controls": {},
        "extra_seeds": {},
        "explorer": ["full"],
    }
    section = content["scales"][scale]
    section["data"]["image_size"] = 8 * section["encoders"]["vision"]["patch"]
    section["encoders"]["text"]["layers"] = section["encoders"]["vision"]["layers"] = 2
    section["encoders"]["vision"]["taps"] = [0, 1]
    section["model"]["mta"]["layers"] = section["model"]["msa"]["layers"] = [1]
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return read_params(folder / "params.yaml").settings()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_configuration_builds_and_trains_one_step(scale: str, name: str, tmp_path: Path) -> None:
    settings = shallow(scale, name, tmp_path)
    assert settings.data.length == (22 if name == "refcocog-umd" else 17)
    segmenter = blank_segmenter(settings, "cpu").train()
    trained = {key: value for key, value in segmenter.named_parameters() if value.requires_grad}
    before: dict[str, Tensor] = {key: value.detach().clone() for key, value in trained.items()}
    frozen = sum(value.double().sum() for value in segmenter.vision.backbone.parameters())
    optimizer = torch.optim.Adam(trained.values(), lr=settings.train.learning_rate)
    size = settings.data.image_size
    mask = torch.zeros(2, 1, size, size)
    mask[..., : size // 2, :] = 1
    images, token_ids = example(segmenter, settings, 2, "cpu")
    assert token_ids.shape == (2, settings.data.length)
    losses = build_loss(settings)(segmenter(images, token_ids), mask)
    losses.total.backward()
    optimizer.step()
    assert torch.isfinite(losses.total)
    changed = {key for key, value in trained.items() if not torch.equal(value, before[key])}
    # An adapter's up-projection starts at zero, so the layers before it get no gradient in the first step.
    assert {key for key in trained if ".adapters." not in key} <= changed | {key for key in trained if "bias" in key}
    assert any(".adapters." in key for key in changed)
    assert sum(value.double().sum() for value in segmenter.vision.backbone.parameters()) == frozen


@pytest.mark.parametrize(
    ("scale", "overrides"),
    [
        ("base", {"data.name": "refcoco+", "encoders.text.source": "ViT-B-16.pt", "evaluate.batch_size": 7}),
        ("large", {"data.name": "mixed_strict", "encoders.text.source": "ViT-B-16.pt", "model.hmf.heads": 4}),
    ],
)
def test_overrides_from_the_docs_change_one_scale(scale: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """`dvc exp run -S` rewrites params.yaml. Where two scales share a section, it must not change the other one."""
    from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

    shutil.copy(ROOT / "params.yaml", tmp_path)
    values = {"encoders.text.revision": None} | overrides
    lines = [f"scale={scale}", f"data.name={values.pop('data.name')}"]
    lines += [f"scales.{scale}.{key}={'null' if value is None else value}" for key, value in values.items()]
    apply_overrides(tmp_path / "params.yaml", lines)
    params = read_params(tmp_path / "params.yaml")
    settings = params.settings()
    assert (settings.scale, settings.data.name) == (scale, overrides["data.name"])
    assert (settings.encoders.text.source, settings.encoders.text.revision) == ("ViT-B-16.pt", None)
    assert settings.evaluate.batch_size == overrides.get("evaluate.batch_size", 32)
    assert settings.model.hmf.heads == overrides.get("model.hmf.heads", 8)
    other = params.model_copy(update={"scale": "large" if scale == "base" else "base"}).settings()
    assert other.encoders.text.is_hub and other.evaluate.batch_size == 32 and other.model.hmf.heads == 8
