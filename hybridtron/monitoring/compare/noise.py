"""How much the held-out loss of one run scatters from evaluation to evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LAST, FEWEST = 6, 4  # evaluations that are looked at, and that must be there
CURVED = 5  # evaluations from which on the fall may be a curve


def noise_of(tokens: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the standard deviation of the last LAST losses around their fall.

    The fall is a straight line over tokens or, from CURVED losses on, a parabola over log tokens, whichever leaves the
    smaller deviation: in a short run the losses bend, which is no noise. Degrees of freedom that the fit takes are
    counted. None for fewer than FEWEST losses.
    """
    x, y = np.asarray(tokens[-LAST:], float), np.asarray(losses[-LAST:], float)
    if len(y) < FEWEST or not np.ptp(x):
        return None
    deviations = [_deviation(x, y, 1)]
    if len(y) >= CURVED and x.min() > 0:
        deviations.append(_deviation(np.log(x), y, 2))
    return min(deviations)


def _deviation(x: np.ndarray, y: np.ndarray, degree: int) -> float:
    """Return the standard deviation of y around the polynomial of this degree in x that is fitted to it."""
    design = np.vander((x - x.mean()) / np.ptp(x), degree + 1)
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.sqrt(np.sum(rest**2) / (len(y) - degree - 1)))
