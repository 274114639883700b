"""The examples of docs/extend.md and the Python of README.md run."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from wimfris.encoders.load import load_tokenizer
from wimfris.model.hmf import MIXINGS
from wimfris.model.scan import causal_conv_silu, selective_scan
from wimfris.results.studies import load_study
from wimfris.rivals.families import FAMILIES, NECKS
from wimfris.settings.backbones import VISION
from wimfris.settings.params import merge, read_params
from wimfris.settings.schema import Settings
from wimfris.settings.sections import Files
from wimfris.training.build import build_segmenter

ROOT = Path(__file__).parents[2]
EXTEND = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^ *```(\w+)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def block(heading: str, language: str) -> str:
    """Return the only block of a language under a heading of docs/extend.md."""
    part = EXTEND.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    bodies = [body for name, body in FENCE.findall(part) if name == language]
    assert len(bodies) == 1
    return bodies[0]


def settings_with(folder: Path, *overrides: str, variant: str = "full") -> Settings:
    """Return the settings of a variant at scale smoke, after the YAML of an example is merged into params.yaml."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"scale": "smoke"}
    for override in overrides:
        content = merge(content, yaml.safe_load(override))
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return read_params(folder / "params.yaml").settings(variant)


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[types.ModuleType]:
    """The Python of the heading that the test is parametrised with, as an importable module."""
    name = f"documented_{request.param.lower().replace(' ', '_')}"
    created = types.ModuleType(name)
    exec(compile(block(request.param, "python"), name, "exec"), created.__dict__)
    sys.modules[name] = created
    yield created
    del sys.modules[name]


def check_trains(settings: Settings) -> set[str]:
    """Run forward and backward; return the names of the trained parameters, each of which got a gradient."""
    tokenizer = load_tokenizer(settings)
    segmenter = build_segmenter(settings, tokenizer).train()
    size = settings.data.image_size
    sentences = ["red circle", "small blue cross left of the large red circle"]
    ids = torch.stack([torch.as_tensor(tokenizer.encode(sentence)) for sentence in sentences])
    output = segmenter(torch.randn(2, 3, size, size), ids)
    (output.logits.mean() + output.anchor.mean()).backward()
    trained = {name for name, parameter in segmenter.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in segmenter.named_parameters() if parameter.grad is not None}
    return trained


def test_variant(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, block("A variant", "yaml"), variant="window_3")
    assert settings.scan_window == 3 and settings.group == "extended"
    check_trains(settings)


def test_study(tmp_path: Path) -> None:
    (tmp_path / "window_three.py").write_text(block("A study", "python"))
    study = load_study("window_three", tmp_path)
    settings_with(tmp_path, block("A variant", "yaml"))
    assert list(study.variants) == ["full", "window_3"]
    assert [read_params(tmp_path / "params.yaml").settings(name).scan_window for name in study.variants] == [4, 3]


