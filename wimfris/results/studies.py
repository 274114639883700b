"""The files of studies/ as objects."""

import importlib.util
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from wimfris.errors import UserError, suggestion
from wimfris.results.comparison import Study
from wimfris.results.differences import Pair
from wimfris.results.measured import Measured
from wimfris.results.plan import Plan
from wimfris.settings.params import Params

STUDIES = Path("studies")
OF_THEIR_OWN = ("search", "tuning")  # files of studies/ without a constant STUDY


def load_study(name: str, folder: Path = STUDIES) -> Study | Measured:
    """Return the constant STUDY of a file of studies/. Raises `UserError` where there is no such file or constant."""
    path = folder / f"{name}.py"
    known = [study.stem for study in sorted(folder.glob("*.py"))]
    if not path.is_file():
        raise UserError(f"{path}: no such study; {suggestion(name, known, 'studies')}")
    spec = importlib.util.spec_from_file_location(f"studies_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study | Measured):
        raise UserError(f"{path}: has no constant STUDY; copy another study, or move the file out of {folder}/")
    return study


def load_studies(folder: Path = STUDIES) -> list[Study | Measured]:
    """Return all studies, in the order of their files; without those that have runs and a report of their own."""
    return [load_study(path.stem, folder) for path in sorted(folder.glob("*.py")) if path.stem not in OF_THEIR_OWN]


def variants_of(study: Study | Measured, params: Params) -> list[str]:
    """Return the variants whose runs a study needs."""
    return study.variants_of(params) if isinstance(study, Measured) else study.variants


def study_pairs(studies: Sequence[Study | Measured], plan: Plan, params: Params) -> dict[Pair, bool]:
    """Return the comparisons of the studies and of the plan's further variants, each once, whichever way round.

    params: at the data set and scale of the comparisons. The value says whether only studies that the plan does not
    list have the comparison.
    """
    pairs: dict[Pair, bool] = dict.fromkeys(((name, "full") for name in plan.exploratory.variants), False)
    for study in studies:
        for pair in study.at(params).pairs if isinstance(study, Study) else ():
            known = pair[::-1] if pair[::-1] in pairs else pair
            pairs[known] = pairs.get(known, True) and study.name not in plan.exploratory.studies
    return pairs


def control_pairs(params: Params) -> list[Pair]:
    """Return the pairs of variants that compute the same function at the current scale, a control first."""
    return [pair[::-1] for group in params.same_function() for pair in combinations(group, 2)]
