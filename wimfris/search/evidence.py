"""The evidence of a search: all its trials as JSON, from which wimfris.search.report makes tables and a figure."""

import json
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from wimfris.measure.parameters import trained_parameters
from wimfris.runs.manifest import code_revision
from wimfris.search.plan import REFERENCE, Plan
from wimfris.search.storage import counted, original


def sentence_metrics(path: Path) -> dict[str, dict[str, float]]:
    """Read the metrics of every split, with sentences as they are, from a run's metrics.json."""
    return {split: conditions["sentence"] for split, conditions in json.loads(path.read_text(encoding="utf-8")).items()}


def evidence(plan: Plan, study: Study) -> dict[str, Any]:
    """Return a search's evidence. The reference must have been trained."""
    reference = plan.settings(REFERENCE, {})
    files, counts = plan.files(reference), trained_parameters(reference)
    manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
    return {
        "space": plan.space.name,
        "sampler": plan.sampler,
        "against": plan.against,
        "dataset": reference.data.name,
        "scale": reference.scale,
        "protocol": reference.evaluate.protocol,
        "seed": plan.seed,
        "key": plan.key,
        "declared": plan.space.search.spaces[plan.space.name],
        "train": {"epochs": reference.train.epochs, "epoch_steps": reference.train.epoch_steps},
        "reference": {
            "metrics": sentence_metrics(files.metrics),
            "trained": counts["total"],
            "adapters": counts["adapters"],
            "seconds": manifest["wall_seconds"],
        },
        "trials": [_trial(trial, plan) for trial in counted(study.get_trials(deepcopy=False))],
        "importances": _importances(plan, study),
        "code": code_revision(),
        "device": manifest["device"],
        "threads": reference.train.threads,
    }


def _trial(trial: FrozenTrial, plan: Plan) -> dict[str, Any]:
    attrs = trial.user_attrs
    start, end = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "name": plan.name(original(trial)),
        "state": trial.state.name.lower(),
        "values": trial.values if trial.state == TrialState.COMPLETE else None,
        "epochs": attrs.get("epochs", {}),  # epoch -> mIoU on val
        "drawn": trial.params,
        "overrides": attrs.get("overrides", {}),
        "adapters": attrs.get("adapters"),
        "trained": attrs.get("trained"),
        "latency_ms": attrs.get("latency_ms"),
        "time_ratio": attrs.get("time_ratio"),  # a training step's, over that of `full`; where the space has limits
        "failure": attrs.get("failure"),
        "refused": attrs.get("refused"),  # why the trial is beyond the limits; it was not trained
        "same_as": attrs.get("same_as"),  # the name of an earlier trial with equal settings, whose run serves both
        "metrics": attrs.get("metrics", {}),
        "seconds": round((end - start).total_seconds(), 1) if start and end else None,
    }


def _importances(plan: Plan, study: Study) -> dict[str, float]:
    """Return each setting's share of the variance of mIoU, by PED-ANOVA (Watanabe et al., 2023), the largest first.

    Empty if too few trials are complete.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental", and "few trials"
        try:
            shares = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                # the evaluator prefers low values of a target
                target=(lambda trial: -trial.values[0]) if plan.against else None,
            )
        except (ValueError, RuntimeError):
            return {}
    sums: dict[str, float] = {}
    for name, share in shares.items():
        path = next(path for path in plan.space.distributions if name == path or name.startswith(f"{path}."))
        sums[path] = sums.get(path, 0.0) + share
    return {path: round(share, 6) for path, share in sorted(sums.items(), key=lambda item: -item[1])}
