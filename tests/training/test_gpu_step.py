"""Whole training steps on a GPU: the same numbers as on the CPU, and the same bits every time."""

import json
from typing import Any

import pytest
import torch

from wimfris.training.determinism import CUBLAS, DETERMINISTIC_CUBLAS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_run_gives_the_same_bits_twice(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, DETERMINISTIC_CUBLAS[0])
    project.edit(scales__smoke__train__device="cuda", model__scan="reference")
    project.train()
    outs = project.outs()
    project.train()
    assert project.outs() == outs


@pytest.mark.parametrize("scan", ["reference", "triton"])
def test_a_run_on_a_gpu_has_the_cpus_first_loss(project: Any, scan: str) -> None:
    project.edit(model__scan="reference")
    project.train()
    expected = _first_loss(project)
    project.edit(scales__smoke__train__device="cuda", model__scan=scan)
    project.train()
    assert _first_loss(project) == pytest.approx(expected, rel=1e-3)


def _first_loss(project: Any) -> float:
    return float(json.loads(project.files().log.read_text().splitlines()[0])["loss"])
