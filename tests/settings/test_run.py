"""The name of a run: written and read by one class."""

import pytest

from wimfris.errors import UserError
from wimfris.settings.run import Run


def test_a_name_is_read_as_it_is_written() -> None:
    assert Run.parse("no_neck-12") == Run("no_neck", 12)
    assert str(Run("no_neck", 12)) == "no_neck-12"


@pytest.mark.parametrize("name", ["", "full", "full-", "-0", "full-x", "full-00", "full-\u0663", "full-1.0"])
def test_what_is_no_run_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="<variant>-<seed>, for example full-0"):
        Run.parse(name)
