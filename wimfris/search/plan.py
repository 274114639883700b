"""What decides a search's trials, and where the search is stored."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from wimfris.runs.files import RunFiles
from wimfris.runs.fingerprint import decisive, digest, module_code
from wimfris.search.sampler import make_pruner
from wimfris.search.space import Space
from wimfris.search.storage import open_storage, storage_errors
from wimfris.settings.run import Run
from wimfris.settings.schema import Settings

AGAINST = ("parameters", "latency")  # second objectives: trained parameters, milliseconds per image
SAMPLERS = ("tpe", "random")
REFERENCE = "reference"  # the name of `full`, trained as long as a trial


@dataclass(frozen=True)
class Plan:
    """A search of a space. The data set's index and encoders.json must exist."""

    space: Space
    sampler: str = "tpe"
    against: str | None = None  # a second objective, one of AGAINST; then no trial is pruned
    url: str | None = None  # of a database that several machines share; None for a journal file

    @property
    def label(self) -> str:
        """The name of the search's evidence: its space and its method."""
        return "-".join(filter(None, [self.space.name, self.sampler, self.against]))

    @property
    def seed(self) -> int:
        return self.space.search.seed

    @cached_property
    def key(self) -> str:
        """A short hash of everything that decides the trials. A search with another key starts over."""
        content = {
            "trial": decisive(self.space.settings(REFERENCE, {}, ""), self.seed),
            "space": self.space.search.spaces[self.space.name],
            "method": [self.sampler, self.against],
            "code": module_code("wimfris.search.space", "wimfris.search.sampler"),
        }
        return digest(content)[:8]

    @property
    def group(self) -> str:
        """The folder of the trials' runs, below the data set's."""
        return f"search/{self.label}-{self.key}"

    @property
    def folder(self) -> Path:
        """The search's own folder, with its journal and its runs."""
        return self.space.params.settings().folder / self.group

    @property
    def storage(self) -> str:
        """The URL of the database, or the path of the journal."""
        return self.url or str(self.folder / "journal.log")

    def name(self, number: int) -> str:
        """Return the name of a trial, which is its run's variant."""
        return f"{self.label.replace('-', '_')}_{number:04d}"

    def settings(self, name: str, overrides: dict[str, Any]) -> Settings:
        """Return the settings of a trial's run."""
        return self.space.settings(name, overrides, self.group)

    def files(self, settings: Settings) -> RunFiles:
        """Return the files of a trial's run."""
        return RunFiles(settings.outs / str(Run(settings.variant, self.seed)))

    def open(self) -> Study:
        """Open or create the study. Raises UserError if its storage cannot be used."""
        epochs = self.settings(REFERENCE, {}).train.epochs
        with storage_errors(self.storage):
            return optuna.create_study(
                storage=open_storage(self.storage),
                study_name=f"{self.space.params.settings().folder.name}-{self.label}-{self.key}",
                directions=["maximize", "minimize"] if self.against else ["maximize"],
                pruner=make_pruner(epochs, prunes=self.against is None),
                load_if_exists=True,
            )
