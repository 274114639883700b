"""`wimfris doctor`: what is missing is named with its fix, what works has been tried."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import typer

from wimfris.checks import doctor
from wimfris.checks.doctor import Finding
from wimfris.cli.app import doctor as command
from wimfris.errors import UserError
from wimfris.model import scan


def by_name(findings: Any) -> dict[str, Finding]:
    return {f"{found.part} {found.name}": found for found in findings}


def test_a_project_that_can_run_has_nothing_missing(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = by_name(doctor.examine(project.params()))
    assert not [one for one in found.values() if one.works is False]
    assert found["version torch"].told == torch.__version__
    assert found["encoder text: random"].works and found["data scenes-smoke"].told == "indexed"
    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 0
    assert "what the others are held against" in capsys.readouterr().out


def test_what_a_paper_s_scale_lacks_is_named_with_its_fix(
    project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    project.edit(scale="base", data__name="mixed_strict")
    found = by_name(doctor.examine(project.params()))
    assert "trains on cuda" in found["device cuda"].told and found["device cuda"].works is False
    text = found["encoder text: openai/clip-vit-base-patch16"]
    assert text.works is False and "`wimfris encoders fetch --scale base`" in text.told
    for name in ("refcoco", "refcoco+", "refcocog-umd"):
        assert found[f"data {name}"].works is False and "missing data/" in found[f"data {name}"].told
    assert found["data refcocog-google"].works is None, "not in use"
    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 1


def test_asked_about_a_data_set_that_is_not_the_one_in_use(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "IMAGES", 10**9)
    with pytest.raises(typer.Exit) as stop:
        command(scale="base", data="refcoco")
    told = " ".join(capsys.readouterr().out.split())
    assert stop.value.exit_code == 1 and "data set refcoco at scale base" in told and "missing data/" in told
    assert "1000000000 are needed" in told, "room for the images"


def backend_that(does: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Finding:
    """The finding on a backend of this kind."""
    real = scan.selective_scan

    def run(*inputs: Any, backend: str) -> Any:
        return does(*inputs) if backend == "new" else real(*inputs, backend=backend)

    monkeypatch.setattr(doctor, "BACKENDS", (*scan.BACKENDS, "new"))
    monkeypatch.setattr(doctor, "selective_scan", run)
    return by_name(doctor.scans())["scan new, cpu"]


def test_every_backend_is_held_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_name(doctor.scans())
    assert {name.split(",")[0].removeprefix("scan ") for name in found} == set(scan.BACKENDS)
    assert found["scan reference, cpu"].works
    assert found["scan auto, cpu"].told == "takes " + ": ".join(vars(scan.choose_backend("auto", "cpu")).values())
    assert backend_that(lambda *inputs: scan.selective_scan(*inputs, backend="reference"), monkeypatch).works


def test_a_backend_that_is_wrong_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*inputs: Any) -> Any:
        return 1.001 * scan.selective_scan(*inputs, backend="reference")

    assert backend_that(wrong, monkeypatch).works is False

    def breaks(*inputs: Any) -> Any:
        raise ImportError("built for\nanother torch")

    found = backend_that(breaks, monkeypatch)
    assert found.works is False and found.told == "ImportError: built for another torch"

    def absent(*inputs: Any) -> Any:
        raise UserError("model.scan: new needs a GPU")

    found = backend_that(absent, monkeypatch)
    assert found.works is None and found.told == "new needs a GPU"
