"""Two planned looks at a claim: how much of its error each look may spend.

A claim is looked at when its systems have the first planned number of confirmatory seeds, and again at the second one.
The error is spent by Lan and DeMets's function of O'Brien and Fleming's type (1983, Biometrika 70: 659), one function
for each side. The information at the first look is V_2 / V_1, the planned variance of the second look over that of the
first. The variance of the seeds shrinks with their number and that of the images does not, so the information is
V_2 / V_1 = (V_seed n_1 / n_2 + V_image) / (V_seed + V_image). The estimates of the looks share their first seeds and
their images, so they are correlated by the root of the information, as in every group sequential design.
"""

import numpy as np
from scipy import optimize, special

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_END = 12.0  # standard deviations: the end of the integral
_MOST = 0.99  # information at the first look; at 1 the second look adds nothing


def information(seed_variance: float, image_variance: float, seeds: int, final: int) -> float:
    """Return the information at a look with `seeds` seeds, of 1 with `final` ones; the variances are those now."""
    now = seed_variance + image_variance
    return min((seed_variance * seeds / final + image_variance) / now, 1.0) if now > 0 else 1.0


def nominal_levels(alpha: float, information: float) -> tuple[float, float]:
    """Return the two-sided levels at which the first and the second look are tested, for a two-sided error of `alpha`.

    information: at the first look, in (0, 1].
    """
    share = min(information, _MOST)
    first = 4 * float(special.ndtr(special.ndtri(alpha / 4) / np.sqrt(share)))
    left = (alpha - first) / 2
    before, root = -float(special.ndtri(first / 2)), np.sqrt(share)

    def spent(critical: float) -> float:
        z = critical + (_END - critical) * (_NODES + 1) / 2
        inside = special.ndtr((before - root * z) / np.sqrt(1 - share))
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        return float((_WEIGHTS * density * inside).sum() * (_END - critical) / 2) - left

    critical = optimize.brentq(spent, 0.0, _END - 1)
    return first, 2 * float(special.ndtr(-critical))
