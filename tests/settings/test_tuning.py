"""Tuning runs: equal budgets, the same trials everywhere, and a split that nothing else sees."""

from pathlib import Path

import numpy as np
import pytest
from params_file import write_params

from wimfris.errors import UserError
from wimfris.settings.params import Params, read_params
from wimfris.settings.run import Run
from wimfris.settings.tuning import nested

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params() -> Params:
    return read_params(ROOT / "params.yaml")


def test_every_family_has_the_same_number_of_distinct_trials(params: Params) -> None:
    for family in params.tuning.families:
        values = params.tuning.trial_values(family)
        assert len({tuple(trial.values()) for trial in values}) == params.tuning.trials == len(values)


def test_trials_spread_evenly_over_each_range(params: Params) -> None:
    """Each quarter of a range, on a logarithmic scale, holds a quarter of the trials."""
    for name, family in params.tuning.families.items():
        values = params.tuning.trial_values(name)
        for key, (low, high) in family.ranges.items():
            share = np.log(np.array([trial[key] for trial in values]) / low) / np.log(high / low)
            assert (np.histogram(share, bins=4, range=(0, 1))[0] == params.tuning.trials // 4).all(), (name, key)


def test_a_trial_differs_from_its_variant_in_the_tuned_settings_and_the_split_alone(params: Params) -> None:
    trial, variant = params.settings("tune_lora_03_whole"), params.settings("lora")
    assert trial.data.splits == ("tune",) and trial.group == "tuning"
    changed = trial.train.learning_rate, trial.train.backbone_factor
    assert changed != (variant.train.learning_rate, variant.train.backbone_factor)
    train = variant.train.model_copy(update=dict(zip(("learning_rate", "backbone_factor"), changed, strict=True)))
    data = variant.data.model_copy(update={"splits": ("tune",)})
    update = {"train": train, "data": data, "variant": trial.variant, "group": "tuning"}
    assert variant.model_copy(update=update) == trial


def test_a_scale_shortens_its_trials_but_not_their_training_at_full_length(params: Params) -> None:
    short, whole = params.settings("tune_lora_03"), params.settings("tune_lora_03_whole")
    assert params.tuning.short[params.scale] == {"epochs": short.train.epochs}
    train = whole.train.model_copy(update={"epochs": short.train.epochs})
    assert whole.model_copy(update={"train": train, "variant": short.variant}) == short
    smoke = params.at_scale("smoke")
    assert smoke.settings("tune_lora_03").train == smoke.settings("tune_lora_03_whole").train
    assert smoke.tuning.whole_name("tune_lora_03", "smoke") == "tune_lora_03"


def test_trials_of_an_unknown_scale_cannot_be_shortened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tuning\.short must be by scale \(smoke, .*\), got tinny"):
        read_params(write_params(tmp_path, tuning__short={"tinny": {"epochs": 1}}))


def test_tuning_runs_are_no_evidence(params: Params) -> None:
    assert not {run.variant for run in params.all_runs()} & params.tuned.keys()


def test_a_seed_of_the_evidence_tunes_nothing(params: Params) -> None:
    with pytest.raises(UserError, match="run tune_full_00-0: 0 is not a seed of tune_full_00"):
        params.settings_of(Run("tune_full_00", 0))


def test_dotted_keys_become_sections() -> None:
    assert nested({"a.b.c": 1, "a.d": 2}) == {"a": {"b": {"c": 1}, "d": 2}}
