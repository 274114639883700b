"""Search spaces: every draw is valid, a budget holds, and what a space may not declare."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from params_file import SHIPPED

from wimfris.errors import UserError
from wimfris.measure.parameters import trained_parameters
from wimfris.search import limits
from wimfris.search.space import TOLERANCE, Space, read_search
from wimfris.settings.params import Params, read_params

ROOT = Path(__file__).parents[2]
SPACES = SHIPPED["search"]["spaces"]


@pytest.fixture
def params() -> Params:
    return read_params(ROOT / "params.yaml")


def make_space(params: Params, declared: dict[str, Any] | str, scale: str = "tiny") -> Space:
    """Return a space of params.yaml, or the one that is declared here."""
    name = declared if isinstance(declared, str) else "mine"
    search = params.search | {"spaces": SPACES | ({} if isinstance(declared, str) else {name: declared})}
    params = params.model_copy(update={"search": search, "scale": scale})
    return Space(name, params, read_search(params))


def draws(space: Space, number: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=RandomSampler(0))
    return [space.draw(study.ask()) for _ in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("scale", ["smoke", "tiny", "base"])
def test_every_draw_of_a_shipped_space_is_valid(params: Params, name: str, scale: str) -> None:
    space = make_space(params, name, scale)
    drawn = draws(space, 20)
    for overrides in drawn:
        settings = space.settings("trial", overrides, "search/x")
        assert settings.train.epochs == params.search["train"][scale]["epochs"]
        assert settings.outs == settings.folder / "search/x"
    assert len({str(overrides) for overrides in drawn}) > 3


@pytest.mark.slow
def test_placement_holds_the_trained_parameters(params: Params) -> None:
    space = make_space(params, "placement")
    full = trained_parameters(params.settings())["adapters"]
    drawn = draws(space, 30)
    for overrides in drawn:
        assert abs(trained_parameters(space.settings("x", overrides, ""))["adapters"] / full - 1) <= TOLERANCE
    sizes = {len(overrides["model"]["msa"]["layers"]) for overrides in drawn}
    assert sizes == {1, 2, 3, 4}
    assert {overrides["model"]["msa"]["width"] for overrides in drawn} == {76, 44, 32, 24}


def test_no_set_of_layers_is_more_likely_than_another(params: Params) -> None:
    space = make_space(params, {"model": {"msa": {"layers": {"kind": "layers", "least": 1, "most": 1}}}})
    taken = [overrides["model"]["msa"]["layers"][0] for overrides in draws(space, 600)]
    assert all(70 < taken.count(layer) < 130 for layer in range(6))


def test_the_first_trial_is_the_one_declared(params: Params) -> None:
    space = make_space(params, "planted")
    assert space.draw(FixedTrial(space.first)) == SPACES["planted"]["first"]
    layers = {"kind": "layers", "least": 1, "most": 3}
    kernels = {"kind": "choice", "of": [[3, 3, 3], [3, 5, 7]]}
    first = {"model": {"msa": {"layers": [0, 4], "kernels": [3, 5, 7]}}}
    space = make_space(params, {"model": {"msa": {"layers": layers, "kernels": kernels}}, "first": first})
    assert space.draw(FixedTrial(space.first)) == first


def test_values_that_hold_for_all_trials(params: Params) -> None:
    space = make_space(params, {"model": {"hmf": {"window": {"kind": "choice", "of": [1, 2]}}}, "loss": {"dice": 0.0}})
    assert all(overrides["loss"] == {"dice": 0.0} for overrides in draws(space, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "mine: no distribution"),
        ({"loss": {"dice": 0.1}}, "mine: no distribution"),
        (
            {"data": {"image_size": {"kind": "choice", "of": [64]}}},
            "mine.data.image_size: a space may set only",
        ),
        (
            {"train": {"epochs": {"kind": "choice", "of": [1]}}},
            "mine.train.epochs: a space may set only these keys of train",
        ),
        (
            {"loss": {"dice": {"kind": "choise", "of": [1]}}},
            "mine.loss.dice: kind must be one of choice, .*got 'choise'",
        ),
        ({"loss": {"dice": {"kind": "choice", "of": []}}}, "mine.loss.dice.of: "),
        ({"loss": {"dice": {"kind": "real", "low": 1.0, "high": 0.0}}}, "mine.loss.dice: .*low 1.0 must be below"),
        ({"loss": {"dice": {"kind": "real", "low": 0.0, "high": 1.0, "log": True}}}, "mine.loss.dice: .*above 0"),
        ({"loss": {"dice": {"kind": "real", "low": 0.0}}}, "mine.loss.dice.high: field required"),
        ({"loss": {"dice": {"kind": "real", "low": -1.0, "high": 1.0}}}, "mine: loss.dice -1.0 is invalid: "),
        (
            {"loss": {"bad": {"kind": "real", "low": 0.0, "high": 1.0}}},
            "mine: loss.bad 0.0 is invalid: unknown key loss.bad",
        ),
        ({"loss": {"dice": {"kind": "layers", "least": 1, "most": 2}}}, "mine.loss.dice: kind layers does not fit"),
        (
            {"model": {"hmf": {"window": {"kind": "choice", "of": [4, 16]}}}},
            "model.hmf.window 16 is invalid: .*the grid",
        ),
        (
            {
                "model": {
                    "msa": {"width": {"kind": "choice", "of": [32, 36]}, "heads": {"kind": "choice", "of": [4, 8]}}
                }
            },
            "model.msa.width 36 and model.msa.heads 8 is invalid: .*multiple",
        ),
        (
            {"model": {"msa": {"layers": {"kind": "layers", "least": 1, "most": 6}, "width": {"kind": "budget"}}}},
            "model.msa.width: with 6 layers, the closest width is 7% off .* narrow the number",
        ),
        (
            {"model": {"hmf": {"width": {"kind": "budget"}}}},
            "mine.model.hmf.width: kind budget is only for model.msa",
        ),
        (
            {"loss": {"dice": {"kind": "choice", "of": [0.1, 0.2]}}, "first": {"loss": {"dice": 0.3}}},
            "first.loss.dice: must be one of .*got 0.3",
        ),
        (
            {"loss": {"dice": {"kind": "choice", "of": [0.1, 0.2]}}, "first": {"loss": {"align": 0.3}}},
            "first.loss.align: not a distribution",
        ),
    ],
)
def test_invalid_spaces(params: Params, declared: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: search\.spaces\..*{message}"):
        make_space(params, declared)


def test_invalid_section(params: Params) -> None:
    for update, message in (
        ({"space": "none"}, r"search\.space: no space 'none'; available: window"),
        ({"seed": 0}, r"search\.seed: 0 is also a seed of the matrix"),
        ({"trials": 0}, r"search\.trials must be "),
        ({"train": {}}, r"search\.train: no entry for scale tiny"),
        ({"more": 1}, r"unknown key search\.more"),
    ):
        with pytest.raises(UserError, match=rf"^params\.yaml: {message}"):
            read_search(params.model_copy(update={"search": params.search | update}))
    with pytest.raises(UserError, match=r"--space none: not in params\.yaml"):
        make_space(params, "none")


def test_limits(params: Params) -> None:
    """Relative to `full`; a space without them has none."""
    own = make_space(params, "plus").limits
    assert own is not None and make_space(params, "window").limits is None
    assert own.on_parameters(105, 100) is None and own.on_parameters(95, 100) is None
    assert own.on_parameters(110, 100) == "+10.0% trained parameters"
    assert own.on_time(1.1) is None and own.on_time(1.2) == "a step takes 1.20 times that of full"
    space = {"model": {"hmf": {"window": {"kind": "choice", "of": [1, 2]}}}}
    for declared, reason in (
        ({"trained": 0.1}, "limits.time: field required"),
        ({"trained": 0, "time": 1}, "greater than 0"),
    ):
        with pytest.raises(UserError, match=reason):
            make_space(params, space | {"limits": declared})


def test_the_time_of_a_step_is_that_of_pairs(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down slows both models; the first pair does not count."""
    times = iter([9.0, 1.0, 1.2, 1.0, 12.0, 10.0, 3.6, 3.0])
    monkeypatch.setattr(limits, "seconds", lambda *_, **__: [next(times)])
    settings = params.at_scale("smoke").settings()
    monkeypatch.setattr(limits, "REPETITIONS", 3)
    assert limits.relative_step(settings, settings) == pytest.approx(1.2)
