"""A run writes and reads its name."""

import pytest

from wimfris.errors import UserError
from wimfris.settings.run import Run


def test_parse_reads_the_name_of_a_run() -> None:
    assert Run.parse("no_neck-12") == Run("no_neck", 12)
    assert str(Run("no_neck", 12)) == "no_neck-12"


@pytest.mark.parametrize("name", ["", "full", "full-", "-0", "full-x", "full-00", "full-\u0663", "full-1.0"])
def test_parse_refuses_other_names(name: str) -> None:
    with pytest.raises(UserError, match="<variant>-<seed>, for example full-0"):
        Run.parse(name)
