"""The reach of the text token: exact against autograd, its bound a bound, the fitted rate the one that was put in."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from wimfris.measure.text_reach import block_inputs, curve, directions, fit_rate, text_reach, unroll, untrained
from wimfris.model.mamba import Mamba


@pytest.fixture
def mamba(stir):  # type: ignore[no-untyped-def]
    return stir(Mamba(8, state=3, conv=4, expand=2)).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 9, 8, dtype=torch.float64)


def test_unrolled_is_the_block(mamba: Mamba, x: torch.Tensor) -> None:
    assert torch.allclose(unroll(mamba, x).output, mamba(x), atol=1e-12)


def test_norms_are_those_of_the_jacobian(mamba: Mamba, x: torch.Tensor) -> None:
    found = text_reach(mamba, x, directions(8, 8))
    for k in range(len(x)):

        def of_prefix(prefix: torch.Tensor, rest: torch.Tensor = x[k, 1:]) -> torch.Tensor:
            return unroll(mamba, torch.cat([prefix[None], rest])[None]).output[0]

        jacobian = torch.autograd.functional.jacobian(of_prefix, x[k, 0])  # (L, C, C)
        assert torch.allclose(found.norms[k], jacobian.flatten(1).norm(dim=1), rtol=1e-9)


def test_random_directions_give_the_norm_in_expectation(mamba: Mamba, x: torch.Tensor) -> None:
    x = x[:1, :6]
    exact = text_reach(mamba, x, directions(8, 8)).norms
    drawn = torch.stack([text_reach(mamba, x, directions(8, 2, seed)).norms.square() for seed in range(100)])
    error = drawn.std(dim=0) / 100**0.5
    assert ((drawn.mean(dim=0) - exact.square()).abs() < 5 * error).all()


@pytest.mark.parametrize("length", [2, 4, 5, 40])
def test_the_bound_bounds(mamba: Mamba, length: int) -> None:
    x = 3 * torch.randn(5, length, 8, dtype=torch.float64)
    found = text_reach(mamba, x, directions(8, 8))
    assert found.bound[:, :4].isnan().all()  # the convolution shows the prefix to these
    assert (found.norms[:, 4:] <= found.bound[:, 4:] * (1 + 1e-9)).all()
    decay = unroll(mamba, x).decay[:, 1:]
    assert torch.allclose(found.rate, decay.flatten(1).amax(dim=1)) and (found.rate < 1).all()


def test_the_bound_is_reached_by_one_channel_of_one_state() -> None:
    """With one channel and state, a constant step and a constant sequence, decay and bound are the same geometric
    sequence.
    """
    mamba = Mamba(1, state=1, conv=1, expand=1).double()
    with torch.no_grad():
        for weight in (mamba.in_proj.weight, mamba.x_proj.weight, mamba.out_proj.weight):
            weight.fill_(1.0)
        mamba.conv1d.weight.fill_(1.0)
        mamba.dt_proj.weight.zero_()  # Delta = softplus(bias)
    x = torch.full((1, 12, 1), 0.7, dtype=torch.float64)
    found = text_reach(mamba, x, directions(1, 1))
    assert torch.allclose(found.norms[0, 1:], found.bound[0, 1:])
    fit = fit_rate(found.norms.numpy(), 1)
    assert fit is not None and fit.rate == pytest.approx(float(found.rate)) and fit.explained == pytest.approx(1)


def test_the_rate_of_a_geometric_sequence_is_recovered() -> None:
    rates = np.array([0.5, 0.8])
    norms = np.array([3.0, 0.2])[:, None] * rates[:, None] ** np.arange(20)
    norms[:, :4] = 7.0  # before the fit begins
    fit = fit_rate(norms, 4)
    assert fit is not None and (fit.first, fit.last) == (4, 19)
    assert fit.rates == pytest.approx(rates) and fit.rate == pytest.approx(np.sqrt(0.4))
    assert fit.half == pytest.approx(np.log(0.5) / np.log(np.sqrt(0.4))) and fit.explained == pytest.approx(1)
    assert fit_rate(norms[:, :6], 4) is None


def test_a_window_bounds_what_the_block_reads(project) -> None:  # type: ignore[no-untyped-def]
    """The sequences are those of the windows, text token first and normalised; the same images each time."""
    from wimfris.data.index import read_index
    from wimfris.data.source import source_images

    settings = project.params().settings("window_2")
    rows = read_index(settings.folder / "index" / "index.parquet")
    read = [
        block_inputs(untrained(settings, 0), settings, rows, source_images(settings), count=4, most=10) for _ in "12"
    ]
    assert read[0].shape == (10, 5, settings.model.hmf.width) and torch.equal(*read)
    assert torch.allclose(read[0].mean(dim=-1), torch.zeros(10, 5), atol=1e-5)
    frame = curve(text_reach(untrained(settings, 0).neck.fusion.mamba, read[0], directions(16, 16)), window="2")
    assert list(frame["t"]) == [1, 2, 3, 4] and frame["share"].iloc[0] == pytest.approx(1)
    assert (frame["low"] <= frame["high"]).all() and frame["bound"].notna().sum() == 1


def test_the_study_shows_rates_where_there_is_something_to_fit(project, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from wimfris.data.index import read_index
    from wimfris.data.source import source_images

    spec = importlib.util.spec_from_file_location("decay_study", Path(__file__).parents[2] / "studies" / "decay.py")
    assert spec and spec.loader
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    params = project.params()
    settings = params.settings()
    rows, images = read_index(settings.folder / "index" / "index.parquet"), source_images(settings)
    runs = ("window_2-0", "full-0", "full-1")
    curves = [study.measure(params.settings(run[:-2]), run, "untrained", rows, images) for run in runs]
    frame = study.pd.concat(curves, ignore_index=True)
    names = {"window_2": "window 2", "full": "window 4"}
    cells = study.section(study.summarise(frame), names, "x", "").cells.set_index("window")
    assert list(cells.index) == ["window 2", "window 4"] and list(cells["tokens"]) == ["4", "16"]
    assert cells.loc["window 2", "rate a token"] == "" and cells.loc["window 4", "rate a token"].startswith("0.")
    assert cells.loc["window 4", "seeds"] == "0, 1"
    study.draw(frame, names, tmp_path / "decay.png")
    assert (tmp_path / "decay.png").stat().st_size > 1000
