"""Intervals on an axis of points: the limits of the axis, and an arrow where an interval reaches beyond them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

_SHARE = 1.5  # an end of an axis may lie this much of the core's width beyond the core
_PAD = 0.04  # of the axis's width, at both ends


def reach(core: np.ndarray, wide: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis that shows 0 and all of `core`, and of `wide` what is not far beyond the core.

    One interval from two seeds can be so wide that all others would shrink to dots. Both arrays are in points; NaN is
    ignored.
    """
    values = core[np.isfinite(core)]
    low, high = min(values.min(initial=0), -0.5), max(values.max(initial=0), 0.5)
    room = _SHARE * (high - low)
    ends = wide[np.isfinite(wide)]
    return (
        max(min(ends.min(initial=0), low), low - room),
        min(max(ends.max(initial=0), high), high + room),
    )


def padded(start: float, stop: float) -> tuple[float, float]:
    """Return the limits of the axis, with room for arrows and caps."""
    room = _PAD * (stop - start)
    return start - room, stop + room


def draw_interval(axis: Axes, height: float, low: float, high: float, ends: tuple[float, float], **style: Any) -> None:
    """Draw an interval up to the ends of the axis, with an arrow where it goes on; nothing where it is unknown."""
    if not np.isfinite(low):
        return
    start, stop = ends
    axis.plot([max(low, start), min(high, stop)], [height] * 2, **style, solid_capstyle="butt")
    for beyond, place, marker in ((low < start, start, "<"), (high > stop, stop, ">")):
        if beyond:
            axis.plot(place, height, marker=marker, color=style["color"], markersize=4, zorder=style.get("zorder", 2))