@pytest.mark.parametrize("module", ["An adapter"], indirect=True)
def test_adapter(module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = allowed(block("An adapter", "yaml"), "adapters")
    monkeypatch.setitem(FAMILIES, name, module.__name__)
    trained = trained_with(tmp_path, adapters=name)
    assert {parameter for parameter in trained if ".adapters." in parameter} == {
        f"{encoder}.adapters.1.scale" for encoder in ("text", "vision")
    }


@pytest.mark.parametrize("module", ["A neck"], indirect=True)
def test_neck(module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = allowed(block("A neck", "yaml"), "neck")
    monkeypatch.setitem(NECKS, name, module.__name__)
    trained = trained_with(tmp_path, neck=name)
    assert any(parameter.startswith("neck.gate") for parameter in trained)


@pytest.mark.parametrize("module", ["A mixing"], indirect=True)
def test_mixing(module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (variant,) = yaml.safe_load(block("A mixing", "yaml"))["extended"].values()
    name = variant["model"]["hmf"]["mixing"]
    assert name not in MIXINGS
    monkeypatch.setitem(MIXINGS, name, module.__name__)
    trained = trained_with(tmp_path, hmf=settings_with(tmp_path).model.hmf.model_copy(update={"mixing": name}))
    assert any(parameter.startswith("neck.fusion.mamba.project") for parameter in trained)


def trained_with(folder: Path, **choice: Any) -> Any:
    """Return what `check_trains` does for the settings with this adapter family or neck."""
    settings = settings_with(folder)
    return check_trains(settings.model_copy(update={"model": settings.model.model_copy(update=choice)}))


def allowed(text: str, key: str) -> str:
    """Return the new name in an example's variant; the schema must not have it yet, as the page says."""
    (variant,) = yaml.safe_load(text)["extended"].values()
    name: str = variant["model"][key]
    assert name not in (FAMILIES if key == "adapters" else NECKS)
    return name


def test_encoder(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, block("An encoder", "yaml"))
    vision = settings.encoders.vision
    assert (vision.family, vision.width) == ("dinov3_vit", 32)
    check_trains(settings)


@pytest.mark.parametrize("module", ["An encoder"], indirect=True)
def test_family_of_encoders(module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.FAMILY not in VISION.values()
    monkeypatch.setitem(VISION, "clip", module.FAMILY)
    settings = settings_with(tmp_path)
    changes = {"family": "clip", "registers": 0}
    vision = settings.encoders.vision.model_copy(update=changes)
    encoders = settings.encoders.model_copy(update={"vision": vision})
    trained = check_trains(settings.model_copy(update={"encoders": encoders}))
    assert not any(".backbone." in name for name in trained)


@pytest.mark.parametrize("module", ["A scan backend"], indirect=True)
def test_scan_backend(module: types.ModuleType) -> None:
    batch, length, width, state = 2, 7, 4, 3

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    wide, narrow = (batch, length, width), (batch, length, state)
    rates = (-torch.rand(width, state, dtype=torch.float64)).requires_grad_()
    inputs = [random(*wide), random(*wide), rates, random(*narrow), random(*narrow), random(width), random(*wide)]
    compare(module.selective_scan, selective_scan, [*inputs, random(width)])
    compare(module.causal_conv_silu, causal_conv_silu, [random(*wide), random(width, 1, 4), random(width)])


def compare(ours: Any, reference: Any, inputs: list[Tensor]) -> None:
    """Hold values and gradients of a function to those of the reference backend."""
    value, expected = ours(*inputs), reference(*inputs, backend="reference")
    torch.testing.assert_close(value, expected)
    weight = torch.randn_like(value)
    gradients = (torch.autograd.grad((result * weight).sum(), inputs) for result in (value, expected))
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other)


def test_every_file_to_change_exists() -> None:
    """The tables of the page link files; a name in <angle brackets> is the reader's own."""
    assert len(re.findall(r"^\| test to copy \|", EXTEND, re.MULTILINE)) >= 6
    for name in re.findall(r"`(wimfris/\S+?|studies/\S+?)`", EXTEND):
        assert (ROOT / name).exists() or "<" in name, name


@pytest.mark.slow
def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "red").save("photo.png")
    (code,) = [body for name, body in FENCE.findall((ROOT / "README.md").read_text()) if name == "python"]
    variables: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), variables)
    assert variables["mask"].shape == (48, 64) and variables["mask"].dtype == bool


def test_the_published_counts_are_those_of_the_page() -> None:
    declared = read_params(ROOT / "params.yaml").datasets
    counts = {name: files.counts for name, files in declared.items() if isinstance(files, Files)}
    text = (ROOT / "docs" / "paper_scale.md").read_text(encoding="utf-8")
    for name, splits in counts.items():
        cells = [f"{objects} / {sentences} / {images}" for objects, sentences, images in splits.values()]
        assert f"| {name} | {' | '.join(cells)} |" in text
