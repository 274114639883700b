"""`wimfris doctor` names what is missing with its fix, and tries what works."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import typer

from wimfris.checks import doctor
from wimfris.checks.doctor import Finding
from wimfris.cli.inspect import doctor as command
from wimfris.errors import UserError
from wimfris.model import scan

pytestmark = pytest.mark.slow


def by_name(findings: Any) -> dict[str, Finding]:
    return {f"{finding.part} {finding.name}": finding for finding in findings}


def test_a_complete_project_lacks_nothing(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    findings = by_name(doctor.examine(project.params()))
    assert not [finding for finding in findings.values() if finding.works is False]
    assert findings["version torch"].message == torch.__version__
    assert findings["encoder text: random"].works and findings["data scenes-smoke"].message == "indexed"
    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 0
    assert "the reference of the other backends" in capsys.readouterr().out


def test_what_a_paper_scale_lacks_is_named_with_its_fix(
    project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    project.edit(scale="base", data__name="mixed_strict")
    findings = by_name(doctor.examine(project.params()))
    assert "trains on cuda" in findings["device cuda"].message and findings["device cuda"].works is False
    text = findings["encoder text: openai/clip-vit-base-patch16"]
    assert text.works is False and "`wimfris encoders fetch --scale base`" in text.message
    for name in ("refcoco", "refcoco+", "refcocog-umd"):
        assert findings[f"data {name}"].works is False and "missing data/" in findings[f"data {name}"].message
    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == 1


def test_options_select_another_scale_and_data_set(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "IMAGES", 10**9)
    with pytest.raises(typer.Exit) as stop:
        command(scale="base", data="refcoco")
    output = " ".join(capsys.readouterr().out.split())
    assert stop.value.exit_code == 1 and "data set refcoco at scale base" in output and "missing data/" in output
    assert "1000000000 GB needed" in output, "room for the images"


def finding_on(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Finding:
    """Return the finding on a backend that computes this function."""
    real = scan.selective_scan

    def run(*inputs: Any, backend: str) -> Any:
        return function(*inputs) if backend == "new" else real(*inputs, backend=backend)

    monkeypatch.setattr(doctor, "BACKENDS", (*scan.BACKENDS, "new"))
    monkeypatch.setattr(doctor, "selective_scan", run)
    return by_name(doctor.scans())["scan new, cpu"]


def test_every_backend_is_compared_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = by_name(doctor.scans())
    assert {name.split(",")[0].removeprefix("scan ") for name in findings} == set(scan.BACKENDS)
    assert findings["scan reference, cpu"].works
    assert findings["scan auto, cpu"].message == "uses " + ": ".join(vars(scan.choose_backend("auto", "cpu")).values())
    assert finding_on(lambda *inputs: scan.selective_scan(*inputs, backend="reference"), monkeypatch).works


def test_a_wrong_or_failing_backend_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*inputs: Any) -> Any:
        return 1.001 * scan.selective_scan(*inputs, backend="reference")

    assert finding_on(wrong, monkeypatch).works is False

    def breaks(*inputs: Any) -> Any:
        raise ImportError("built for\nanother torch")

    finding = finding_on(breaks, monkeypatch)
    assert finding.works is False and finding.message == "ImportError: built for another torch"

    def absent(*inputs: Any) -> Any:
        raise UserError("model.scan: new needs a GPU")

    finding = finding_on(absent, monkeypatch)
    assert finding.works is None and finding.message == "new needs a GPU"
