"""Every time and the peak memory are measured; a failure is one line."""

import sys
from typing import Any

import pytest

from wimfris.errors import UserError
from wimfris.measure.timing import BATCHES, quartiles, time_apart, time_variant


def test_measuring_leaves_every_time_and_the_memory(project: Any) -> None:
    timings = time_variant(project.params().settings("full"), repetitions=2)
    assert set(timings.latency) == set(timings.neck) == {str(batch) for batch in BATCHES}
    times = [*timings.latency.values(), *timings.neck.values(), timings.step]
    assert all(len(part) == 2 and min(part) > 0 for part in times)
    assert timings.device and timings.threads >= 1
    if sys.platform == "linux":
        assert all(value is not None and value >= 0 for value in timings.memory.values())


@pytest.mark.slow
def test_a_variant_that_cannot_be_measured_is_one_line(project: Any) -> None:
    with pytest.raises(UserError, match=r"measuring nothing failed: .*no variant 'nothing'"):
        time_apart("nothing", "smoke", 1)


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)
