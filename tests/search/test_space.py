"""Spaces: what they may hold, that no draw is impossible, and that the budget is kept."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from wimfris.errors import UserError
from wimfris.measure.parameters import trained_parameters
from wimfris.search.space import TOLERANCE, Space, nested, read_search
from wimfris.settings.params import Params, read_params

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())["search"]["spaces"]


@pytest.fixture
def params() -> Params:
    return read_params(ROOT / "params.yaml")


def space(params: Params, declared: dict[str, Any] | str, scale: str = "tiny") -> Space:
    """A space of params.yaml, or one that is declared here."""
    name = declared if isinstance(declared, str) else "mine"
    there = params.search | {"spaces": SHIPPED | ({} if isinstance(declared, str) else {name: declared})}
    params = params.model_copy(update={"search": there, "scale": scale})
    return Space(name, params, read_search(params))


def draws(of: Space, number: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=RandomSampler(0))
    return [of.draw(study.ask()) for _ in range(number)]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("scale", ["smoke", "tiny", "base"])
def test_every_draw_of_a_shipped_space_is_possible(params: Params, name: str, scale: str) -> None:
    of = space(params, name, scale)
    found = draws(of, 20)
    for overrides in found:
        settings = of.settings("trial", overrides, "search/x")
        assert settings.train.epochs == params.search["train"][scale]["epochs"]
        assert settings.outs == settings.folder / "search/x"
    assert len({str(overrides) for overrides in found}) > 3


def test_placement_keeps_the_trained_parameters(params: Params) -> None:
    of = space(params, "placement")
    full = trained_parameters(params.settings())["adapters"]
    found = draws(of, 30)
    for overrides in found:
        assert abs(trained_parameters(of.settings("x", overrides, ""))["adapters"] / full - 1) <= TOLERANCE
    sizes = {len(overrides["model"]["msa"]["layers"]) for overrides in found}
    assert sizes == {1, 2, 3, 4}
    assert {overrides["model"]["msa"]["width"] for overrides in found} == {76, 44, 32, 24}


def test_no_set_of_layers_is_more_likely_than_another(params: Params) -> None:
    of = space(params, {"model": {"msa": {"layers": {"kind": "layers", "least": 1, "most": 1}}}})
    taken = [overrides["model"]["msa"]["layers"][0] for overrides in draws(of, 600)]
    assert all(70 < taken.count(layer) < 130 for layer in range(6))


def test_the_first_trial_is_the_one_declared(params: Params) -> None:
    of = space(params, "planted")
    assert of.draw(FixedTrial(of.first)) == SHIPPED["planted"]["first"]
    layers = {"kind": "layers", "least": 1, "most": 3}
    kernels = {"kind": "choice", "of": [[3, 3, 3], [3, 5, 7]]}
    first = {"model": {"msa": {"layers": [0, 4], "kernels": [3, 5, 7]}}}
    of = space(params, {"model": {"msa": {"layers": layers, "kernels": kernels}}, "first": first})
    assert of.draw(FixedTrial(of.first)) == first


def test_values_that_hold_for_all_trials(params: Params) -> None:
    of = space(params, {"model": {"hmf": {"window": {"kind": "choice", "of": [1, 2]}}}, "loss": {"dice": 0.0}})
    assert all(overrides["loss"] == {"dice": 0.0} for overrides in draws(of, 3))


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({}, "mine: decides nothing"),
        ({"loss": {"dice": 0.1}}, "mine: decides nothing"),
        ({"data": {"image_size": {"kind": "choice", "of": [64]}}}, "mine.data.image_size: a space holds keys of model"),
        ({"train": {"epochs": {"kind": "choice", "of": [1]}}}, "mine.train.epochs: of train, a space may hold"),
        ({"loss": {"dice": {"kind": "choise", "of": [1]}}}, "mine.loss.dice: kind 'choise' is none of choice, real"),
        ({"loss": {"dice": {"kind": "choice", "of": []}}}, "mine.loss.dice.of: "),
        ({"loss": {"dice": {"kind": "real", "low": 1.0, "high": 0.0}}}, "mine.loss.dice: .*low 1.0 must be below"),
        ({"loss": {"dice": {"kind": "real", "low": 0.0, "high": 1.0, "log": True}}}, "mine.loss.dice: .*above 0"),
        ({"loss": {"dice": {"kind": "real", "low": 0.0}}}, "mine.loss.dice.high: field required"),
        ({"loss": {"dice": {"kind": "real", "low": -1.0, "high": 1.0}}}, "mine: loss.dice -1.0 cannot be: "),
        (
            {"loss": {"bad": {"kind": "real", "low": 0.0, "high": 1.0}}},
            "mine: loss.bad 0.0 cannot be: unknown key loss.bad",
        ),
        ({"loss": {"dice": {"kind": "layers", "least": 1, "most": 2}}}, "mine.loss.dice: kind layers does not go"),
        (
            {"model": {"hmf": {"window": {"kind": "choice", "of": [4, 16]}}}},
            "model.hmf.window 16 cannot be: .*the grid",
        ),
        (
            {
                "model": {
                    "msa": {"width": {"kind": "choice", "of": [32, 36]}, "heads": {"kind": "choice", "of": [4, 8]}}
                }
            },
            "model.msa.width 36 and model.msa.heads 8 cannot be: .*multiple",
        ),
        (
            {"model": {"msa": {"layers": {"kind": "layers", "least": 1, "most": 6}, "width": {"kind": "budget"}}}},
            "model.msa.width: 6 layers come within 7% .* narrow the number",
        ),
        ({"model": {"hmf": {"width": {"kind": "budget"}}}}, "the budget is kept by model.msa.width alone"),
        (
            {"loss": {"dice": {"kind": "choice", "of": [0.1, 0.2]}}, "first": {"loss": {"dice": 0.3}}},
            "first.loss.dice: 0.3 is none of",
        ),
        (
            {"loss": {"dice": {"kind": "choice", "of": [0.1, 0.2]}}, "first": {"loss": {"align": 0.3}}},
            "first.loss.align: not a distribution",
        ),
    ],
)
def test_spaces_that_cannot_be(params: Params, declared: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: search\.spaces\..*{told}"):
        space(params, declared)


def test_section_that_cannot_be(params: Params) -> None:
    for update, told in (
        ({"space": "none"}, r"search\.space: no space 'none'; there are: window"),
        ({"seed": 0}, r"search\.seed: 0 is a seed of the matrix"),
        ({"trials": 0}, r"search\.trials must be "),
        ({"train": {}}, r"search\.train: says nothing of scale tiny"),
        ({"more": 1}, r"unknown key search\.more"),
    ):
        with pytest.raises(UserError, match=rf"^params\.yaml: {told}"):
            read_search(params.model_copy(update={"search": params.search | update}))
    with pytest.raises(UserError, match=r"--space none: not in params\.yaml"):
        space(params, "none")


def test_nested() -> None:
    assert nested("a.b", 1) == {"a": {"b": 1}}
