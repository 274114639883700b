"""The name of a run: a variant and a seed."""

from dataclasses import dataclass

from wimfris.errors import UserError


@dataclass(frozen=True, order=True)
class Run:
    """One training of a variant, `<variant>-<seed>`. Only this class splits such a name."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Run":
        """Return the run of this name. Raises UserError where it is no run's name."""
        variant, _, seed = name.rpartition("-")
        if variant and seed.isdecimal():
            run = cls(variant, int(seed))
            if str(run) == name:  # no second name of a run, as full-00 would be
                return run
        raise UserError(f"run {name}: a run is named <variant>-<seed>, for example full-0")
