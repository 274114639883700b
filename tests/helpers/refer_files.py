"""The official files of the declared data sets: a small excerpt in their layout."""

from pathlib import Path

from wimfris.data.refer import Source, declared_source
from wimfris.settings.params import read_params
from wimfris.settings.sections import Files

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "golden" / "refer_fixture"
SETS = {
    name: declared
    for name, declared in read_params(ROOT / "params.yaml").datasets.items()
    if isinstance(declared, Files)
}


def official(root: Path, name: str = "refcoco") -> Source:
    """Return the files of an official data set under a root."""
    return declared_source(name, SETS[name], root)
