"""From intervals to verdicts: what decides a claim of the primary tier."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Decision = Literal[
    "reproduced",
    "reproduced, but smaller than the paper's",
    "contradicted",
    "no effect of the paper's size",
    "undecided",
]


class Ends(NamedTuple):
    """The two intervals of a comparison of a claim; the second is the wider one where a claim has several rivals.

    Every rival has to lie below for *reproduced*, so each is tested at the claim's level (an intersection-union test).
    Any one rival can cause the other verdicts, so their level is divided by the number of rivals.
    """

    low: float
    high: float
    low_any: float
    high_any: float


def decide(comparisons: Sequence[Ends], margin: float) -> Decision:
    """Return the verdict on "the system is better than every rival", with the effect's size `margin` in the paper.

    Exactly one of the decisions holds. An unknown interval (NaN) decides nothing.
    """
    if any(ends.high_any < 0 for ends in comparisons):
        return "contradicted"
    if comparisons and all(ends.low > 0 for ends in comparisons):
        smaller = any(ends.high_any < margin for ends in comparisons)
        return "reproduced, but smaller than the paper's" if smaller else "reproduced"
    if any(-margin < ends.low_any and ends.high_any < margin for ends in comparisons):
        return "no effect of the paper's size"
    return "undecided"
