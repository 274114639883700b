"""A run and its name."""

from dataclasses import dataclass

from wimfris.errors import UserError


@dataclass(frozen=True, order=True)
class Run:
    """One training of a variant with a seed, named `<variant>-<seed>`. Only this class splits such a name."""

    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Run":
        """Return the run with this name. Raises UserError if no run can have it."""
        variant, _, seed = name.rpartition("-")
        if variant and seed.isdecimal():
            run = cls(variant, int(seed))
            if str(run) == name:  # refuse full-00, a second name of full-0
                return run
        raise UserError(f"run {name}: a run is named <variant>-<seed>, for example full-0")
